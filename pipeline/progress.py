"""The progress of long work: a bar on a terminal, a line every 30 seconds elsewhere, nothing with --quiet."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

from pipeline.errors import counted

Item = TypeVar("Item")
logger = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds from one line to the next where there is no terminal."""

REFRESH = 1.0
"""Seconds after which the bar on a terminal shows the time again, however long a single item takes."""


class ProgressBar:
    """Counts items of long work and shows the count on standard error, for as long as it is used as a context.

    A thread shows it, so that a single item that takes minutes is no silence. Work within work is not shown.

    description: what is done, as in "extracting"; total: number of items, None where nobody knows; unit: what an item
    is called.
    """

    shown: ClassVar[ProgressBar | None] = None
    """The one that is shown now."""

    def __init__(self, description: str, total: int | None, unit: str = "image") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.start = 0, time.monotonic()
        self.bar: tqdm[Any] | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Self:
        """Begin to show the count."""
        quiet = logging.getLogger("pipeline").getEffectiveLevel() >= logging.ERROR  # as --quiet sets it
        if quiet or ProgressBar.shown is not None:
            return self
        ProgressBar.shown = self
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                desc=self.description, total=self.total, unit=self.unit, file=sys.stderr, delay=REFRESH, leave=False
            )
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show it no more."""
        if ProgressBar.shown is not self:
            return
        ProgressBar.shown = None
        self.ended.set()
        self.thread.join()
        if self.bar is not None:
            self.bar.close()

    def update(self, count: int = 1) -> None:
        """Count items that are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)

    def _show(self) -> None:
        while not self.ended.wait(INTERVAL if self.bar is None else REFRESH):
            if self.bar is None:
                logger.info("%s", self.line())
            else:
                self.bar.refresh()

    def line(self) -> str:
        """Return the count, the time that has passed, and the time that the rest may take, as text."""
        passed = time.monotonic() - self.start
        if self.total is None:
            return f"{self.description}: {counted(self.done, self.unit)}, {in_words(passed)}"
        line = f"{self.description}: {self.done:,} of {counted(self.total, self.unit)}, {in_words(passed)}"
        left = passed * (self.total - self.done) / self.done if self.done else 0
        return f"{line}, about {in_words(left)} left" if left else line


def track(items: Iterable[Item], description: str, total: int | None, unit: str = "image") -> Iterator[Item]:
    """Yield the items, and show how many are done; the rest is as for `ProgressBar`."""
    with ProgressBar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def in_words(seconds: float) -> str:
    """Return a time as text: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
