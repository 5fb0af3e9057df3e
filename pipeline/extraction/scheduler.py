"""Give tasks to workers, one at a time each; give a task again where its worker died, and set it aside where all do."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline import errors

TRIES = 3
"""Deaths of workers after which a task is set aside."""

STRAGGLING = 3.0
"""A task that takes this many times the usual time is given to a second worker, where one is idle."""

LOOK_AGAIN = 5.0
"""Seconds after which idle workers look for tasks that take too long."""

Task = TypeVar("Task", contravariant=True)
Result = TypeVar("Result", covariant=True)
AnyTask = TypeVar("AnyTask")


@dataclass(frozen=True)
class Death:
    """How a worker ended that did not end its task: by a signal, without memory, with its machine."""

    reason: str


@dataclass(frozen=True)
class Mistake:
    """Why no worker can do what it was given, in a sentence that says how the user puts it right."""

    message: str


class Workers(Protocol[Task, Result]):
    """Workers by number, from 0 on; each does one task at a time, and a dead one is replaced by its next task."""

    count: int

    def start(self, worker: int, task: Task, /) -> None:
        """Give a task to a worker that has none."""

    def wait(self, seconds: float | None, /) -> Sequence[tuple[int, Result | Death | Mistake]]:
        """Wait until at least one worker has ended its task, at most some seconds; return who did, and how."""

    def now(self) -> float:
        """Return the time in seconds."""


@dataclass
class Schedule(Generic[AnyTask, Result]):
    """The state of a run: which tasks wait, which are being done by whom since when, and which have ended."""

    tasks: Sequence[AnyTask]
    workers: Workers[AnyTask, Result]
    waiting: deque[int] = field(default_factory=deque)
    running: dict[int, tuple[int, float]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    deaths: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def outcomes(self) -> Iterator[tuple[AnyTask, Result | Death]]:
        """Yield each task once: with its result, or with how the last of `TRIES` workers died of it.

        Raises PipelineError for a mistake of the user's, and where workers die and no task is ever done.
        """
        self.waiting.extend(range(len(self.tasks)))
        while len(self.ended) < len(self.tasks):
            self._give()
            is_idle = len(self.running) < self.workers.count
            for worker, outcome in self.workers.wait(LOOK_AGAIN if is_idle else None):
                number, start = self.running.pop(worker)
                if isinstance(outcome, Mistake):
                    raise errors.PipelineError(outcome.message)
                if number in self.ended or (isinstance(outcome, Death) and not self._is_last(number, outcome)):
                    continue
                self.ended.add(number)
                self.seconds.append(self.workers.now() - start)
                yield self.tasks[number], outcome

    def _give(self) -> None:
        """Give each idle worker a task that waits, or one that another worker takes too long for."""
        for worker in range(self.workers.count):
            if worker not in self.running:
                number = self.waiting.popleft() if self.waiting else self._straggler()
                if number is None:
                    return
                self.running[worker] = number, self.workers.now()
                self.workers.start(worker, self.tasks[number])

    def _straggler(self) -> int | None:
        """Return the task that is done by one worker for too long, if there is one."""
        if not self.seconds:
            return None
        limit = self.workers.now() - STRAGGLING * sum(self.seconds) / len(self.seconds)
        doers = Counter(number for number, _ in self.running.values())
        late = [(start, number) for number, start in self.running.values() if start < limit and doers[number] == 1]
        return min(late)[1] if late else None

    def _is_last(self, number: int, death: Death) -> bool:
        """Count a death; return whether the task is set aside, and let it wait again if not."""
        self.deaths[number] += 1
        if not self.ended and self.deaths.total() >= TRIES * max(self.workers.count, TRIES):
            raise errors.PipelineError(
                f"The workers die before any shard is done, the last of them by {death.reason}. Try the same without "
                "--shards, on a few images, to see why."
            )
        if self.deaths[number] >= TRIES:
            return True
        if all(number != other for other, _ in self.running.values()):
            self.waiting.append(number)
        return False
