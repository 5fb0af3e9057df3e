"""Threads: results in order, bad images passed on, and no more work ahead than allowed."""

from __future__ import annotations

import time

import pytest

from pipeline.images import decoding, parallel


def test_ordered_map_keeps_order_passes_bad_images_on_and_reads_only_a_little_ahead() -> None:
    taken = []

    def numbers() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    def square(number: int) -> int:
        if number == 3:
            raise decoding.BadImage("three")
        return number**2

    results = parallel.ordered_map(square, numbers(), threads=4, ahead=8)
    assert next(results) == 0
    assert len(taken) <= 9
    rest = list(results)
    assert isinstance(rest[2], decoding.BadImage)
    assert [r for r in rest if isinstance(r, int)] == [n**2 for n in range(1, 100) if n != 3]


def test_ordered_map_lets_other_errors_through() -> None:
    with pytest.raises(ZeroDivisionError):
        list(parallel.ordered_map(lambda number: 1 // number, [1, 0], threads=2, ahead=2))


def test_alternating_map_keeps_order_passes_bad_images_on_and_idles_between_batches() -> None:
    running: list[int] = []

    def square(number: int) -> int:
        running.append(number)
        if number == 5:
            raise decoding.BadImage("five")
        return number**2

    numbers = iter([*range(10), decoding.BadImage("from before"), *range(11, 20)])
    results = parallel.alternating_map(square, numbers, threads=3, batch_size=8)
    assert next(results) == 0 and sorted(running) == list(range(8)), (
        "a batch is complete before its first result is yielded"
    )
    time.sleep(0.05)
    assert len(running) == 8 and next(numbers) == 8, (
        "and nothing of the next batch is read or computed before it is needed"
    )
    rest = list(results)
    assert str(rest[4]) == "five" and rest[:4] == [1, 4, 9, 16] and rest[5:7] == [36, 49]
    assert [str(item) for item in rest[7:9]] == ["81", "from before"] and rest[-1] == 19**2
