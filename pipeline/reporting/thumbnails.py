"""Thumbnails for a page: small JPEG copies of images, one per image, by priority, up to a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path

from PIL import Image

from pipeline.data.manifest import read_max_value
from pipeline.images import decoding, parallel

SIDE = 64
"""Length of the longer side, in pixels."""

LARGE_SIDE = 192
"""Length of the longer side of the images of the lists, which a click enlarges."""

LARGE_BYTES = 20_000
"""One image is large for each so many bytes of the budget: large ones take about half of it, of photographs."""

QUALITY = 75
"""JPEG quality."""


class Priority(IntEnum):
    """Where an image is shown; thumbnails are made in this order until the budget is spent."""

    LIST = 0
    NEIGHBOUR = 1
    MAP = 2
    CONFUSION = 3
    REST = 4
    CORRECT = 5


@dataclass
class AlbumImage:
    """An image that a page refers to by its number in an album; root: folder of the dataset, where `path` starts."""

    root: Path
    path: str
    label: int
    split: str
    priority: Priority


class Album:
    """The images of a page, each of them once."""

    def __init__(self) -> None:
        self.images: list[AlbumImage] = []
        self._numbers: dict[Path, int] = {}

    def add(self, root: Path, path: str, label: int, split: str, priority: Priority) -> int:
        """Add an image, if it is not in the album yet, and return its number; it keeps its highest priority."""
        file = root / path
        number = self._numbers.setdefault(file, len(self.images))
        if number == len(self.images):
            self.images.append(AlbumImage(root, path, label, split, priority))
        self.images[number].priority = min(priority, self.images[number].priority)
        return number

    def number(self, root: Path, path: str) -> int | None:
        """Return the number of an image, or None if it is not in the album."""
        return self._numbers.get(root / path)

    def thumbnails(self, budget: int) -> dict[int, str]:
        """Return {number: JPEG file in base64} by priority, at most `budget` characters in all."""
        order = sorted(range(len(self.images)), key=lambda number: self.images[number].priority)
        sides = dict.fromkeys([n for n in order if not self.images[n].priority][: budget // LARGE_BYTES], LARGE_SIDE)
        whites = {root: read_max_value(root) for root in {image.root for image in self.images}}
        threads = parallel.default_threads()
        make = partial(self._make, whites, sides)
        results = parallel.ordered_map(make, order, threads, ahead=4 * threads)
        thumbnails: dict[int, str] = {}
        for number, thumbnail in zip(order, results, strict=False):
            if isinstance(thumbnail, decoding.BadImage):
                continue
            budget -= len(thumbnail)
            if budget < 0:
                break
            thumbnails[number] = thumbnail
        return thumbnails

    def _make(self, whites: Mapping[Path, float], sides: Mapping[int, int], number: int) -> str:
        image = self.images[number]
        return make_thumbnail(image.root / image.path, whites[image.root], sides.get(number, SIDE))


def make_thumbnail(file: Path, max_value: float, side: int = SIDE) -> str:
    """Return an image as a JPEG file in base64; raise `BadImage` if it cannot be read.

    max_value: the value that is white in images of more than 8 bits; side: length of the longer side at most, in
    pixels.
    """
    image = decoding.decode(decoding.read_bytes(file), 2 * side, max_value)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
