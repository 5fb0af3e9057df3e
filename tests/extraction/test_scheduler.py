"""Each task ends once, whichever workers die; what kills all workers is set aside; who is late gets help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.shards import Simulated
from pipeline.errors import PipelineError
from pipeline.extraction.scheduler import Death, Mistake, Schedule


class Watched(Simulated):
    """Workers of a simulated time that count how often each task is given."""

    def __init__(self, count: int, play: Callable[[int], tuple[float, object]]) -> None:
        super().__init__(count, play)
        self.given: Counter[int] = Counter()

    def start(self, worker: int, task: int, /) -> None:
        assert worker not in self.running, "a worker has one task at a time"
        self.given[task] += 1
        super().start(worker, task)


def test_each_task_ends_once_and_what_always_kills_is_set_aside() -> None:
    rng = np.random.default_rng(0)

    def play(task: int) -> tuple[float, object]:
        dies = task == 7 or rng.random() < 0.1
        return rng.uniform(1, 2), Death(f"signal of {task}") if dies else task * 10

    workers = Watched(4, play)
    outcomes = list(Schedule(range(50), workers).outcomes())
    assert sorted(task for task, _ in outcomes) == list(range(50))
    assert [(task, outcome) for task, outcome in outcomes if isinstance(outcome, Death)] == [(7, Death("signal of 7"))]
    assert all(outcome == 10 * task for task, outcome in outcomes if task != 7)
    assert workers.given[7] == 3


def test_a_straggler_is_helped_and_counts_once() -> None:
    seconds = {3: iter([1000.0, 1.0])}
    workers = Watched(2, lambda task: (next(seconds[task]) if task in seconds else 1.0, "done"))
    outcomes = list(Schedule(range(10), workers).outcomes())
    assert len(outcomes) == 10 and workers.given == {task: 1 + (task == 3) for task in range(10)}
    assert workers.time < 30


def test_a_mistake_ends_the_run_and_so_do_workers_that_always_die() -> None:
    with pytest.raises(PipelineError, match="The disk is full"):
        list(Schedule(range(5), Watched(2, lambda task: (1, Mistake("The disk is full.")))).outcomes())
    workers = Watched(2, lambda task: (1, Death("signal SIGILL")))
    with pytest.raises(PipelineError, match="die before any shard is done, the last of them by signal SIGILL"):
        list(Schedule(range(1000), workers).outcomes())
    assert workers.given.total() < 20
