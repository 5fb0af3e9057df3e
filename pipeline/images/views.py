"""Several views of an image, whose codes are kept side by side: parts of it, rotated or mirrored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline import errors

MAX_VIEWS = 256
"""The largest number of random views per image."""


@dataclass(frozen=True)
class View:
    """One view of an image. The steps are applied in the order of the fields.

    angle: rotation about the centre, in degrees counterclockwise; box: left, top, right and bottom of the part that is
    kept, as fractions of the image's sides; anchor: where the crop lies in that part, from (0, 0) for the upper left
    corner to (1, 1) for the lower right one; stretched: the part is resized to the crop's size, which
    changes its proportions; mirrored: the left and the right side are exchanged.
    """

    angle: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    anchor: tuple[float, float] = (0.5, 0.5)
    stretched: bool = False
    mirrored: bool = False


WHOLE = View()
ANCHORS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
"""The four corners and the centre."""


def _with_mirrored(views: list[View]) -> list[View]:
    return views + [replace(view, mirrored=True) for view in views]


def _part(x: float, y: float, side: float) -> View:
    """Return the view of a part whose sides are a fraction `side` of the image's, at the anchor (x, y)."""
    left, top = x * (1 - side), y * (1 - side)
    return View(box=(left, top, left + side, top + side))


def _cnnaug() -> list[View]:
    """Return the image, five parts of 4/9 of its area, the image rotated by 30° and by -30°, and all of them mirrored.

    Razavian et al., "CNN features off-the-shelf: an astounding baseline for recognition" (CVPR workshops 2014).
    """
    return _with_mirrored([WHOLE, *(_part(*anchor, 2 / 3) for anchor in ANCHORS), View(angle=30), View(angle=-30)])


VIEWS: dict[str, Callable[[], list[View]]] = {
    "one": lambda: [WHOLE],
    "flips": lambda: _with_mirrored([WHOLE]),
    "five": lambda: [View(anchor=anchor) for anchor in ANCHORS],
    "ten": lambda: _with_mirrored([View(anchor=anchor) for anchor in ANCHORS]),
    "cnnaug": _cnnaug,
}
"""The views by name: the centre; the centre and its mirror image; the corners and the centre, and (ten) their mirror
images (Krizhevsky et al., NIPS 2012); the 16 views of the off-the-shelf recipe."""

CROPPING = ("five", "ten")
"""The names whose views differ only where `resize` is larger than the crop."""


def count(name: str) -> int:
    """Return the number of views that a name stands for; random:K and random:K:SEED stand for K random views."""
    if random := re.fullmatch(r"random:(\d+)(:\d+)?", name):
        number = int(random.group(1))
        if not 1 <= number <= MAX_VIEWS:
            raise errors.PipelineError(
                f"--views {name} draws {number} views per image. Take random:1 to random:{MAX_VIEWS}."
            )
        return number
    if name not in VIEWS:
        raise errors.unknown("views", name, [*VIEWS, "random:K", "random:K:SEED"])
    return len(VIEWS[name]())


def views_of(name: str, digest: str, size: tuple[int, int]) -> list[View]:
    """Return the views of one image.

    digest: the SHA-256 of its bytes, in hex: random views depend on it and on the seed alone, so they are the same in
    every run; size: the image's width and height in pixels.
    """
    if name in VIEWS:
        return VIEWS[name]()
    number, seed = [*name.split(":")[1:], "0"][:2]
    rng = np.random.default_rng([int(seed), int(digest[:16], 16)])
    return [_random_view(rng, *size) for _ in range(int(number))]


def _random_view(rng: np.random.Generator, width: int, height: int) -> View:
    """Draw a view as the usual training recipes do: rotated by up to 5°, a part resized, mirrored half of the time.

    The part has 8 to 100% of the area and sides of a ratio between 3:4 and 4:3 (Szegedy et al., "Going deeper with
    convolutions", CVPR 2015), as far as it fits into the image.
    """
    angle, mirrored = rng.uniform(-5, 5), bool(rng.random() < 0.5)
    area, ratio = rng.uniform(0.08, 1) * width * height, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    part_width, part_height = min(math.sqrt(area * ratio) / width, 1.0), min(math.sqrt(area / ratio) / height, 1.0)
    left, top = rng.uniform(0, 1 - part_width), rng.uniform(0, 1 - part_height)
    return View(angle, (left, top, left + part_width, top + part_height), stretched=True, mirrored=mirrored)
