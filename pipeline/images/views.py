"""Several views of an image, whose codes are kept side by side: which part of it each shows, turned or mirrored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline import errors

MAX_VIEWS = 256


@dataclass(frozen=True)
class View:
    """One way to show an image.

    turn: degrees counterclockwise about the centre; box: left, top, right and bottom of the part shown, as shares of
    the image; anchor: where in that part the crop lies, (0, 0) at the upper left, (1, 1) at the lower right, the
    centre in between; squeezed: the part is resized to the crop's size, whatever its proportions; mirrored: left and
    right exchanged at last.
    """

    turn: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    anchor: tuple[float, float] = (0.5, 0.5)
    squeezed: bool = False
    mirrored: bool = False


PLAIN = View()
ANCHORS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
"""The four corners and the centre."""


def _mirrored(views: list[View]) -> list[View]:
    return views + [replace(view, mirrored=True) for view in views]


def _part(across: float, down: float, side: float) -> View:
    left, top = across * (1 - side), down * (1 - side)
    return View(box=(left, top, left + side, top + side))


def _cnnaug() -> list[View]:
    """Return the image, its corners and centre of 4/9 of its area, the image turned by ±30°, and all of that mirrored.

    Razavian et al., "CNN features off-the-shelf: an astounding baseline for recognition" (CVPR workshops 2014).
    """
    return _mirrored([PLAIN, *(_part(*anchor, 2 / 3) for anchor in ANCHORS), View(turn=30), View(turn=-30)])


VIEWS: dict[str, Callable[[], list[View]]] = {
    "one": lambda: [PLAIN],
    "flips": lambda: _mirrored([PLAIN]),
    "five": lambda: [View(anchor=anchor) for anchor in ANCHORS],
    "ten": lambda: _mirrored([View(anchor=anchor) for anchor in ANCHORS]),
    "cnnaug": _cnnaug,
}
"""The views by name: the centre; with its mirror image; corners and centre (Krizhevsky et al., NIPS 2012: ten, with
their mirror images); the 16 of the off-the-shelf recipe."""

CROPPING = ("five", "ten")
"""Those whose views differ only where `resize` is larger than the crop."""


def count(name: str) -> int:
    """Return how many views a name stands for; random:K and random:K:SEED are K draws."""
    if drawn := re.fullmatch(r"random:(\d+)(:\d+)?", name):
        number = int(drawn.group(1))
        if not 1 <= number <= MAX_VIEWS:
            raise errors.PipelineError(
                f"--views {name} draws {number} views an image. Take random:1 to random:{MAX_VIEWS}."
            )
        return number
    if name not in VIEWS:
        raise errors.unknown("views", name, [*VIEWS, "random:K", "random:K:SEED"])
    return len(VIEWS[name]())


def views_of(name: str, digest: str, size: tuple[int, int]) -> list[View]:
    """Return the views of one image.

    digest: of its bytes, in hex: draws depend on it and on the seed alone, so that they are the same in each run;
    size: its width and height in pixels.
    """
    if name in VIEWS:
        return VIEWS[name]()
    number, seed = [*name.split(":")[1:], "0"][:2]
    rng = np.random.default_rng([int(seed), int(digest[:16], 16)])
    return [_draw(rng, *size) for _ in range(int(number))]


def _draw(rng: np.random.Generator, width: int, height: int) -> View:
    """Draw a view as the usual training recipes do: turned by up to 5°, a part resized, mirrored half of the time.

    The part has 8 to 100% of the area and sides of a ratio between 3:4 and 4:3 (Szegedy et al., "Going deeper with
    convolutions", CVPR 2015), as far as it fits into the image.
    """
    turn, mirrored = rng.uniform(-5, 5), bool(rng.random() < 0.5)
    area, ratio = rng.uniform(0.08, 1) * width * height, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    across, down = min(math.sqrt(area * ratio) / width, 1.0), min(math.sqrt(area / ratio) / height, 1.0)
    left, top = rng.uniform(0, 1 - across), rng.uniform(0, 1 - down)
    return View(turn, (left, top, left + across, top + down), squeezed=True, mirrored=mirrored)
