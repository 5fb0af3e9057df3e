"""Datasets of Hugging Face on this disk: Parquet files, or what `save_to_disk` wrote, with images within their rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

from pipeline.addresses import ROWS_SUFFIX
from pipeline.data.archives import Bounds
from pipeline.data.hugging_face_columns import Columns, label_of
from pipeline.data.listing import UNLABELLED_NAMES, Listing, split_of, split_within
from pipeline.data.lookup import exists
from pipeline.data.manifest import UNLABELLED, ListedImage
from pipeline.data.tree import read_folder
from pipeline.errors import PipelineError, first_line, require_packages
from pipeline.images.formats import suffix_of
from pipeline.progress import track

DICT, STATE = "dataset_dict.json", "state.json"
"""Files that `save_to_disk` writes: for a dataset with splits, and for each part of it."""

ROWS = 64
"""Number of rows in memory at a time; each holds an image file."""


@dataclass(frozen=True)
class Part:
    """A file of rows, and the split that its name or folder tells; None where they tell none."""

    path: Path
    split: str | None

    @contextmanager
    def opened(self) -> Iterator[pyarrow.parquet.ParquetFile | pyarrow.ipc.RecordBatchReader]:
        """Open the file; an Arrow file is mapped into memory."""
        import pyarrow
        from pyarrow import ipc, parquet

        try:
            if self.path.suffix == ROWS_SUFFIX:
                with parquet.ParquetFile(self.path) as file:
                    yield file
            else:
                with pyarrow.memory_map(str(self.path)) as source, ipc.open_stream(source) as reader:
                    yield reader
        except (pyarrow.ArrowException, OSError) as error:
            raise PipelineError(
                f"{self.path} is damaged, or no {self.path.suffix[1:].title()} file ({first_line(error)}). "
                "Download it again."
            ) from error

    def read_schema(self) -> pyarrow.Schema:
        """Return the names and types of its columns."""
        with self.opened() as file:
            return getattr(file, "schema_arrow", None) or file.schema

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the values of some columns, row by row."""
        with self.opened() as file:
            batches = file.iter_batches(ROWS, columns=names) if hasattr(file, "iter_batches") else file
            for batch in batches:
                chosen = batch.select(names)
                chosen.validate(full=True)  # places in a damaged Arrow file may lead anywhere in memory
                for start in range(0, chosen.num_rows, ROWS):
                    yield from chosen.slice(start, ROWS).to_pylist()


def find_parts(source: Path) -> list[Part]:
    """Return the files of a dataset: a Parquet file, those in a folder, in its folder data or in folders of splits.

    Returns [] for anything else, such as a folder of images.
    """
    if source.is_file():
        return [Part(source, _split_of(source.stem))] if source.suffix == ROWS_SUFFIX else []
    content = read_folder(source)
    names = {file.name for file in content.files}
    if DICT in names:
        return [part for folder in content.folders for part in _saved_parts(folder, folder.name)]
    if STATE in names:
        return _saved_parts(source, "")
    if files := _row_files(source) or _row_files(source / "data"):
        _refuse_classes_beside(source, files, content.folders)
        return [Part(file, _split_of(file.stem)) for file in files]
    splits = [folder for folder in content.folders if split_of(folder.name)]
    return [Part(file, split_of(folder.name)) for folder in splits for file in _row_files(folder)]


def _refuse_classes_beside(source: Path, files: Sequence[Path], folders: Sequence[Path]) -> None:
    """Refuse a folder in which folders lie beside the files of rows: they may be classes."""
    if beside := [folder.name for folder in folders if folder.name != "data"]:
        raise PipelineError(
            f"{source} can be read in two ways: {files[0]} is a dataset (then name that file, or move "
            f"{beside[0]}/ away), or folders like {beside[0]}/ are classes (--layout classes)."
        )


def _row_files(folder: Path) -> list[Path]:
    return [file for file in read_folder(folder).files if file.suffix == ROWS_SUFFIX] if folder.is_dir() else []


def _saved_parts(folder: Path, name: str) -> list[Part]:
    """Return the files that `save_to_disk` wrote for one split."""
    if not (folder / STATE).exists():
        return []
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{folder / STATE} is damaged. Save the dataset again.") from error
    return [Part(file, _split_of(name or str(state.get("_split") or ""))) for file in files]


def _split_of(name: str) -> str | None:
    return UNLABELLED if name.lower() in UNLABELLED_NAMES else split_within(name)


def list_dataset(source: Path, parts: Sequence[Part], images: Path, chosen: Columns, labelled: bool = True) -> Listing:
    """Write the images of a dataset into an empty folder, byte for byte, and list them.

    chosen: the columns that the user names. The other columns of text and numbers are kept as metadata.
    """
    require_packages("To read Parquet and Arrow files", ["pyarrow"], "-e '.[parquet]'")
    if len({part.split is None for part in parts}) > 1:
        names = ", ".join(part.path.name for part in parts if part.split is None)
        raise PipelineError(f"{source}: some files are of a split, and {names} of none. Name or move them so.")
    bounds = Bounds(str(source), sum(part.path.stat().st_size for part in parts if part.path.exists()))
    writer = RowWriter(source, images, chosen, labelled, bounds)
    rows = (row for part in parts for row in writer.write(part))
    listed = list(track(rows, "writing", None))
    found = [row for row in listed if isinstance(row, ListedImage)]
    bad = [row for row in listed if not isinstance(row, ListedImage)]
    if not found:
        why = f", the first: {bad[0][1]}" if bad else ""
        raise PipelineError(f"None of the {len(bad)} rows of {source} has an image{why}. Load and save it with them.")
    offered, there = writer.offered, {name for image in found for name in image.classes}
    return Listing(found, empty=sorted(offered - there), bad=bad)


class RowWriter:
    """Writes the images of rows to files; bounds: how much they may hold; offered: the classes of all rows."""

    def __init__(self, source: Path, images: Path, chosen: Columns, labelled: bool, bounds: Bounds) -> None:
        self.source, self.images, self.chosen, self.labelled = source, images, chosen, labelled
        self.bounds = bounds
        self.offered: set[str] = set()
        self.count = 0

    def write(self, part: Part) -> Iterator[ListedImage | tuple[str, str]]:
        """Yield each row of a file as an image, or its place and why it has none."""
        schema = part.read_schema()
        columns = self.chosen.found_in(schema, self.source, self.labelled)
        kept = columns.plain(schema)
        for number, row in enumerate(part.rows([columns.image, *filter(None, [columns.label]), *kept])):
            label, several = label_of(row.get(columns.label), columns.feature(schema), self.source)
            split = part.split if label or several else UNLABELLED
            metadata = {name: "" if row[name] is None else str(row[name]) for name in kept}
            self.bounds.add_bytes(sum(map(len, metadata.values())), 0)  # a file may repeat a value for nothing
            path, reason = self._image_of(row[columns.image], part)
            image = ListedImage(path, label, split, several, metadata)
            self.offered.update(image.classes)
            yield (f"{part.path}, row {number}", reason) if reason else image

    def _image_of(self, cell: Any, part: Part) -> tuple[Path, str]:
        """Return the file of a row's image, and why there is none, "" where there is one."""
        fields: dict[str, Any] = {"bytes": cell} if isinstance(cell, bytes) else cell or {}
        data, name = fields.get("bytes"), str(fields.get("path") or "")
        if data is None and not name:
            return Path(), "no image"
        if data is None:
            path = part.path.parent / name
            return path, "" if exists(path) else f"it has no bytes, and {name[:200]!r} does not exist"
        self.bounds.add_bytes(len(data), len(data))
        suffix = Path(name).suffix
        suffix = suffix if re.fullmatch(r"\.\w{1,9}", suffix, re.ASCII) else suffix_of(data)
        path = self.images / (part.split or "") / f"{self.count:07}{suffix}"
        self.count += 1
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path, ""
