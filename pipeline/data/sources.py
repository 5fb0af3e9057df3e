"""Which images, which labels, which split: the manifest of a dataset, and what it can be made from."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import errors
from pipeline.data.manifest import (
    MANIFEST,
    RESERVED_COLUMNS,
    SPLITS,
    ListedImage,
    Manifest,
    parse_labels,
    read_manifest,
    write_manifest,
)
from pipeline.data.splits import assign_splits
from pipeline.images import decoding

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def list_csv(path: Path) -> list[ListedImage]:
    """List the images of a CSV with the columns path, label or labels and, if it likes, split; the rest is kept.

    Paths start at its folder. A column `labels` names any number of classes an image, with semicolons between them.
    """
    rows, several = read_labelled_csv(path, required=("path",))
    listed = []
    for number, row in enumerate(rows, start=2):
        label = row["labels" if several else "label"]
        if not row["path"] or (not label and not several):
            raise errors.PipelineError(
                f"{path}, line {number}: the path or the label is missing. Fill it in, or drop the line."
            )
        columns = {name: value or "" for name, value in row.items() if name and name not in RESERVED_COLUMNS}
        split = _split_name(row.get("split"), path, number)
        label = ";".join(sorted(set(parse_labels(label or "")))) if several else label
        listed.append(ListedImage(path.parent / row["path"], label, split, several, columns))
    if not listed:
        raise errors.PipelineError(f"{path} lists no images. It needs a line path,label for each.")
    given = {image.split is None for image in listed}
    if len(given) > 1:
        raise errors.PipelineError(f"{path}: some lines have a split and some have none. Fill in all of them, or none.")
    return listed


def read_labelled_csv(path: Path, required: Sequence[str]) -> tuple[list[dict[str, str]], bool]:
    """Return the lines of a CSV with a column `label`, or `labels`, and whether it is the latter."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        multi_label = "labels" in names
        for name in (*required, "labels" if multi_label else "label"):
            if name not in names:
                raise errors.PipelineError(
                    f"{path} lacks the column {name!r}. Its first line must read: path,label[,split]."
                )
        return list(reader), multi_label


def _split_name(name: str | None, path: Path, line: int) -> str | None:
    if not name:
        return None
    if name.lower() not in SPLIT_NAMES:
        raise errors.PipelineError(f"{path}, line {line}: unknown split {name!r}. Choose from: {', '.join(SPLITS)}.")
    return SPLIT_NAMES[name.lower()]


def list_folder(root: Path) -> list[ListedImage]:
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
        raise errors.PipelineError(
            f"{root} holds no images. It must look like {root.name}/<class>/<image> "
            f"or {root.name}/train/<class>/<image>."
        )
    return listed


def _split_of_folder(folder: Path) -> str:
    if folder.name.lower() not in SPLIT_NAMES:
        raise errors.PipelineError(
            f"{folder} stands beside train/ but is no split. Name it one of {', '.join(SPLITS)}, or move it away."
        )
    return SPLIT_NAMES[folder.name.lower()]


def _list_classes(root: Path, split: str | None) -> list[ListedImage]:
    return [ListedImage(file, folder.name, split) for folder in _subfolders(root) for file in files_below(folder)]


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_below(folder: Path) -> list[Path]:
    """List all files below a folder, sorted; what is hidden (`.DS_Store`) does not count."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def write_digits(folder: Path) -> list[ListedImage]:
    """Write scikit-learn's 1,797 handwritten digits (8×8, 17 grey levels) as PNG files by class, and list them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    listed = []
    for number, (grey, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "images" / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey * 255 / 16).round().astype(np.uint8)).save(path)
        listed.append(ListedImage(path, str(label)))
    return listed


def add_digests(images: Sequence[ListedImage]) -> list[ListedImage]:
    """Return the images with the digests of their files."""
    return [replace(image, digest=decoding.read_digest(image.path)) for image in images]


def open_prepared(folder: Path, test: float, val: float, seed: int) -> Manifest:
    """Read a prepared dataset's manifest; the embedded digits are prepared on the spot if need be."""
    if folder == Path("data", "digits") and not (folder / MANIFEST).exists():
        listed = add_digests(write_digits(folder))
        write_manifest(folder, assign_splits(listed, {"test": test, "val": val}, seed))
    return read_manifest(folder)
