"""Extract a dataset in shards, by several workers; write an index by which all commands read them as one file."""

from __future__ import annotations

import shutil
from collections.abc import Container, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pipeline import errors
from pipeline.codes import shards
from pipeline.codes.writer import cache_folder
from pipeline.extraction import runner
from pipeline.extraction.engine import Engine, batch_size_for
from pipeline.extraction.local_workers import LocalWorkers
from pipeline.extraction.ray_workers import RayWorkers
from pipeline.extraction.scheduler import Death, Schedule
from pipeline.extraction.shard_worker import Job, Shard, cut
from pipeline.networks.frozen import FrozenNetwork
from pipeline.progress import ProgressBar

LOCAL, RAY = ENGINES = ("local", "ray")
"""Where workers come from."""


@dataclass(frozen=True)
class Sharding:
    """How a run is shared out.

    count: number of shards; engine: one of `ENGINES`; workers: their number, 0 for what there is; address: of the Ray
    cluster.
    """

    count: int
    engine: str = LOCAL
    workers: int = 0
    address: str = ""


@dataclass
class Tally:
    """What came of the shards so far: images that went through the network, and shards set aside."""

    forwarded: int = 0
    set_aside: list[tuple[Shard, Death]] = field(default_factory=list)


def extract(extraction: runner.Extraction, network: FrozenNetwork, folder: Path, sharding: Sharding) -> None:
    """Write the codes of all images to shards, and their index to `<layer>.h5` in a folder.

    Shards that earlier runs wrote of the same images are kept. Raises PipelineError, with exit code 3, where shards
    are set aside; no index is written then.
    """
    parts = cut(extraction.manifest, sharding.count)
    workers_here = local_count(network, sharding) if sharding.engine == LOCAL else max(sharding.workers, 1)
    job = make_job(extraction, network, folder, sharding, workers_here)
    todo = [shard for shard in parts if not job.is_done(shard)]
    count = sum(len(shard.manifest.paths) for shard in todo)
    job = replace(job, compiler=choose_compiler(extraction, network, job.batch_size, count // workers_here))
    tally = compute(todo, job, network, sharding, workers_here) if todo else Tally()
    extraction.forwarded += tally.forwarded
    if tally.set_aside:
        raise set_aside(tally, len(parts))
    files = {layer: [job.file(shard, layer) for shard in parts] for layer in job.specs}
    extraction.bad |= reasons_of(shards.read_bad(next(iter(files.values()))), set(extraction.manifest.paths))
    extraction.validate_bad()
    for layer, paths in files.items():
        index(folder / f"{layer}.h5", [path.name for path in paths])
    shutil.rmtree(cache_folder(folder) / shards.ATTEMPTS, ignore_errors=True)


def reasons_of(entries: Sequence[str], paths: Container[str]) -> dict[str, str]:
    """Return {path: reason} of entries like "red/00.png: the file is empty"; paths: those that there are."""
    parts = (tuple(entry.split(": ")) for entry in entries)
    cuts = ((": ".join(words[:end]), ": ".join(words[end:])) for words in parts for end in range(1, len(words)))
    return {path: reason for path, reason in cuts if path in paths}


def index(path: Path, names: Sequence[str]) -> None:
    """Write the index of shards, and remove the shards beside them that it does not name."""
    shards.write_index(path, names)
    shards.remove(path, keep=names)


def local_count(network: FrozenNetwork, sharding: Sharding) -> int:
    """Return the number of workers on this machine: as asked, or one for each GPU, or one."""
    gpus = torch.cuda.device_count() if network.mean.device.type == "cuda" else 0
    return sharding.workers or max(gpus, 1)


def make_job(
    extraction: runner.Extraction, network: FrozenNetwork, folder: Path, sharding: Sharding, workers: int
) -> Job:
    """Return what all workers do alike, the compiler apart; what could differ between machines is decided here."""
    size = extraction.batch_size or batch_size_for(network.mean.device, network.transform.size)
    threads = max(1, extraction.threads // workers) if sharding.engine == LOCAL else extraction.threads
    return Job(folder.absolute(), network.specs, sharding.count, size, "no", threads, extraction.compress)


def choose_compiler(extraction: runner.Extraction, network: FrozenNetwork, batch_size: int, count: int) -> str:
    """Return who compiles the network: as asked, or for "auto" the one that the run repays on this machine.

    count: number of images that each worker computes.
    """
    if extraction.compiler != "auto":
        return extraction.compiler
    images = extraction.first_images(network) if count > 3 * batch_size else []
    engine = Engine(network, batch_size, count, whole_batches=True)
    for _ in range(3 if images else 0):
        engine.codes(images[:batch_size])
    extraction.notes += engine.notes
    return engine.compiled_by


def compute(todo: Sequence[Shard], job: Job, network: FrozenNetwork, sharding: Sharding, workers_here: int) -> Tally:
    """Let workers compute shards, and return what came of them."""
    tally = Tally()
    with (
        closing(start_workers(job, network, sharding, min(workers_here, len(todo)))) as workers,
        ProgressBar("extracting", sum(len(shard.manifest.paths) for shard in todo)) as bar,
    ):
        for shard, outcome in Schedule(todo, workers).outcomes():
            bar.update(len(shard.manifest.paths))
            if isinstance(outcome, Death):
                tally.set_aside.append((shard, outcome))
            else:
                tally.forwarded += outcome.forwarded
    return tally


def start_workers(job: Job, network: FrozenNetwork, sharding: Sharding, count: int) -> LocalWorkers | RayWorkers:
    """Return the workers that a run asks for."""
    device = network.mean.device
    if sharding.engine == RAY:
        return RayWorkers(job, sharding.workers and count, str(device), sharding.address)
    gpus = max(torch.cuda.device_count(), 1) if device.type == "cuda" else 0
    return LocalWorkers(job, [f"cuda:{worker % gpus}" if gpus else str(device) for worker in range(count)])


def set_aside(tally: Tally, count: int) -> errors.PipelineError:
    """Return the error that names the shards without codes."""
    shard, death = tally.set_aside[0]
    paths = shard.manifest.paths
    return errors.PipelineError(
        f"{len(tally.set_aside)} of {errors.counted(count, 'shard')} killed every worker that tried them; the first is "
        f"shard {shard.number} ({errors.counted(len(paths), 'image')}, the first is {paths[0]!r}), by {death.reason}. "
        "All others are done: fix or remove the images, and run again.",
        exit_code=3,
    )
