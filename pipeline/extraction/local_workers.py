"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from pipeline.extraction import memory
from pipeline.extraction.scheduler import Death, Mistake
from pipeline.extraction.shard_worker import Extracted, Job, Shard, ShardWorker

SPAWN = multiprocessing.get_context("spawn")
"""How processes start: forked ones cannot use a GPU that this process uses."""


class LocalWorkers:
    """Processes of this machine, as `scheduler.Workers`; devices: one for each."""

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        self.job, self.devices, self.count = job, devices, len(devices)
        self.processes: dict[int, tuple[SpawnProcess, Connection]] = {}
        self.busy: set[int] = set()

    def start(self, worker: int, shard: Shard, /) -> None:
        """Give a shard to a process, which is started if there is none."""
        if worker not in self.processes:
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(
                target=serve, args=(theirs, ShardWorker(self.job, self.devices[worker])), daemon=True
            )
            with interrupts_blocked():
                process.start()
            theirs.close()  # so that ours ends with the process
            self.processes[worker] = process, ours
        self.busy.add(worker)
        with suppress(OSError):  # it has just died, as `wait` will find
            self.processes[worker][1].send(shard)

    def wait(self, seconds: float | None, /) -> list[tuple[int, Extracted | Death | Mistake]]:
        """Return who ended a shard, and how."""
        workers = {self.processes[worker][1]: worker for worker in self.busy}
        ready = wait(list(workers), seconds)
        return [(worker, self._outcome(worker)) for connection, worker in workers.items() if connection in ready]

    def _outcome(self, worker: int) -> Extracted | Death | Mistake:
        process, connection = self.processes[worker]
        self.busy.remove(worker)
        try:
            outcome: Extracted | Death | Mistake = connection.recv()
        except (EOFError, OSError):
            process.join()
            del self.processes[worker]
            return Death(how_ended(process.exitcode))
        return outcome

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End all processes."""
        for process, connection in self.processes.values():
            process.kill()
            process.join()
            connection.close()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Let processes that start here never see Ctrl-C, not even while they import: the one that starts them ends them.

    This one sees it afterwards.
    """
    resource_tracker.ensure_running()  # which unblocks all signals where it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_ended(code: int | None) -> str:
    """Return the exit code of a process as text."""
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}" + (", perhaps for want of memory" if code == -signal.SIGKILL else "")


def serve(connection: Connection, worker: ShardWorker) -> None:
    """Compute the shards that come, in a process that ends with the one that started it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    memory.keep_freed()
    with suppress(EOFError):
        while True:
            connection.send(worker.try_shard(connection.recv()))


def end_with_parent() -> None:
    """End this process once the one that started it is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
