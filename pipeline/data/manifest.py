"""Which images, which labels, which split: the manifest of a dataset, and what it can be made from."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import errors, files

MANIFEST = "manifest.csv"
OWN_COLUMNS = ("path", "label", "labels", "split")
"""The columns of a manifest that are ours; others are kept as they are."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ListedImage:
    """One file of a dataset as its source lists it; `split` is None where the source leaves that to us.

    label: its class; where `several`, any number of them with semicolons between; columns: what else the source says.
    """

    path: Path
    label: str
    split: str | None = None
    several: bool = False
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def classes(self) -> list[str]:
        """The classes that the label names."""
        return parse_labels(self.label) if self.several else [self.label]


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset.

    root: where relative paths start; paths: n file names; labels: (n,) int64, indices into `classes`, or of several
    labels an image (n, n_classes) uint8, 1 for each class that is there; splits: n of "train", "val", "test"; classes:
    the sorted class names; columns: what else was said of the images, n values each.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def file(self, row: int) -> Path:
        """Return where an image lies."""
        return self.root / self.paths[row]

    def files(self) -> list[Path]:
        """Return where each image lies."""
        return [self.file(row) for row in range(len(self.paths))]


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.csv` of a prepared dataset."""
    path = folder / MANIFEST
    if not path.exists():
        raise errors.PipelineError(
            f"No prepared dataset at {folder}. Run: python -m pipeline.prepare --dataset {folder.name} "
            "(or the folder or CSV of your images)."
        )
    rows, several = read_labelled_csv(path, required=("path", "split"))
    cells = [parse_labels(row["labels"]) if several else [row["label"]] for row in rows]
    classes = tuple(sorted({name for cell in cells for name in cell}))
    return Manifest(
        folder,
        tuple(row["path"] for row in rows),
        _label_numbers(cells, classes, several),
        tuple(row["split"] for row in rows),
        classes,
        {name: tuple(row[name] for row in rows) for name in (rows[0] if rows else ()) if name not in OWN_COLUMNS},
    )


def require_single_label(manifest: Manifest) -> None:
    """Refuse a dataset of several labels an image where one is learnt."""
    if manifest.labels.ndim == 2:
        raise errors.PipelineError(
            f"The images of {manifest.root} have several labels each, which an SVM on frozen codes alone can learn: "
            "python -m pipeline.extract, then python -m pipeline.classify --model svm."
        )


def parse_labels(cell: str) -> list[str]:
    """Return the classes that a cell of a CSV names, with semicolons between them."""
    return [name for name in map(str.strip, cell.split(";")) if name]


def _label_numbers(cells: Sequence[Sequence[str]], classes: Sequence[str], several: bool) -> np.ndarray:
    """Return labels (n,), or (n, n_classes) of 0 and 1 where there may be several."""
    index = {name: number for number, name in enumerate(classes)}
    if not several:
        return np.array([index[name] for (name,) in cells], dtype=np.int64)
    labels = np.zeros((len(cells), len(classes)), np.uint8)
    for row, cell in enumerate(cells):
        labels[row, [index[name] for name in cell]] = 1
    return labels


def write_manifest(folder: Path, listed: Sequence[ListedImage]) -> None:
    """Write `manifest.csv`: rows sorted by split, class and name; paths relative where they lie in `folder`."""
    extra = list(dict.fromkeys(name for image in listed for name in image.columns))
    label = "labels" if any(image.several for image in listed) else "label"
    ordered = sorted(listed, key=lambda i: (SPLITS.index(i.split or ""), i.label, _stored_path(i.path, folder)))
    rows = [
        (_stored_path(i.path, folder), i.label, i.split, *(i.columns.get(name, "") for name in extra)) for i in ordered
    ]
    files.write_csv(folder / MANIFEST, ("path", label, "split", *extra), rows)


def _stored_path(path: Path, folder: Path) -> str:
    absolute, root = path.absolute(), folder.absolute()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def read_labelled_csv(path: Path, required: Sequence[str]) -> tuple[list[dict[str, str]], bool]:
    """Return the lines of a CSV with a column `label`, or `labels`, and whether it is the latter."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        several = "labels" in names
        for name in (*required, "labels" if several else "label"):
            if name not in names:
                raise errors.PipelineError(
                    f"{path} lacks the column {name!r}. Its first line must read: path,label[,split]."
                )
        return list(reader), several
