"""extract: rows, labels and files belong together; kills, interrupts and full disks lose nothing."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, Outcome, spawn, write_photos
from helpers import FC7, count_forwards, mistake

from pipeline.codes import reader
from pipeline.codes.writer import cache_folder
from pipeline.command_line import run_command
from pipeline.data.manifest import read_manifest
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]


@pytest.fixture
def prepared(run: Run, photos: Path) -> Path:
    """The project's folder with `photos` prepared."""
    assert run("prepare", "--dataset", photos).code == 0
    return photos.parent


def test_the_bare_command_runs_on_a_fresh_machine(run: Run) -> None:
    outcome = run("extract", "--layer", "fc7", "--batch-size", 256)
    assert outcome.code == 0 and "cpu" in outcome.out
    assert reader.read(Path("features/digits/tinyvgg/fc7.h5"), {"backbone": "tinyvgg"}).values.shape == (1797, 1024)


def test_each_row_is_the_code_of_its_file(run: Run, prepared: Path) -> None:
    flags = ("--layer", "pool3", "fc7", "--pool", "max", "--batch-size", 5, "--precision", "fp32")
    assert run("extract", "--dataset", "photos", *flags).code == 0
    manifest = read_manifest(Path("data/photos"))
    network = FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", "max")
    from pipeline.images import transforms

    for layer in ("pool3", "fc7"):
        found = reader.read(FC7.with_name(f"{layer}.h5"), {"layer": layer})
        assert found.paths == manifest.paths and found.splits == manifest.splits and found.classes == manifest.classes
        np.testing.assert_array_equal(found.labels, manifest.labels)
        for row in (0, 7, len(found.paths) - 1):
            image = transforms.load_image(manifest.files()[row], network.transform)
            assert found.digests[row] == hashlib.sha256(manifest.files()[row].read_bytes()).hexdigest()
            np.testing.assert_allclose(found.values[row], network.codes(image[None])[layer][0], rtol=1e-4, atol=1e-5)


def test_one_pass_serves_all_layers(run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_forwards(monkeypatch)
    run("extract", "--dataset", "photos", "--layer", "pool3", "pool4", "fc7", "--batch-size", 10)
    assert sum(seen) == 36


def test_a_dataset_may_be_named_by_its_folder(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos, "--out", "elsewhere/flowers")
    assert run("extract", "--dataset", "elsewhere/flowers", "--layer", "fc7").code == 0
    assert Path("features/flowers/tinyvgg/fc7.h5").exists()


def test_a_torchvision_network_from_a_local_file(run: Run, prepared: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "mine.pth")
    outcome = run(
        "extract", "--dataset", "photos", "--backbone", "resnet18", "--layer", "avgpool", "--weights", "mine.pth"
    )
    assert outcome.code == 0
    assert reader.read(Path("features/photos/resnet18/avgpool.h5"), {"weights": "mine.pth"}).values.shape == (36, 512)


def test_images_gone_bad_since_prepare_are_skipped_by_name(run: Run, prepared: Path, photos: Path) -> None:
    (photos / "red" / "03.png").write_bytes(b"")
    (photos / "blue" / "05.png").unlink()
    outcome = run("extract", "--dataset", "photos", "--layer", "fc7")
    assert outcome.code == 0 and "34 × 1024, 2 images skipped" in outcome.out
    assert "03.png" in outcome.out and "zero bytes" in outcome.out and "No such file" in outcome.out
    found = reader.read(FC7, {})
    assert len(found.paths) == len(found.values) == len(found.labels) == 34
    assert not any(path.endswith("red/03.png") for path in found.paths)
    with h5py.File(FC7) as file:
        assert len(file["bad"]) == 2 and b"zero bytes" in b"".join(file["bad"])


def test_only_bad_images_is_a_mistake(run: Run, prepared: Path, photos: Path) -> None:
    shutil.rmtree(photos)
    flags = ("--dataset", "photos", "--layer", "fc7")
    mistake(run("extract", *flags), "4 of the 36 images", "share of 0.1", "--max-bad")
    mistake(run("extract", *flags, "--max-bad", 1), "None of the 36 images")
    assert not FC7.exists()


def test_list_shows_backbones_and_layers(run: Run) -> None:
    names = run("extract", "--list").out.split()
    assert {"tinyvgg", "vgg16", "alexnet", "resnet50", "wide_resnet50_2", "resnext50_32x4d"} <= set(names)
    table = run("extract", "--list", "vgg16").out
    assert "fc7" in table and "classifier.4" in table and "512×7×7" in table and "4096" in table


def test_every_command_takes_a_backbone_of_timms(run: Run, prepared: Path) -> None:
    address = ("--dataset", "photos", "--backbone", "timm/test_resnet.r160_in1k")
    assert run("extract", *address, "--layer", "layer3", "avgpool", "--weights", "random").code == 0
    flags = (*address, "--layer", "avgpool")
    assert run("classify", *flags, "--grid", "{l2: {C: [1]}}", "--folds", 2).code == 0
    assert run("evaluate", *flags).code == 0
    assert run("predict", *flags, "photos").code == 0
    assert "timm/test_resnet.r160_in1k" in run("report", "--dataset", "photos").out
    codes = Path("features/photos/timm/test_resnet.r160_in1k/avgpool.h5")
    assert "fit the images in data" in run("verify", codes).out
    assert str(codes.parent.parent) in run("cache").out


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--backbone", "resnet51"), ("Unknown backbone 'resnet51'", "resnet50")),
        (("--layer", "fc9"), ("Unknown layer 'fc9' for tinyvgg", "fc7")),
        (("--weights", "best"), ("Unknown weights 'best'", "default")),
        (("--weights", "no.pth"), ("No weights file at no.pth",)),
        (("--pool", "median"), ("--pool is 'median'", "avg")),
        (("--dataset", "nowhere"), ("There is no prepared dataset", "pipeline.prepare")),
        (("--device", "cuda"), ("'cuda' is not here", "cpu")),
    ],
)
def test_unknown_names(run: Run, prepared: Path, flags: tuple[str, str], words: tuple[str, ...]) -> None:
    if flags[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    mistake(run("extract", "--dataset", "photos", *flags), *words)


def test_codes_that_will_not_fit_on_the_disk_are_refused_at_once(
    run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100_000, 1, 99_999))
    mistake(run("extract", "--dataset", "photos", "--layer", "fc7"), "need 0.0 GB", "--out")


def test_a_disk_that_fills_up_leaves_the_old_file(run: Run, prepared: Path) -> None:
    """A limit on the size of files stops the writing where a full disk would."""
    run("extract", "--dataset", "photos", "--layer", "fc7")
    before = FC7.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = spawn(
        "extract", "--dataset", "photos", "--layer", "fc7", "--batch-size", 4, cwd=prepared, preexec_fn=limit
    )
    out, err = process.communicate(timeout=120)
    mistake(Outcome(process.returncode, out, err), "disk is full", "earlier results are untouched")
    assert FC7.read_bytes() == before and [path.name for path in FC7.parent.iterdir()] == ["fc7.h5"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_really_full_disk(run: Run, prepared: Path) -> None:
    disk = prepared / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        (disk / "ballast").write_bytes(b"x" * 100_000)
        script = "import shutil, sys; shutil.disk_usage = lambda folder: shutil._ntuple_diskusage(9**9, 0, 9**9)\n"
        script += "from pipeline.command_line import run_command; sys.exit(run_command('extract', sys.argv[1:]))"
        command = [
            sys.executable,
            "-c",
            script,
            "--dataset",
            "photos",
            "--layer",
            "pool3",
            "--pool",
            "flatten",
            "--out",
            disk / "out",
        ]
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        mistake(Outcome(ended.returncode, ended.stdout, ended.stderr), "disk is full")
        assert not (disk / "out" / "pool3.h5").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def without_override() -> None:
    """Take from root the right to write where the permissions say no."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def test_a_read_only_folder(prepared: Path) -> None:
    locked = prepared / "locked"
    locked.mkdir(mode=0o555)
    flags = ("--dataset", "photos", "--layer", "fc7", "--out", locked / "out")
    process = spawn("extract", *flags, cwd=prepared, preexec_fn=without_override)
    out, err = process.communicate(timeout=120)
    mistake(Outcome(process.returncode, out, err), "no permission", "locked", "--out")


def test_an_interrupt_leaves_the_old_file(run: Run, photos: Path) -> None:
    write_photos(photos, {"red": 150, "green": 150, "blue": 150})
    run("prepare", "--dataset", photos)
    run("extract", "--dataset", "photos", "--layer", "fc7")
    before = FC7.read_bytes()
    flags = ("--dataset", "photos", "--layer", "fc7", "--weights", "random", "--batch-size", 1)
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # it may be ignored in a background
    process = spawn("extract", *flags, cwd=photos.parent, **heeding)
    while not list(cache_folder(FC7.parent).glob("*.partial")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("Interrupted. Earlier results are untouched.\n"), (out, err)
    assert FC7.read_bytes() == before and [path.name for path in FC7.parent.iterdir()] == ["fc7.h5"]


KILLER = """
import os, random, shutil, signal, sys, time
import torch
torch.set_num_threads(1)
import pipeline.extract  # once for all writers
from pipeline.command_line import run_command
from pipeline.extraction.engine import Engine
from pipeline.networks import frozen

kills, kinds, longest = int(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3])
launch, log = Engine.launch, os.open("forwards", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def counted(self, images):
    os.write(log, bytes([len(images)]))
    return launch(self, images)

Engine.launch = counted
rng, killed = random.Random(0), 0
for number in range(kills):
    weights = kinds[number % len(kinds)]
    if len(kinds) > 1:
        shutil.rmtree("features/photos/.cache", ignore_errors=True)  # each starts from scratch, to be killed anywhere
    child = os.fork()
    if child == 0:
        os._exit(run_command("extract", ["--dataset", "photos", "--weights", weights, *sys.argv[4:]]))
    time.sleep(rng.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if os.path.exists("features/photos/tinyvgg/fc7.h5"):
        shutil.copy("features/photos/tinyvgg/fc7.h5", f"after-{number}.h5")
print(killed)
"""
"""Kills writers at random moments; they are forked, so that each moment falls into the work and not into imports."""

KILLED = ("--layer", "fc7", "--batch-size", "4", "--precision", "fp32")
"""How they extract. (A trial of precisions would take the time of most.)"""


def kill(kills: int, kinds: str, longest: float) -> int:
    """Kill writers that have up to `longest` seconds, and return how many were killed before they ended."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLER, str(kills), kinds, str(longest), *KILLED],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return int(ended.stdout.splitlines()[-1])


def undisturbed(*flags: str) -> float:
    """Extract as the writers that are killed do, in one thread: the same sums in the same order; return the seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.monotonic()
    assert run_command("extract", ["--dataset", "photos", *KILLED, *flags]) == 0
    torch.set_num_threads(threads)
    return time.monotonic() - start


def test_kill_9_at_8_random_moments_never_leaves_a_file_that_reads_wrong(run: Run, photos: Path) -> None:
    """Codes of two kinds are written in turn: what stands there after a kill is one of them, whole, or nothing."""
    write_photos(photos, {"red": 40, "green": 40, "blue": 40})
    run("prepare", "--dataset", photos)
    expected, seconds = {}, 0.0
    for weights in ("default", "random"):
        seconds = undisturbed("--weights", weights)
        expected[weights] = reader.read(FC7, {"weights": weights}).values
    assert kill(8, "default,random", min(seconds, 2)) >= 2, "some runs were to be killed before they ended"
    survivors = sorted(Path().glob("after-*.h5"))
    assert len(survivors) == 8, "there was a file before, and there is one after each kill"
    for path in survivors:
        found = reader.read(path, {})
        np.testing.assert_allclose(found.values, expected[found.spec.weights], rtol=1e-4, atol=1e-5)
        assert len(found.paths) == len(found.labels) == 120
    assert run("extract", "--dataset", "photos", "--layer", "fc7").code == 0
    assert [path.name for path in FC7.parent.iterdir()] == ["fc7.h5"]


def test_20_kills_cost_no_more_than_a_batch_each_and_change_nothing(run: Run, photos: Path) -> None:
    write_photos(photos, {"red": 60, "green": 60, "blue": 60})
    run("prepare", "--dataset", photos)
    seconds = undisturbed()
    whole = reader.read(FC7, {})
    shutil.rmtree("features")
    killed = kill(20, "default", min(max(0.5 * seconds, 0.7), 1.5))
    forwarded = sum(Path("forwards").read_bytes())
    completed = 20 - killed
    finished = sorted(Path().glob("after-*.h5"))
    assert killed >= 3 and forwarded >= 180
    # A run that completes is followed by runs that find everything and compute nothing.
    assert forwarded <= 180 + 4 * killed, (forwarded, killed, completed)
    assert finished
    for path in finished:
        found = reader.read(path, {})
        np.testing.assert_array_equal(found.values, whole.values)
        assert (found.paths, found.digests, found.splits) == (whole.paths, whole.digests, whole.splits)


def test_only_what_is_new_is_computed(run: Run, prepared: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--dataset", "photos", "--layer", "fc7")
    forwards = count_forwards(monkeypatch)

    def again(*more: object) -> int:
        forwards.clear()
        assert run("prepare", "--dataset", photos, "--seed", 0).code == 0
        shutil.rmtree(FC7.parent)  # as DVC does before it runs the stage
        assert run("extract", *(more or flags)).code == 0
        manifest = read_manifest(Path("data/photos"))
        found = reader.read(FC7, {})
        assert found.paths == manifest.paths and found.splits == manifest.splits
        for row in range(0, len(found.paths), 5):
            assert found.digests[row] == hashlib.sha256(manifest.file(row).read_bytes()).hexdigest()
        return sum(forwards)

    run("extract", *flags)
    before = reader.read(FC7, {})
    assert again() == 0
    write_photos(photos, {"violet": 10}, seed=5)
    assert again() == 10
    (photos / "red" / "00.png").rename(photos / "red" / "renamed.png")
    shutil.copy(photos / "blue" / "01.png", photos / "blue" / "copy.png")
    assert again() == 0
    shutil.rmtree(photos / "violet")
    (photos / "blue" / "copy.png").unlink()
    assert again() == 0
    after = reader.read(FC7, {})
    assert dict(zip(after.digests, map(bytes, after.values), strict=True)) == dict(
        zip(before.digests, map(bytes, before.values), strict=True)
    )
    (photos / "green" / "02.png").write_bytes((photos / "green" / "03.png").read_bytes() + b"changed")
    assert again() == 1
    assert again("--dataset", "photos", "--layer", "fc7", "pool3") == 36
    assert again("--dataset", "photos", "--layer", "fc7", "pool3") == 0


def test_adding_an_earlier_layer_computes_that_layer_alone(
    run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("extract", "--dataset", "photos", "--layer", "fc7")
    graphs = []
    forward = FrozenNetwork.forward
    monkeypatch.setattr(FrozenNetwork, "forward", lambda self, x: (graphs.append(self.graph), forward(self, x))[1])
    run("extract", "--dataset", "photos", "--layer", "pool2", "fc7")
    assert graphs and all(
        {name.split(".")[0] for name, _ in graph.named_parameters()} == {"features"} for graph in graphs
    )
    last = max(int(name.split(".")[1]) for name, _ in graphs[0].named_parameters())
    assert last == 4, "pool2 follows features.4, which features.5, its batch norm, is folded into"


def test_the_same_bytes_are_computed_once(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        shutil.copy(photos / "red" / "00.png", photos / "red" / f"copy-{number:02}.png")
    run("prepare", "--dataset", photos)
    forwards = count_forwards(monkeypatch)
    run("extract", "--dataset", "photos", "--layer", "fc7", "--batch-size", 5)
    assert sum(forwards) == 36
    found = reader.read(FC7, {})
    same = [row for row, digest in enumerate(found.digests) if digest == found.digests[0]]
    assert len({found.values[row].tobytes() for row in same}) == 1 and len(found.paths) == 48


def test_codes_may_be_stored_in_half_the_bytes(run: Run, prepared: Path) -> None:
    flags = ("--dataset", "photos", "--layer", "fc7", "--precision", "fp32")
    run("extract", *flags)
    whole = reader.read(FC7, {"dtype": "float32"}).values
    size = FC7.stat().st_size
    assert run("extract", *flags, "--dtype", "float16").code == 0
    half = reader.read(FC7, {"dtype": "float16"}).values
    assert half.dtype == np.float32 and FC7.stat().st_size < 0.6 * size
    np.testing.assert_array_equal(half, whole.astype(np.float16).astype(np.float32))
    assert run("verify", FC7).code == 0


def test_compressed_files_read_the_same_and_feed_later_runs(run: Run, prepared: Path, photos: Path) -> None:
    flags = ("--dataset", "photos", "--layer", "pool3", "--pool", "flatten")
    pool3 = FC7.with_name("pool3.h5")
    run("extract", *flags)
    plain, size = reader.read(pool3, {}), pool3.stat().st_size
    packed = run("extract", *flags, "--compress")
    assert packed.code == 0 and "\n0 images went" in packed.out
    assert pool3.stat().st_size < 0.8 * size
    assert [path.suffix for path in cache_folder(pool3.parent).iterdir()] == [".h5"]
    found = reader.read(pool3, {})
    np.testing.assert_array_equal(found.values, plain.values)
    assert run("verify", pool3).code == 0
    (photos / "red" / "00.png").unlink()
    run("prepare", "--dataset", photos)
    fewer = run("extract", *flags, "--compress")
    assert fewer.code == 0 and "\n0 images went" in fewer.out and len(reader.read(pool3, {}).values) == 35


def test_too_large_for_float16_is_an_error(run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FrozenNetwork.forward

    def larger(self: FrozenNetwork, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {layer: (1e5 * values.float()).to(self.dtype) for layer, values in forward(self, batch).items()}

    monkeypatch.setattr(FrozenNetwork, "forward", larger)
    outcome = run("extract", "--dataset", "photos", "--layer", "fc7", "--dtype", "float16")
    mistake(outcome, "not finite", "float16", "--dtype float32")


@pytest.mark.parametrize("flag", ["--batch-size", "--threads", "--max-bad"])
def test_numbers_below_the_least(run: Run, prepared: Path, flag: str) -> None:
    mistake(run("extract", "--dataset", "photos", flag, -1), flag, "or more")
