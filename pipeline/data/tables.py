"""CSV files of images: which images, labels and splits their rows list."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.addresses import without_secrets
from pipeline.data.csv_rows import Row, read_table
from pipeline.data.doubts import doubts_of_cells, doubts_of_names
from pipeline.data.listing import UNLABELLED_NAMES, Listing, clean_name, is_text, split_of
from pipeline.data.lookup import FileFinder, exists
from pipeline.data.manifest import PARTS, RESERVED_COLUMNS, UNLABELLED, ListedImage, parse_labels
from pipeline.data.remote_rows import FetchedCell
from pipeline.errors import PipelineError

Fetch = Callable[[Sequence[str]], Mapping[str, FetchedCell]]
"""A function that brings the files which some cells name, and tells what became of those that are elsewhere."""


def fetch_nothing(cells: Sequence[str]) -> Mapping[str, FetchedCell]:
    """Take all cells for files on this disk."""
    return {}


def list_csv(path: Path, fetch: Fetch = fetch_nothing, tasks: Sequence[str] = ()) -> Listing:
    """List the images of a CSV file with the columns path, label or labels and, if it likes, split.

    Relative paths start at its folder. A column `labels` names any number of classes per image, with semicolons between
    them; so do several rows with the same path and different labels. Other columns are kept as metadata. An empty
    label means that the image has none.

    fetch: brings the files that are elsewhere; tasks: columns of labels, of which the first is read as label, where an
    image that has any of them is listed as labelled.
    """
    rows, notes = read_table(path, tasks=tasks)
    named = [_with_label(row, tasks) for row in rows] if tasks else rows
    return _list_fetched(named, notes, path, fetch, partial(_read_row, tasks=tasks or ("label",)))


def _with_label(row: Row, tasks: Sequence[str]) -> Row:
    """Return a row whose label is that of the first task."""
    cells = {name: value for name, value in row.cells.items() if name != "labels"}
    return replace(row, cells={**cells, "label": row.cells[tasks[0]]})


def list_unlabelled_csv(path: Path, fetch: Fetch = fetch_nothing) -> Listing:
    """List the images of a CSV file with the column path as images without labels; other columns are metadata."""
    rows, notes = read_table(path, labelled=False)
    return _list_fetched(rows, notes, path, fetch, _read_unlabelled_row)


def _list_fetched(
    rows: Sequence[Row],
    notes: Sequence[str],
    path: Path,
    fetch: Fetch,
    read: Callable[[Row, Path, FileFinder], ListedImage],
) -> Listing:
    """List the images of rows; those that cannot be fetched are bad files."""
    fetched = fetch([row.cells["path"] for row in rows])
    finder = FileFinder(path.parent, {cell: file.path for cell, file in fetched.items()})
    images = [_with_url(read(row, path, finder), fetched.get(row.cells["path"])) for row in rows]
    failed = {file.path: (without_secrets(file.url), file.reason) for file in fetched.values() if file.reason}
    if failed and all(image.path in failed for image in images):
        url, reason = next(iter(failed.values()))
        raise PipelineError(f"None of the {len(failed)} files of {path} can be fetched, the first is {url}: {reason}.")
    listing = _list_rows([image for image in images if image.path not in failed], notes, path)
    offered, there = ({name for image in some for name in image.classes} for some in (images, listing.images))
    return replace(listing, bad=list(failed.values()), empty=sorted(offered - there))


def _with_url(image: ListedImage, fetched: FetchedCell | None) -> ListedImage:
    """Return an image with its address in a column."""
    return replace(image, metadata={"url": without_secrets(fetched.url), **image.metadata}) if fetched else image


def _list_rows(images: Sequence[ListedImage], notes: Sequence[str], path: Path) -> Listing:
    if len({image.split is None for image in images if image.split != UNLABELLED}) > 1:
        raise PipelineError(f"{path}: some lines have a split and some have none. Fill in all of them, or none.")
    merged, merge_notes = _merge_rows(images, path)
    if not any(exists(image.path) for image in merged):
        first = merged[0].path
        raise PipelineError(
            f"None of the {len(merged)} files of {path} exists, the first is {str(first)!r}. Relative paths start at "
            f"the folder of the CSV file.{_suffix_hint(first)}"
        )
    doubts = [*doubts_of_names(merged), *doubts_of_cells(merged)]
    return Listing(merged, (), [*notes, *merge_notes, *_unlabelled_notes(merged, path), *doubts])


def _suffix_hint(path: Path) -> str:
    """Say that a file is there under its name with a suffix, if that is so."""
    found = next((file for file in _siblings(path) if file.stem == path.name), None)
    return f" There is {str(found)!r}: write the names with their suffix." if found else ""


def _siblings(path: Path) -> list[Path]:
    return sorted(path.parent.iterdir()) if exists(path.parent) and path.parent.is_dir() else []


def _read_row(row: Row, path: Path, finder: FileFinder, *, tasks: Sequence[str]) -> ListedImage:
    multi_label = "labels" in row.cells
    split = _read_split(row.cells.get("split", ""), f"{path}, line {row.line}")
    if split == UNLABELLED or not (multi_label or any(clean_name(row.cells[name]) for name in tasks)):
        return _read_unlabelled_row(row, path, finder)
    names = [clean_name(name) for name in parse_labels(row.cells["labels"])] if multi_label else []
    label = ";".join(sorted(set(names))) if multi_label else clean_name(row.cells["label"])
    if not all(is_text(row.cells[name]) for name in row.cells if name in ("label", "labels", *tasks)):
        raise PipelineError(
            f"{path}, line {row.line}: the label is neither valid UTF-8 nor Windows-1252. Save the file as UTF-8."
        )
    return ListedImage(_file_of(row, path, finder), label, split, multi_label, _metadata_of(row))


def _read_unlabelled_row(row: Row, path: Path, finder: FileFinder) -> ListedImage:
    return ListedImage(_file_of(row, path, finder), "", UNLABELLED, "labels" in row.cells, _metadata_of(row))


def _file_of(row: Row, path: Path, finder: FileFinder) -> Path:
    where = f"{path}, line {row.line}"
    if not row.cells["path"].strip():
        raise PipelineError(f"{where}: the path is missing. Fill it in, or drop the line.")
    if "\0" in row.cells["path"]:
        raise PipelineError(f"{where}: the path contains a zero byte. Save the file as UTF-8.")
    return finder.find(row.cells["path"])


def _metadata_of(row: Row) -> dict[str, str]:
    return {name: value for name, value in row.cells.items() if name and name not in RESERVED_COLUMNS}


def _read_split(name: str, where: str) -> str | None:
    if not name.strip():
        return None
    if name.strip().lower() in UNLABELLED_NAMES:
        return UNLABELLED
    if (split := split_of(name)) is None:
        raise PipelineError(f"{where}: unknown split {name!r}. Choose from: {', '.join(PARTS)}.")
    return split


def _merge_rows(images: Sequence[ListedImage], path: Path) -> tuple[list[ListedImage], list[str]]:
    """Return one image for each path, with the labels of all its rows, and notes on what was merged."""
    rows: dict[str, list[ListedImage]] = {}
    for image in images:
        rows.setdefault(os.path.normpath(image.path.absolute()), []).append(image)
    several = [same for same in rows.values() if len(same) > 1]
    for same in several:
        _validate_same_split(same, path)
    different = [same for same in several if len({image.label for image in same}) > 1]
    notes = _merge_notes(several, different, len(rows), path)
    if not different:
        return [same[0] for same in rows.values()], notes
    _validate_no_semicolons(images, path)
    return [replace(same[0], label=_joined(same), multi_label=True) for same in rows.values()], notes


def _joined(same: Sequence[ListedImage]) -> str:
    return ";".join(sorted({name for image in same for name in image.classes}))


def _validate_same_split(same: Sequence[ListedImage], path: Path) -> None:
    splits = sorted({str(image.split) for image in same})
    if len(splits) > 1 and UNLABELLED in splits:
        raise PipelineError(
            f"{path} lists {str(same[0].path)!r} with a label and without one. Take one of these lines out."
        )
    if len(splits) > 1:
        raise PipelineError(
            f"{path} lists {str(same[0].path)!r} in the splits {' and '.join(splits)}. Take it out of one of them."
        )


def _validate_no_semicolons(images: Sequence[ListedImage], path: Path) -> None:
    """Refuse class names with semicolons where these must separate the labels of an image."""
    for image in images:
        if not image.multi_label and ";" in image.label:
            raise PipelineError(
                f"{path} has several rows per image, and the label {image.label!r} has a semicolon, which separates "
                "labels. Rename that class."
            )


def _merge_notes(
    several: Sequence[Sequence[ListedImage]], different: Sequence[Sequence[ListedImage]], count: int, path: Path
) -> list[str]:
    repeated = sum(len(same) - len({image.label for image in same}) for same in several)
    metadata = [same for same in several if any(image.metadata != same[0].metadata for image in same)]
    notes = []
    if different:
        names = ", ".join(sorted({image.label for image in different[0]}))
        notes.append(
            f"{len(different)} of {count} files of {path} have rows with different labels, the first is "
            f"{str(different[0][0].path)!r} ({names}): they are read as several labels per image. If each file should "
            "have one label, correct these rows."
        )
    if repeated:
        notes.append(f"{repeated} rows of {path} repeat the path and label of an earlier row, and count once.")
    if metadata:
        notes.append(
            f"{len(metadata)} files of {path} have rows with different values in other columns, the first is "
            f"{str(metadata[0][0].path)!r}: the values of the first row are kept."
        )
    return notes


def _unlabelled_notes(images: Sequence[ListedImage], path: Path) -> list[str]:
    unlabelled = [image for image in images if image.split == UNLABELLED]
    if not unlabelled:
        return []
    return [
        f"{len(unlabelled)} of {len(images)} files of {path} have no label, the first is {str(unlabelled[0].path)!r}: "
        "they get codes, but take no part in training and scores."
    ]
