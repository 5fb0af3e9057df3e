"""Figures as PNG files: the same figure gives the same bytes in every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a matplotlib figure of that size in inches to draw on, and write it to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with files.replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100, metadata={"Software": None})
