"""Map a function over images in threads: ahead of the consumer, or alternating with it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from pipeline.images.decoding import BadImage

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_threads() -> int:
    """Return the number of decoding threads: the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item | BadImage], threads: int, ahead: int
) -> Iterator[Result | BadImage]:
    """Yield `function(item)` for each item, in order, computed by threads ahead of the consumer.

    A `BadImage` that the function raises is yielded in place of the result, and so is an item that is a `BadImage`.
    At most `ahead` results wait, so memory does not grow with the number of items. (Threads are enough, since image
    decoders release Python's global lock.)
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result | BadImage]] = deque()
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
    function: Callable[[Item], Result], items: Iterable[Item | BadImage], threads: int, batch_size: int
) -> Iterator[Result | BadImage]:
    """Yield the same as `ordered_map`, but let the threads idle while the consumer works on a batch of results.

    This is for a consumer that needs all CPU cores itself: threads that ran at the same time would slow it down by
    more than they save.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(remaining, batch_size)):
            yield from list(pool.map(partial(attempt, function), batch))


def attempt(function: Callable[[Item], Result], item: Item | BadImage) -> Result | BadImage:
    """Return `function(item)`, or the `BadImage` that it raises; an item that is a `BadImage` is returned as it is."""
    try:
        return item if isinstance(item, BadImage) else function(item)
    except BadImage as bad:
        return bad
