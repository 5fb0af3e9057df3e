"""Image bytes become (3, H, W) uint8: decode, EXIF orientation, resize, crop; and what makes an image bad."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from pipeline.images import decoding

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads() -> int:
    """Return how many threads decode: the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item | decoding.BadImage], threads: int, ahead: int
) -> Iterator[Result | decoding.BadImage]:
    """Yield `function(item)` for each item, in order, from threads; a `BadImage` it raises is yielded in its place.

    An item that is a `BadImage` already is passed on.

    At most `ahead` results wait, so memory does not grow with the number of items. (Decoders release Python's
    lock, so threads suffice.)
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result | decoding.BadImage]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(attempt, function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def alternating_map(
    function: Callable[[Item], Result], items: Iterable[Item | decoding.BadImage], threads: int, at_once: int
) -> Iterator[Result | decoding.BadImage]:
    """Yield what `ordered_map` does, but let the threads rest between one `at_once` items and the next.

    For a caller that needs all cores itself in between: threads beside it would make it wait longer than they take.
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(rest, at_once)):
            yield from list(pool.map(partial(attempt, function), some))


def attempt(function: Callable[[Item], Result], item: Item | decoding.BadImage) -> Result | decoding.BadImage:
    """Return `function(item)`, or the `BadImage` that it raises; an item that is one already is passed on."""
    try:
        return item if isinstance(item, decoding.BadImage) else function(item)
    except decoding.BadImage as bad:
        return bad
