"""Figures as PNG files, the same bytes from run to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """Give a matplotlib figure of that size in inches to draw on, and write it to a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    figure.savefig(path, dpi=100, metadata={"Software": None})
