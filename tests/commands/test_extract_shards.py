"""extract --shards: the same codes as one process writes, whoever is killed; nothing lost, nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT, Outcome, write_photos
from helpers import FC7, count_forwards, mistake

from benchmarks.shards import COUNTING, children, computed
from pipeline.codes import reader
from pipeline.extraction import local_workers, sharded
from pipeline.extraction.scheduler import Death, Mistake
from pipeline.extraction.shard_worker import Extracted, Job, Shard, ShardWorker

Run = Callable[..., Outcome]
PLAIN = ("--dataset", "photos", "--layer", "fc7", "--batch-size", 4, "--precision", "fp32", "--compile", "no")
FLAGS = (*PLAIN, "--shards", 7)
SHARDS, KEPT = Path("features/photos/tinyvgg/fc7.shards"), Path("features/photos/.cache/tinyvgg/fc7.shards")


class Here:
    """A worker in this process, so that a test does not wait until another one has imported torch."""

    count = 1

    def __init__(self, job: Job, devices: list[str]) -> None:
        self.worker, self.shard = ShardWorker(job, devices[0]), Shard.__new__(Shard)

    def start(self, worker: int, shard: Shard, /) -> None:
        self.shard = shard

    def wait(self, seconds: float | None, /) -> list[tuple[int, Extracted | Death | Mistake]]:
        return [(0, self.worker.try_shard(self.shard))]

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        pass


@pytest.fixture
def prepared(run: Run, photos: Path) -> Path:
    """A prepared dataset of 36 photos, and their codes as one process writes them, in one.h5."""
    run("prepare", "--dataset", photos)
    assert run("extract", *PLAIN).code == 0
    FC7.rename("one.h5")
    shutil.rmtree("features")
    return photos


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is this process."""
    monkeypatch.setattr(sharded, "LocalWorkers", Here)


def assert_same_codes() -> None:
    """The shards hold the rows of one.h5, each once, bit for bit."""
    one, whole = reader.read(Path("one.h5"), {}), reader.read(FC7, {})
    assert sorted(one.paths) == sorted(whole.paths)
    order = [whole.paths.index(path) for path in one.paths]
    np.testing.assert_array_equal(one.values, whole.values[order])
    assert one.digests == tuple(whole.digests[row] for row in order)
    assert one.label_names() == [whole.label_names()[row] for row in order]


def test_what_did_not_change_is_kept(run: Run, prepared: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = count_forwards(monkeypatch)

    def again(*flags: object) -> int:
        forwards.clear()
        outcome = run("extract", *(flags or FLAGS))
        assert outcome.code == 0, outcome.err
        assert f"{sum(forwards)} image{'' if sum(forwards) == 1 else 's'} went through" in outcome.out
        return sum(forwards)

    assert again() == 36
    assert_same_codes()
    assert again() == 0
    names = sorted(path.name for path in SHARDS.iterdir())
    shutil.rmtree(FC7.parent)  # as DVC does before it runs the stage
    assert again() == 0 and sorted(path.name for path in SHARDS.iterdir()) == names
    rows = {path.name: len(reader.read(path, {}).paths) for path in SHARDS.iterdir()}
    for folder in (SHARDS, KEPT):
        (folder / names[1]).unlink()
    shutil.copyfile(SHARDS / names[3], "whole")
    for folder in (SHARDS, KEPT):
        (folder / names[3]).unlink()
        (folder / names[3]).write_bytes(Path("whole").read_bytes()[:-100])
    with h5py.File(SHARDS / names[0], "r+") as file:  # and so that in the cache, which is the same file
        file["values"][0, 0] += 1
    (SHARDS / "notes.txt").touch()
    assert again() == rows[names[1]] + rows[names[3]] + 1
    assert_same_codes()
    (SHARDS / "notes.txt").unlink()  # a file of somebody else is left alone

    write_photos(prepared, {"violet": 2}, seed=5)
    (prepared / "red" / "00.png").rename(prepared / "green" / "renamed.png")
    (prepared / "red" / "05.png").write_bytes(b"")
    run("prepare", "--dataset", prepared, "--seed", 0)
    mistake(run("classify", "--dataset", "photos"), "Extract again", "--shards 7")
    assert again() in (2, 3), "all have other labels now, two are new, and one may be in another shard: by its path"
    assert reader.read_index(FC7, {}).classes == ("blue", "green", "red", "violet")
    assert len(list(SHARDS.iterdir())) == len(list(KEPT.iterdir())) == 7
    assert run("verify", FC7).code == 0
    assert again(*(flag for flag in FLAGS if flag not in ("--precision", "fp32"))) == 0, "auto takes what is there"
    assert run("cache").code == 0 and "shard-00003-of-00007" in run("cache").out
    assert run("cache", "--prune").code == 0 and not list(KEPT.iterdir())
    assert again(*PLAIN) == 37 and not SHARDS.exists(), "one file takes the place of the shards"


def test_every_command_takes_shards(run: Run, prepared: Path, here: None) -> None:
    assert run("extract", *FLAGS).code == 0
    assert run("classify", "--dataset", "photos", "--folds", 2).code == 0
    assert run("evaluate", "--dataset", "photos").code == 0
    assert run("report").code == 0
    assert run("export", "--dataset", "photos", "--codes", "h5").code == 0
    FC7.unlink()
    Path("exports/photos/tinyvgg/fc7.h5").rename(FC7)
    assert_same_codes()
    assert run("verify", FC7).code == 0 and run("extract", *FLAGS).code == 0
    assert run("similar", prepared / "red" / "00.png", "--dataset", "photos").code == 0
    (SHARDS / sorted(path.name for path in SHARDS.iterdir())[2]).unlink()
    for command in (("classify",), ("evaluate",), ("export", "--codes", "npy"), ("verify", FC7)):
        given = ("--dataset", "photos") if command[0] != "verify" else ()
        mistake(run(*command, *given), "1 cannot be found", "Extract again")


def test_bad_images_and_more_shards_than_images(run: Run, photos: Path, here: None) -> None:
    run("prepare", "--dataset", photos)
    before = (photos / "red" / "03.png").read_bytes()
    (photos / "red" / "03.png").write_bytes(b"")
    (photos / "red" / "05: no.png").write_bytes(b"")
    outcome = run("extract", *PLAIN, "--shards", 60)
    assert outcome.code == 0 and "red/03.png': the file is empty" in outcome.out, outcome
    assert len(reader.read(FC7, {}).paths) == 35 and "35 × 1024, 1 image skipped" in outcome.out
    FC7.unlink()
    mistake(run("extract", *FLAGS, "--max-bad", 0.01), "1 of the 36 images cannot be read", "--max-bad")
    assert not FC7.exists()
    (photos / "red" / "03.png").write_bytes(before)
    assert "1 image went through" in run("extract", *FLAGS).out and len(reader.read(FC7, {}).paths) == 36
    mistake(run("extract", *PLAIN, "--workers", 2), "--workers is for codes in several files", "--shards")


def test_ctrl_c_is_not_for_workers_even_while_they_start() -> None:
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with local_workers.interrupts_blocked():
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


class Fatal(Here):
    """A worker that dies of one image."""

    def wait(self, seconds: float | None, /) -> list[tuple[int, Extracted | Death | Mistake]]:
        dies = any(path.endswith("red/07.png") for path in self.shard.manifest.paths)
        return [(0, Death("signal SIGSEGV"))] if dies else super().wait(seconds)


def test_a_shard_that_kills_its_workers_is_set_aside(run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "LocalWorkers", Fatal)
    outcome = run("extract", *FLAGS)
    assert outcome.code == 3 and "signal SIGSEGV" in outcome.err and "1 of 7 shards killed every worker" in outcome.err
    assert len(list(SHARDS.iterdir())) == 6 and not FC7.exists()
    monkeypatch.setattr(sharded, "LocalWorkers", Here)
    assert run("extract", *FLAGS).code == 0
    assert_same_codes()


def test_a_whole_file_that_a_dead_worker_did_not_move_is_taken(
    run: Run, prepared: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = iter(range(7))

    def die_once(worker: ShardWorker) -> None:
        if next(deaths, None) is not None:
            raise RuntimeError("a worker dies before it moves its file")

    monkeypatch.setattr(ShardWorker, "_validate_batches", die_once)
    forwards = count_forwards(monkeypatch)
    assert run("extract", *FLAGS).code == 0
    assert sum(forwards) == 36 and next(deaths, None) is None
    assert_same_codes()


def start(*flags: object) -> subprocess.Popen[str]:
    """Start to extract in processes of their own."""
    Path("script.py").write_text(COUNTING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py", *map(str, (*FLAGS, *flags))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_forwards(process: subprocess.Popen[str], count: int) -> None:
    """Wait until some images have gone through the network."""
    while len(computed()) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_workers_and_drivers_cost_a_batch_each(
    run: Run, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", {"red": 60, "green": 60, "blue": 60})
    run("prepare", "--dataset", tmp_path / "photos")
    assert run("extract", *PLAIN).code == 0
    FC7.rename("one.h5")
    shutil.rmtree("features")
    process = start("--workers", 2)
    wait_for_forwards(process, 20)
    os.kill(children(process)[0], signal.SIGKILL)
    wait_for_forwards(process, 60)
    workers = children(process)
    process.kill()
    process.communicate()
    for worker in workers:  # they end with their driver
        with suppress(FileNotFoundError, ProcessLookupError):
            while Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
                time.sleep(0.01)
    assert not FC7.exists()
    forwards = count_forwards(monkeypatch)
    assert run("extract", *FLAGS).code == 0
    assert_same_codes()
    total = sum(forwards) + len(computed())
    assert 180 <= total <= 180 + 4 * 3, "three workers were killed, in a batch of 4 each"
    assert not (KEPT.parent / "attempts").exists()


@pytest.fixture
def cluster() -> Iterator[object]:
    """A Ray of two cores on this machine."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_actors_of_ray_do_the_same(run: Run, prepared: Path, cluster: object) -> None:
    assert run("extract", *FLAGS, "--engine", "ray", "--workers", 1).code == 0
    assert_same_codes()


def test_ray_is_an_extra(run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.errors.missing_packages", list)
    mistake(run("extract", *FLAGS, "--engine", "ray"), "ray must be installed: pip install 'cnn-codes[cluster]'")
