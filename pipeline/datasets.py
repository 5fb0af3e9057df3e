"""Which images, which labels, which split: the manifest of a dataset, and what it can be made from."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline import images
from pipeline.errors import PipelineError

MANIFEST = "manifest.csv"
OWN = ("path", "label", "labels", "split")
"""The columns of a manifest that are ours; others are kept as they are."""

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UTF8 = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


@dataclass(frozen=True)
class Listed:
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
        return names_in(self.label) if self.several else [self.label]


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
        raise PipelineError(
            f"No prepared dataset at {folder}. Run: python -m pipeline.prepare --dataset {folder.name} "
            "(or the folder or CSV of your images)."
        )
    rows, several = _read_labelled(path, required=("path", "split"))
    cells = [names_in(row["labels"]) if several else [row["label"]] for row in rows]
    classes = tuple(sorted({name for cell in cells for name in cell}))
    return Manifest(
        folder,
        tuple(row["path"] for row in rows),
        _numbers(cells, classes, several),
        tuple(row["split"] for row in rows),
        classes,
        {name: tuple(row[name] for row in rows) for name in (rows[0] if rows else ()) if name not in OWN},
    )


def demand_one_label(manifest: Manifest) -> None:
    """Refuse a dataset of several labels an image where one is learnt."""
    if manifest.labels.ndim == 2:
        raise PipelineError(
            f"The images of {manifest.root} have several labels each, which an SVM on frozen codes alone can learn: "
            "python -m pipeline.extract, then python -m pipeline.classify --model svm."
        )


def names_in(cell: str) -> list[str]:
    """Return the classes that a cell of a CSV names, with semicolons between them."""
    return [name for name in map(str.strip, cell.split(";")) if name]


def _numbers(cells: Sequence[Sequence[str]], classes: Sequence[str], several: bool) -> np.ndarray:
    """Return labels (n,), or (n, n_classes) of 0 and 1 where there may be several."""
    index = {name: number for number, name in enumerate(classes)}
    if not several:
        return np.array([index[name] for (name,) in cells], dtype=np.int64)
    labels = np.zeros((len(cells), len(classes)), np.uint8)
    for row, cell in enumerate(cells):
        labels[row, [index[name] for name in cell]] = 1
    return labels


def write_manifest(folder: Path, listed: Sequence[Listed]) -> None:
    """Write `manifest.csv`: rows sorted by split, class and name; paths relative where they lie in `folder`."""
    extra = list(dict.fromkeys(name for image in listed for name in image.columns))
    label = "labels" if any(image.several for image in listed) else "label"
    ordered = sorted(listed, key=lambda i: (SPLITS.index(i.split or ""), i.label, _stored(i.path, folder)))
    rows = [(_stored(i.path, folder), i.label, i.split, *(i.columns.get(name, "") for name in extra)) for i in ordered]
    write_csv(folder / MANIFEST, ("path", label, "split", *extra), rows)


def _stored(path: Path, folder: Path) -> str:
    absolute, root = path.absolute(), folder.absolute()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file beside `path` and move it in, so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", **UTF8) as file:  # type: ignore[call-overload]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    partial.replace(path)


def _read_labelled(path: Path, required: Sequence[str]) -> tuple[list[dict[str, str]], bool]:
    """Return the lines of a CSV with a column `label`, or `labels`, and whether it is the latter."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        several = "labels" in names
        for name in (*required, "labels" if several else "label"):
            if name not in names:
                raise PipelineError(f"{path} lacks the column {name!r}. Its first line must read: path,label[,split].")
        return list(reader), several


def list_csv(path: Path) -> list[Listed]:
    """List the images of a CSV with the columns path, label or labels and, if it likes, split; the rest is kept.

    Paths start at its folder. A column `labels` names any number of classes an image, with semicolons between them.
    """
    rows, several = _read_labelled(path, required=("path",))
    listed = []
    for number, row in enumerate(rows, start=2):
        label = row["labels" if several else "label"]
        if not row["path"] or (not label and not several):
            raise PipelineError(
                f"{path}, line {number}: the path or the label is missing. Fill it in, or drop the line."
            )
        columns = {name: value or "" for name, value in row.items() if name and name not in OWN}
        split = _split_name(row.get("split"), path, number)
        label = ";".join(sorted(set(names_in(label or "")))) if several else label
        listed.append(Listed(path.parent / row["path"], label, split, several, columns))
    if not listed:
        raise PipelineError(f"{path} lists no images. It needs a line path,label for each.")
    given = {image.split is None for image in listed}
    if len(given) > 1:
        raise PipelineError(f"{path}: some lines have a split and some have none. Fill in all of them, or none.")
    return listed


def _split_name(name: str | None, path: Path, line: int) -> str | None:
    if not name:
        return None
    if name.lower() not in SPLIT_NAMES:
        raise PipelineError(f"{path}, line {line}: unknown split {name!r}. Choose from: {', '.join(SPLITS)}.")
    return SPLIT_NAMES[name.lower()]


def list_folder(root: Path) -> list[Listed]:
    """List the images of `<class>/*` (splits left open) or of `train|val|test/<class>/*`.

    Every file below a class folder counts, whatever its name, except hidden ones (`.DS_Store`).
    """
    folders = _subfolders(root)
    train = next((folder for folder in folders if folder.name.lower() == "train"), None)
    if train is None or not _subfolders(train):
        listed = _list_classes(root, split=None)
    else:
        listed = [image for folder in folders for image in _list_classes(folder, _split_of_folder(folder))]
    if not listed:
        raise PipelineError(
            f"{root} holds no images. It must look like {root.name}/<class>/<image> "
            f"or {root.name}/train/<class>/<image>."
        )
    return listed


def _split_of_folder(folder: Path) -> str:
    if folder.name.lower() not in SPLIT_NAMES:
        raise PipelineError(
            f"{folder} stands beside train/ but is no split. Name it one of {', '.join(SPLITS)}, or move it away."
        )
    return SPLIT_NAMES[folder.name.lower()]


def _list_classes(root: Path, split: str | None) -> list[Listed]:
    return [Listed(file, folder.name, split) for folder in _subfolders(root) for file in files_below(folder)]


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_below(folder: Path) -> list[Path]:
    """List all files below a folder, sorted; what is hidden (`.DS_Store`) does not count."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def write_digits(folder: Path) -> list[Listed]:
    """Write scikit-learn's 1,797 handwritten digits (8×8, 17 grey levels) as PNG files by class, and list them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    listed = []
    for number, (grey, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "images" / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey * 255 / 16).round().astype(np.uint8)).save(path)
        listed.append(Listed(path, str(label)))
    return listed


def hold_out(listed: Sequence[Listed]) -> list[Listed]:
    """Let val be the test split where a source has no other; leave the splits open where it has train alone."""
    given = {image.split for image in listed}
    renamed: dict[str | None, str | None] = {"val": "test"} if given == {"train", "val"} else {}
    if given == {"train"}:
        renamed = {"train": None}
    return [replace(image, split=renamed.get(image.split, image.split)) for image in listed]


def open_prepared(folder: Path, test: float, val: float, seed: int) -> Manifest:
    """Read a prepared dataset's manifest; the embedded digits are prepared on the spot if need be."""
    if folder == Path("data", "digits") and not (folder / MANIFEST).exists():
        listed = write_digits(folder)
        digests = [images.digest(image.path.read_bytes()) for image in listed]
        write_manifest(folder, assign_splits(listed, digests, {"test": test, "val": val}, seed))
    return read_manifest(folder)


def assign_splits(
    listed: Sequence[Listed], digests: Sequence[str], shares: dict[str, float], seed: int, group_by: str = ""
) -> list[Listed]:
    """Give each image without a split one, by class: `shares` of each to test and val, the rest to train.

    Copies of the same bytes stay together, so that a split made here never leaks, and so do images with the same
    value in the column `group_by`. Each class keeps at least one image (one group) for training, and gives at least
    one to each split asked for where it has enough.
    """
    rng = np.random.default_rng(seed)
    units = _together(listed, digests, group_by)
    chosen: dict[str, str] = {}
    for label in sorted({image.label for image in listed}):
        unique = sorted({u for image, u in zip(listed, units, strict=True) if image.label == label} - chosen.keys())
        shuffled = [unique[i] for i in rng.permutation(len(unique))]
        for split, share in shares.items():
            count = min(max(round(share * len(unique)), 1), len(shuffled) - 1) if share else 0
            taken, shuffled = shuffled[: max(count, 0)], shuffled[max(count, 0) :]
            chosen |= dict.fromkeys(taken, split)
        chosen |= dict.fromkeys(shuffled, "train")
    return [
        image if image.split else replace(image, split=chosen[unit]) for image, unit in zip(listed, units, strict=True)
    ]


def _together(listed: Sequence[Listed], digests: Sequence[str], group_by: str) -> list[str]:
    """Return for each image what it must not be parted from: its digest, or the first digest of its group.

    A copy that occurs in two groups ties them together.
    """
    if not group_by:
        return list(digests)
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for image, digest in zip(listed, digests, strict=True):
        one, other = sorted((root(f"group {image.columns[group_by]}"), root(f"image {digest}")))
        parents[other] = one
    return [root(f"image {digest}") for digest in digests]


def leaks(listed: Sequence[Listed], digests: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return (digest, split, label, path) of each file whose bytes occur in several splits, copies side by side."""
    splits: dict[str, set[str]] = {}
    for image, digest in zip(listed, digests, strict=True):
        splits.setdefault(digest, set()).add(image.split or "")
    rows = [(d, i.split or "", i.label, str(i.path)) for i, d in zip(listed, digests, strict=True)]
    return sorted(row for row in rows if len(splits[row[0]]) > 1)
