"""Small JPEG copies of images for a page, each embedded once, the most wanted first, up to a budget."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.images import decoding, parallel

SIDE = 64
"""Pixels of the longer side."""

QUALITY = 75


@dataclass
class AlbumImage:
    """An image that a page refers to by its number in an album.

    root: the dataset's folder, where `path` starts; label: class number; wish: how much it wants to be seen, the
    smaller the more.
    """

    root: Path
    path: str
    label: int
    split: str
    wish: int


class Album:
    """The images of a page, each once."""

    def __init__(self) -> None:
        self.pictures: list[AlbumImage] = []
        self._numbers: dict[Path, int] = {}

    def add(self, root: Path, path: str, label: int, split: str, wish: int) -> int:
        """Return the number of an image, which is new or known already; of several wishes the strongest counts."""
        file = root / path
        number = self._numbers.setdefault(file, len(self.pictures))
        if number == len(self.pictures):
            self.pictures.append(AlbumImage(root, path, label, split, wish))
        self.pictures[number].wish = min(wish, self.pictures[number].wish)
        return number

    def number(self, root: Path, path: str) -> int | None:
        """Return the number of an image, or None where it is not in the album."""
        return self._numbers.get(root / path)

    def thumbnails(self, budget: int) -> dict[int, str]:
        """Return {number: JPEG in base64} of the most wanted images, `budget` characters in all at most."""
        order = sorted(range(len(self.pictures)), key=lambda number: self.pictures[number].wish)
        files = [self.pictures[number].root / self.pictures[number].path for number in order]
        threads = parallel.default_threads()
        found: dict[int, str] = {}
        for number, small in zip(
            order, parallel.ordered_map(make_thumbnail, files, threads, ahead=4 * threads), strict=False
        ):
            if isinstance(small, decoding.BadImage):
                continue
            budget -= len(small)
            if budget < 0:
                break
            found[number] = small
        return found


def make_thumbnail(file: Path) -> str:
    """Return an image file as a JPEG of at most 64 × 64 pixels, in base64; raise `BadImage` if it is none."""
    image = decoding.decode(decoding.read_bytes(file), enough=2 * SIDE)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
