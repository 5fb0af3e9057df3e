"""Workers that are actors of a Ray cluster, or of a Ray that is started on this machine for the run."""

from __future__ import annotations

import time
from typing import Any

from pipeline import errors
from pipeline.extraction.scheduler import Death, Mistake
from pipeline.extraction.shard_worker import Extracted, Job, Shard, ShardWorker

EXTRA = "'cnn-codes[cluster]'"


class RayWorkers:
    """Actors, as `scheduler.Workers`; each has a GPU where they compute on GPUs, or else as many cores as threads.

    count: their number, 0 for one for each GPU, or else for each machine; address: of the cluster, "" for one that is
    started here. All machines need this package, and must see the same folders under the same paths.
    """

    def __init__(self, job: Job, count: int, device: str, address: str) -> None:
        errors.require_packages("For --engine ray", ["ray"], EXTRA)
        import ray  # of an extra

        self.ray: Any = ray
        self.job, self.device = job, device.split(":")[0]
        self.is_own = not ray.is_initialized()
        if self.is_own:
            self._connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(ray.cluster_resources().get("GPU", 0)) if self.device == "cuda" else 0
        self.count = count or gpus or len(nodes)
        most_cores = max(int(node.get("CPU", 1)) for node in nodes)  # an actor that needs more would wait for ever
        needs = {"num_gpus": 1} if gpus else {"num_cpus": min(job.threads, most_cores)}
        self.actor = self.ray.remote(max_restarts=0, max_task_retries=0, **needs)(ShardWorker)
        self.actors: dict[int, Any] = {}
        self.running: dict[Any, int] = {}

    def _connect(self, address: str) -> None:
        try:
            self.ray.init(
                address=address or "local", log_to_driver=False, include_dashboard=False if not address else None
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise errors.PipelineError(
                f"No Ray cluster answers at {address or 'this machine'} ({errors.first_line(error)}). Start one with "
                "ray start --head, and name its address with --address."
            ) from error

    def start(self, worker: int, shard: Shard, /) -> None:
        """Give a shard to an actor, which is started if there is none."""
        if worker not in self.actors:
            self.actors[worker] = self.actor.remote(self.job, self.device)
        self.running[self.actors[worker].try_shard.remote(shard)] = worker

    def wait(self, seconds: float | None, /) -> list[tuple[int, Extracted | Death | Mistake]]:
        """Return who ended a shard, and how."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [
            (worker, self._outcome(worker, reference))
            for reference in ready
            for worker in [self.running.pop(reference)]
        ]

    def _outcome(self, worker: int, reference: Any) -> Extracted | Death | Mistake:
        try:
            outcome: Extracted | Death | Mistake = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            del self.actors[worker]
            return Death(errors.first_line(error))
        return outcome

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End the actors, and the Ray that was started for them."""
        for actor in self.actors.values():
            self.ray.kill(actor)
        if self.is_own:
            self.ray.shutdown()
