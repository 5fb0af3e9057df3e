"""The manifest of a prepared dataset: which images, which labels, which split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.data.columns import read_csv
from pipeline.data.origin import prepare_again
from pipeline.errors import Fix, PipelineError, beside, unknown
from pipeline.images import depth
from pipeline.paths import MANIFEST, ORIGIN
from pipeline.texts import BLOCK, Texts

RESERVED_COLUMNS = ("path", "label", "labels", "split", "digest")
"""The columns of a manifest that the program reads; all others are metadata and are kept as they are."""

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"
"""What stands for the split of an image without a label: it gets codes, but takes no part in training or in scores."""

PIXELS = "same_pixels"
"""The column with the digests of the images' pixels, where files of different bytes have the same pixels."""

PARTS = (*SPLITS, UNLABELLED)
"""What a manifest's column split may hold, in the order of its rows."""

NO_LABEL = -1
"""The number of the class of an image without a label."""


NO_METADATA: Mapping[str, str] = {}
"""What images without other columns share."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image file, as its source lists it.

    path: the file; label: its class, or with `multi_label` any number of classes with semicolons between them; split:
    one of `PARTS`, or None where the source has no splits; metadata: the other columns of a CSV; digest: the SHA-256
    of the file's bytes in hex, "" before the file has been read.
    """

    path: Path
    label: str
    split: str | None = None
    multi_label: bool = False
    metadata: Mapping[str, str] = field(default_factory=lambda: NO_METADATA, hash=False)
    digest: str = ""

    @property
    def content(self) -> str:
        """What copies share: the digest of the pixels, where some images were saved anew, and else that of the file."""
        return self.metadata.get(PIXELS, self.digest)

    @property
    def classes(self) -> list[str]:
        """The classes that the label names."""
        return _classes_in(self.label, self.split, self.multi_label)


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset of n images.

    root: the folder where relative paths start; paths: n file names; labels: (n,) int64 indices into `classes`, -1 for
    an image without a label, or for multi-label datasets (n, n_classes) uint8, 1 for each class of the image; splits: n
    of `PARTS`; classes: the sorted class names; digests: n SHA-256 of the images' bytes, in hex; metadata: the other
    columns of the source, n values each; max_value: the value that is white in images of more than 8 bits.
    """

    root: Path
    paths: Texts
    labels: np.ndarray
    splits: Texts
    classes: tuple[str, ...]
    digests: Texts
    metadata: Mapping[str, Texts] = field(default_factory=dict)
    max_value: float = depth.WHITE

    @property
    def digest(self) -> str:
        """The SHA-256, in hex, of everything that codes of this dataset depend on: see `dataset_digest`."""
        return dataset_digest(self.paths, self.labels, self.splits, self.classes, self.digests)

    @property
    def contents(self) -> Texts:
        """The n `ListedImage.content` of the images: copies have the same one."""
        return self.metadata.get(PIXELS, self.digests)

    def file(self, row: int) -> Path:
        """Return the file of one image."""
        return self.root / self.paths[row]

    def files(self) -> list[Path]:
        """Return the files of all images."""
        return [self.file(row) for row in range(len(self.paths))]

    def take(self, rows: np.ndarray) -> Manifest:
        """Return the manifest of some images only; rows: (m,) int64 row numbers."""
        return replace(
            self,
            labels=self.labels[rows],
            metadata={name: values.take(rows) for name, values in self.metadata.items()},
            paths=self.paths.take(rows),
            splits=self.splits.take(rows),
            digests=self.digests.take(rows),
        )

    def listed(self, rows: np.ndarray) -> list[ListedImage]:
        """Return some images of a single-label dataset, their splits left open; rows: (m,) int64 row numbers."""
        return [
            ListedImage(
                self.file(row),
                self.classes[self.labels[row]],
                metadata={name: values[row] for name, values in self.metadata.items()},
                digest=self.digests[row],
            )
            for row in rows.tolist()
        ]

    def groups_of(self, column: str, paths: Texts) -> Texts:
        """Return the value of each of some images in a metadata column; refuse as `groups` does."""
        return self.groups(column).take(self.rows_of(paths))

    def rows_of(self, paths: Texts) -> np.ndarray:
        """Return the row (m,) int64 of each of some images; refuse one that is not listed."""
        rows = self.paths.rows_of(paths)
        for unknown_row in np.flatnonzero(rows < 0)[:1]:
            raise PipelineError(
                f"{self.root / MANIFEST} does not list {paths[unknown_row]}, whose code is here. Extract again.",
                fix=[Fix("extract")],
            )
        return rows

    def groups(self, column: str) -> Texts:
        """Return the n values of a metadata column to group by; refuse a column that is missing or has gaps.

        Images without a label may have no value: they are in no training and no score.
        """
        if column not in self.metadata:
            raise unknown("column", column, self.metadata, where=f"--group-by in {self.root / MANIFEST}")
        values = self.metadata[column]
        for row in np.flatnonzero(values.isin([""]) & ~self.splits.isin([UNLABELLED]))[:1]:
            raise PipelineError(
                f"{self.root / MANIFEST} has no value in the column {column!r} for {self.paths[row]}. Fill it in, and "
                "prepare the dataset again."
            )
        return values


def dataset_digest(
    paths: Sequence[str], labels: np.ndarray, splits: Sequence[str], classes: Sequence[str], digests: Sequence[str]
) -> str:
    """Return the SHA-256, in hex, of the rows of a dataset; the arguments are as in `Manifest`, or as in `Codes`.

    It is that of the JSON of all columns, which is never in memory as a whole.
    """
    columns: tuple[Sequence[str] | np.ndarray, ...] = (paths, labels, splits, classes, digests)
    sha256 = hashlib.sha256()
    for number, column in enumerate(columns):
        sha256.update(b", [" if number else b"[[")
        for start in range(0, len(column), BLOCK):
            part = column[start : start + BLOCK]
            text = json.dumps(part.tolist() if isinstance(part, np.ndarray) else list(part))
            sha256.update(f"{', ' if start else ''}{text[1:-1]}".encode())
        sha256.update(b"]")
    sha256.update(b"]")
    return sha256.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.csv` of a prepared dataset."""
    path = folder / MANIFEST
    if not path.exists():
        raise PipelineError(
            f"There is no prepared dataset at {folder}.{beside(folder)} Prepare the images first.", fix=[Fix("prepare")]
        )
    found = read_csv(path)
    column = "labels" if "labels" in found else "label"
    _validate_columns(found, column, path)
    labels, classes = _number_labels(found[column], found["split"].isin([UNLABELLED]), column == "labels")
    metadata = {name: values for name, values in found.items() if name not in RESERVED_COLUMNS}
    return Manifest(
        folder, found["path"], labels, found["split"], classes, found["digest"], metadata, read_max_value(folder)
    )


def read_max_value(folder: Path) -> float:
    """Return the value that is white in a prepared dataset's images of more than 8 bits."""
    return float(_read_origin(folder).get("max_value", depth.WHITE))


def read_depths(folder: Path) -> depth.Depths | None:
    """Return the depths of a prepared dataset's images; None where they are not known."""
    depths = _read_origin(folder).get("depths")
    return None if depths is None else depth.Depths.from_dict(depths)


def _read_origin(folder: Path) -> dict[str, Any]:
    """Return what is known of a dataset's source, checked; nothing for a dataset that was prepared on the spot."""
    path = folder / ORIGIN
    if not path.exists():
        return {}
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        float(content.get("max_value", depth.WHITE))
        depth.Depths.from_dict(content.get("depths") or {"eight_bit": True, "deep": None, "darkest": 0})
    except (ValueError, TypeError, KeyError) as error:
        raise PipelineError(f"{path} is damaged. Prepare the dataset again.", fix=prepare_again(folder)) from error
    return content


def _validate_columns(found: Mapping[str, Texts], column: str, path: Path) -> None:
    """Refuse a manifest that an older version wrote, or that was changed by hand into something unreadable.

    column: the name of that with the labels.
    """
    fix = prepare_again(path.parent)
    for name in ("path", "split", "digest", column):
        if name not in found:
            raise PipelineError(f"{path} has no images, or no column {name!r}. Prepare the dataset again.", fix=fix)
    wrong = ~found["split"].isin(PARTS) | found["path"].isin([""]) | found["digest"].isin([""])
    for row in np.flatnonzero(wrong)[:1]:
        what = "a value is missing or not understood"
        raise PipelineError(f"{path}, row {row + 2}: {what}. Prepare the dataset again.", fix=fix)


def require_single_label(manifest: Manifest) -> None:
    """Refuse a multi-label dataset where exactly one label per image is needed."""
    if manifest.labels.ndim == 2:
        raise PipelineError(
            f"The images of {manifest.root} have several labels each, which only an SVM on frozen codes supports.",
            fix=[Fix("extract"), Fix("classify", {"model": "svm"})],
        )


def names_of_label(classes: Sequence[str], label: np.ndarray) -> list[str]:
    """Return the class of a row of `Manifest.labels`, or its classes; [] of an image without a label."""
    numbers = np.flatnonzero(label) if np.ndim(label) else [label]
    return [classes[int(number)] for number in numbers if number != NO_LABEL]


def parse_labels(cell: str) -> list[str]:
    """Return the class names in a cell of a CSV, where semicolons separate them."""
    return [name for name in map(str.strip, cell.split(";")) if name]


def _classes_in(cell: str, split: str | None, multi_label: bool) -> list[str]:
    """Return the classes that the label of an image names: none of an unlabelled one."""
    if split == UNLABELLED:
        return []
    return parse_labels(cell) if multi_label else [cell]


def _number_labels(cells: Texts, unlabelled: np.ndarray, multi_label: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and classes as in `Manifest`; cells: n labels; unlabelled: (n,) bool, rows without one."""
    numbers = cells.numbers()
    _, first = np.unique(numbers, return_index=True)
    names = {number: _classes_in(cells[first[number]], None, multi_label) for number in set(numbers[~unlabelled])}
    classes = tuple(sorted({name for present in names.values() for name in present}))
    index = {name: number for number, name in enumerate(classes)}
    of_cells = np.zeros((len(first), len(classes)), np.uint8) if multi_label else np.zeros(len(first), np.int64)
    for number, present in names.items():
        if multi_label:
            of_cells[number, [index[name] for name in present]] = 1
        else:
            of_cells[number] = index[present[0]]
    labels = of_cells[numbers]
    labels[unlabelled] = 0 if multi_label else NO_LABEL
    return labels, classes


def write_manifest(folder: Path, images: Sequence[ListedImage], root: Path | None = None) -> None:
    """Write `manifest.csv`, sorted by split, class and path.

    root: the folder of the dataset, relative to which paths inside it are stored; None if it is `folder`.
    """
    metadata = list(dict.fromkeys(name for image in images for name in image.metadata))
    label = "labels" if any(image.multi_label for image in images) else "label"
    rows = [
        (
            stored_path(image.path, root or folder),
            image.label,
            image.split,
            image.digest,
            *(image.metadata.get(name, "") for name in metadata),
        )
        for image in images
    ]
    rows.sort(key=lambda row: (PARTS.index(row[2] or ""), row[1], row[0]))
    files.write_csv(folder / MANIFEST, ("path", label, "split", "digest", *metadata), rows)


def stored_path(path: Path, folder: Path) -> str:
    """Return the path of an image as the manifest in a folder has it: relative where the image lies within."""
    absolute, root = path.absolute(), folder.absolute()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
