"""The embedded digits, which are written where they are needed, and prepared on the spot if need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.manifest import ListedImage, Manifest, read_manifest, write_manifest
from pipeline.data.splits import assign_splits
from pipeline.images import decoding
from pipeline.paths import MANIFEST


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
