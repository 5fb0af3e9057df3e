"""A contact sheet: images in rows, the first of each row apart, with a line of text below each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from pipeline.images import decoding, depth
from pipeline.reporting import figures

SIDE = 160
"""Length of the longer side of an image, in pixels."""

LONGEST = 24
"""Number of characters that fit below an image."""

MOST_ROWS = 50
"""Number of rows that a sheet has at most."""


@dataclass(frozen=True)
class SheetImage:
    """An image file, its name and a note below it, and the value that is white in it if it has more than 8 bits."""

    file: Path
    name: str
    note: str = ""
    max_value: float = depth.WHITE


def draw_sheet(path: Path, rows: Sequence[Sequence[SheetImage]]) -> None:
    """Write a PNG file with the images of each row side by side; rows after the first `MOST_ROWS` are left out.

    An image that cannot be read any more leaves its place empty.
    """
    shown = rows[:MOST_ROWS]
    columns = max(map(len, shown))
    with figures.new_figure(path, 1.7 * columns, 2.1 * len(shown)) as figure:
        axes = figure.subplots(len(shown), columns, squeeze=False)
        for line, images in zip(axes, shown, strict=True):
            for place in line:
                place.set_axis_off()
            for place, image in zip(line, images, strict=False):
                place.set_title(f"{shorten(image.name)}\n{image.note}", fontsize=8, y=-0.28, parse_math=False)
                if (thumbnail := read_thumbnail(image)) is not None:
                    place.imshow(thumbnail)


def read_thumbnail(image: SheetImage) -> Image.Image | None:
    """Return an image amid a white square of 160 × 160 pixels, None where the file is gone or gives no image."""
    try:
        thumbnail = decoding.decode(decoding.read_bytes(image.file), 2 * SIDE, image.max_value)
    except decoding.BadImage:
        return None
    return ImageOps.pad(thumbnail, (SIDE, SIDE), Image.Resampling.LANCZOS, color="white")


def shorten(text: str) -> str:
    """Return a text in one line that fits below an image, its end kept where it is too long."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= LONGEST else f"…{line[1 - LONGEST :]}"
