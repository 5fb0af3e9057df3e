"""Measure what shards cost and what they survive: overhead of a shard, a simulated cluster, two workers, kills."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout, suppress
from io import StringIO
from itertools import repeat
from pathlib import Path

import numpy as np

from benchmarks.finetune import write_photos
from pipeline.codes import reader, shards
from pipeline.codes.writer import CodesWriter
from pipeline.command_line import run_command
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.extraction import runner
from pipeline.extraction.local_workers import LocalWorkers
from pipeline.extraction.scheduler import Death, Schedule
from pipeline.extraction.shard_worker import Extracted, Job, Shard, cut
from pipeline.networks.frozen import FrozenNetwork
from pipeline.texts import Texts

Figures = dict[str, object]

WIDTH = 8
"""Numbers per made-up code."""


class Simulated:
    """Workers of a simulated time; play: returns the seconds that a task takes this time, and how it ends."""

    def __init__(self, count: int, play: Callable[[int], tuple[float, object]]) -> None:
        self.count, self.play, self.time = count, play, 0.0
        self.running: dict[int, tuple[float, object]] = {}

    def start(self, worker: int, task: int, /) -> None:
        """Begin a task."""
        seconds, outcome = self.play(task)
        self.running[worker] = self.time + seconds, outcome

    def wait(self, seconds: float | None, /) -> list[tuple[int, object]]:
        """Let the time pass until a task ends."""
        worker = min(self.running, key=lambda number: self.running[number][0])
        end, outcome = self.running[worker]
        if seconds is not None and end > self.time + seconds:
            self.time += seconds
            return []
        self.time = end
        del self.running[worker]
        return [(worker, outcome)]

    def now(self) -> float:
        """Return the simulated time."""
        return self.time


def simulate(images: int = 10**8, n_shards: int = 10_000, workers: int = 64, failures: float = 0.01) -> Figures:
    """Return the time of a simulated run over the ideal one.

    Each shard takes 10 ms an image, a tenth more or less by its images, and once in a hundred times three times as
    long, as on a slow disk; a worker that fails does so at a random moment, and needs half a minute to be there again.
    """
    rng = np.random.default_rng(0)
    usual = 0.01 * images / n_shards * rng.uniform(0.9, 1.1, n_shards)

    def play(task: int) -> tuple[float, int | Death]:
        seconds = usual[task] * (3 if rng.random() < 0.01 else 1)
        fails = rng.random() < failures
        return (30 + rng.random() * seconds, Death("simulated")) if fails else (seconds, task)

    simulated = Simulated(workers, play)
    ended = list(Schedule(range(n_shards), simulated).outcomes())
    assert len(ended) == n_shards  # noqa: S101 - a benchmark may fail
    return {"makespan_over_ideal": round(simulated.time / (usual.sum() / workers), 4), "days": simulated.time / 86400}


class MadeUp:
    """A worker in this process that writes made-up codes, without images or a network; its own time is counted."""

    count = 1

    def __init__(self, job: Job) -> None:
        self.job, self.seconds = job, 0.0

    def start(self, worker: int, shard: Shard, /) -> None:
        """Write the file of a shard."""
        start = time.perf_counter()
        (layer, spec), *_ = self.job.specs.items()
        with CodesWriter(self.job.file(shard, layer), spec, WIDTH, runner.metadata_of(shard.manifest)) as writer:
            count = len(shard.manifest.paths)
            writer.write(range(count), np.ones((count, WIDTH), np.float32), shard.manifest.digests)
            writer.commit([])
        self.seconds += time.perf_counter() - start

    def wait(self, seconds: float | None, /) -> list[tuple[int, Extracted]]:
        """Return that it is done."""
        return [(0, Extracted(0))]

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()


def measure_overhead(n: int = 1_000_000, n_shards: int = 1_000) -> Figures:
    """Return what a run over made-up images costs the driver, the workers' own time apart; in the working folder."""
    network = FrozenNetwork("tinyvgg", ["fc7"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    digests = Texts.of(f"{row:064x}" for row in range(n))
    paths = Texts.of(f"class-{row % 100:02}/{row:09}.jpg" for row in range(n))
    splits, classes = Texts.of(repeat("train", n)), tuple(f"{k:02}" for k in range(100))
    manifest = Manifest(Path("data"), paths, np.arange(n) % 100, splits, classes, digests)
    listed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    job = Job(Path("features").absolute(), network.specs, n_shards, 32, "no", 1, False)
    parts = cut(manifest, n_shards)
    cut_at = time.perf_counter()
    worker = MadeUp(job)
    for _ in Schedule([shard for shard in parts if not job.is_done(shard)], worker).outcomes():
        pass
    scheduled = time.perf_counter()
    index = Path("features/fc7.h5")
    shards.write_index(index, [job.file(shard, "fc7").name for shard in parts])
    indexed = time.perf_counter()
    assert len(reader.read_index(index, {}).paths) == n  # noqa: S101
    return {
        "cut_s": round(cut_at - start, 2),
        "schedule_ms_per_shard": round(1000 * (scheduled - cut_at - worker.seconds) / n_shards, 2),
        "index_ms_per_shard": round(1000 * (indexed - scheduled) / n_shards, 2),
        "read_metadata_s": round(time.perf_counter() - indexed, 2),
        "manifest_MB": round((listed - before) / 1024),
        "run_MB": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - listed) / 1024),
    }


COUNTING = """
import hashlib, os, sys, time
from pipeline.command_line import run_command
from pipeline.extraction.engine import Engine

launch, log = Engine.launch, os.open("forwards", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def counted(self, images):
    names = (hashlib.sha256(image.tobytes()).hexdigest() for image in images)
    os.write(log, "".join(f"{os.getpid()} {name}\\n" for name in names).encode())
    time.sleep(float(os.environ.get("SECONDS_PER_BATCH", "0")))
    return launch(self, images)

Engine.launch = counted
if __name__ == "__main__":
    sys.exit(run_command("extract", sys.argv[1:]))
"""
"""Extracts, as slowly as asked, and notes which process computes which image, in spawned workers too."""

FLAGS = (
    "--dataset",
    "photos",
    "--layer",
    "fc7",
    "--precision",
    "fp32",
    "--compile",
    "no",
    "--batch-size",
    "4",
    "--decoder",
    "pillow",
)


KILLED_SHARDS = 24
"""Into how many shards the images are cut whose workers are killed: one whose workers die thrice is set aside."""


def quietly(*command: str) -> None:
    """Run a command in this process; end where it fails."""
    with redirect_stdout(StringIO()):
        code = run_command(command[0], [*command[1:], "--quiet"])
    if code:
        raise SystemExit(f"{command} ended with {code}")


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the workers of a driver."""
    with suppress(OSError):
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return []


def computed() -> list[tuple[int, str]]:
    """Return each image that has gone through a network, by the process that computed it."""
    lines = Path("forwards").read_text().splitlines() if Path("forwards").exists() else []
    return [(int(worker), image) for worker, image in map(str.split, lines)]


def kill_at_random(command: Sequence[str], victims: Sequence[str], images: int) -> list[list[int]]:
    """Run a command until it has ended; kill a worker or the command itself as often as asked.

    The moments are random numbers of images after the one before. Returns the workers that died, by kill.
    """
    rng = np.random.default_rng(0)
    deaths: list[list[int]] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    for victim in rng.permutation(victims):
        goal = len(computed()) + int(rng.integers(1, images // len(victims)))
        while len(computed()) < goal or not (workers := children(process)):
            if process.poll() is not None:
                raise SystemExit(f"The run ended before kill {len(deaths) + 1}: take more --images.")
            time.sleep(0.01)
        killed = [int(rng.choice(workers))] if victim == "worker" else workers
        os.kill(killed[0] if victim == "worker" else process.pid, signal.SIGKILL)
        deaths.append(killed)
        if victim == "driver":
            process.wait()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    if process.wait():
        raise SystemExit(f"The last run ended with status {process.returncode}.")
    return deaths


def computed_again(deaths: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Return how many images were computed again after each kill, and how many that no dead worker had computed."""
    kills = {worker: number for number, killed in enumerate(deaths) for worker in killed}
    counts, others, last = [0] * len(deaths), 0, dict[str, int]()
    for worker, image in computed():
        if image in last and last[image] in kills:
            counts[kills[last[image]]] += 1
        elif image in last:
            others += 1
        last[image] = worker
    return counts, others


def measure_kills(images: int, workers_killed: int, drivers_killed: int) -> Figures:
    """Kill workers and drivers at random moments; return which rows are the same, and how many were computed again."""
    write_photos(Path("photos"), images)
    quietly("prepare", "--dataset", "photos")
    quietly("extract", *FLAGS)
    one = reader.read(Path("features/photos/tinyvgg/fc7.h5"), {})
    shutil.rmtree("features")
    Path("script.py").write_text(COUNTING)
    command = [sys.executable, "script.py", *FLAGS, "--shards", str(KILLED_SHARDS), "--workers", "2", "--quiet"]
    os.environ |= {"SECONDS_PER_BATCH": "0.25"}  # so that all kills fall before the end
    victims = ["worker"] * workers_killed + ["driver"] * drivers_killed
    deaths = kill_at_random(command, victims, images)
    whole = reader.read(Path("features/photos/tinyvgg/fc7.h5"), {})
    codes = dict(zip(whole.paths, whole.values, strict=True))
    same = sum(np.array_equal(codes[path], code) for path, code in zip(one.paths, one.values, strict=True))
    done, (again, others) = len(computed()), computed_again(deaths)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {
        "killed": {victim: victims.count(victim) for victim in ("worker", "driver")},
        "workers_that_died": sum(map(len, deaths)),
        "images": images,
        "largest_shard": max(
            len(shard.manifest.paths) for shard in cut(read_manifest(Path("data/photos")), KILLED_SHARDS)
        ),
        "same_rows": same,
        "computed_again": done - images,
        "again_by_kill": again,
        "again_by_late_shards": others,
        "third_run_forwards": len(computed()) - done,
    }


def measure_workers(images: int, backbone: str, layer: str) -> Figures:
    """Return the images/s of one worker and of two with a thread each, and of one with two threads, in one run."""
    write_photos(Path("photos"), images)
    quietly("prepare", "--dataset", "photos")
    network, rates = FrozenNetwork(backbone, [layer]), {}
    parts = cut(read_manifest(Path("data/photos")), 16)
    for workers, threads in ((1, 1), (2, 1), (1, 2)):
        folder = Path(f"features-{workers}-{threads}").absolute()
        job = Job(folder, network.specs, 16, 16, "no", threads, False)
        rates[f"{workers} x {threads}"] = rate(job, parts, workers)
    two_over_one = rates["2 x 1"]["images_per_second"] / rates["1 x 1"]["images_per_second"]
    return {"rates": rates, "two_over_one": round(two_over_one, 2)}


def rate(job: Job, parts: Sequence[Shard], count: int) -> dict[str, float]:
    """Return the images/s of some workers, from when each has done one shard, and the time of CPUs that these take."""
    done, begin, busy = 0, 0.0, 0.0
    with closing(LocalWorkers(job, ["cpu"] * count)) as workers:
        for number, (shard, _) in enumerate(Schedule(parts, workers).outcomes(), start=1):
            done += len(shard.manifest.paths) if number > count else 0
            if number == count:
                begin, busy = time.perf_counter(), cpu_seconds(workers)
        seconds, busy = time.perf_counter() - begin, cpu_seconds(workers) - busy
    return {
        "images_per_second": round(done / seconds, 1),
        "cpu_ms_per_image": round(1000 * busy / done, 2),
        "busy_cpus": round(busy / seconds, 2),
    }


def cpu_seconds(workers: LocalWorkers) -> float:
    """Return the time that all threads of some workers have had a CPU for."""
    times = [Path(f"/proc/{process.pid}/stat").read_text().split() for process, _ in workers.processes.values()]
    return sum(int(user) + int(system) for *_, user, system in (line[:15] for line in times)) / os.sysconf("SC_CLK_TCK")


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "simulate": lambda options: simulate(),
    "overhead": lambda options: measure_overhead(options.n, options.shards),
    "workers": lambda options: measure_workers(options.images, options.backbone, options.layer),
    "kills": lambda options: measure_kills(options.images, options.workers_killed, options.drivers_killed),
}


def main() -> None:
    """Run some parts in a temporary folder, and print their figures as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--n", type=int, default=1_000_000, help="made-up images of overhead (default: 1000000)")
    parser.add_argument("--shards", type=int, default=1_000, help="their shards (default: 1000)")
    parser.add_argument("--images", type=int, default=600, help="images of kills and of workers (default: 600)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="of workers (default: efficientnet_lite0)")
    parser.add_argument("--layer", default="avgpool", help="of workers (default: avgpool)")
    parser.add_argument("--workers-killed", type=int, default=20, help="(default: 20)")
    parser.add_argument("--drivers-killed", type=int, default=10, help="(default: 10)")
    options = parser.parse_args()
    figures = {}
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            figures[part] = PARTS[part](options)
            print(part, json.dumps(figures[part]), flush=True)
            os.chdir("/")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
