"""What the tests share: a project folder of their own, commands run in it, small real images and codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import command_line
from pipeline.codes import stored
from pipeline.codes.spec import CodesSpec
from pipeline.codes.writer import CodesWriter, Metadata, cache_folder
from pipeline.images.transforms import Transform

ROOT = Path(__file__).parent.parent
BAD_FILES = ["broken.png: the file is empty (zero bytes)"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run DVC's tests, which take minutes, first: no process is left alone with them at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process, as `python -m pipeline.<stage> …` would."""

    def call(stage: str, *arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = command_line.run_command(stage, [str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


def spawn(stage: str, *arguments: object, cwd: Path, **options: object) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    command = [sys.executable, "-m", f"pipeline.{stage}", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, text=True, env=environment, **pipes, **options)  # type: ignore[call-overload]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 3 classes × 12 pictures of 40×30 pixels: noise of a colour that tells the class."""
    return write_photos(tmp_path / "photos", {"red": 12, "green": 12, "blue": 12})


def write_photos(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write pictures by class; the class is told by the channel that is brightest."""
    rng = np.random.default_rng(seed)
    for channel, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 120, (30, 40, 3))
            pixels[..., channel % 3] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


def make_spec(**changes: object) -> CodesSpec:
    """Return a spec like that of tinyvgg's fc7, with other values in some fields, the transform's fields included."""
    native = Transform(64, 64, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    seen = {field.name: changes.pop(field.name) for field in fields(Transform) if field.name in changes}
    values: dict[str, object] = {
        "backbone": "tinyvgg",
        "layer": "fc7",
        "node": "classifier.4",
        "weights": "default",
        "weights_sha256": "ab" * 32,
        "transform": replace(native, **seen),  # type: ignore[arg-type]
        "pool": "none",
        "precision": "fp32",
    }
    return CodesSpec(**values | changes)  # type: ignore[arg-type]


def write_codes(
    path: Path, labels: Sequence[int], splits: Sequence[str], classes: Sequence[str], width: int = 16, **spec: object
) -> np.ndarray:
    """Write made-up codes, sparse and easy to tell apart by class, to an HDF5 file; return their values."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(classes), width))
    noise = rng.normal(size=(len(labels), width))
    values = np.maximum(centres[np.asarray(labels)] + 0.5 * noise, 0).astype(np.float32)
    names, digests = zip(*((f"{row}.png", f"{row:064x}") for row in range(len(labels))), strict=True)
    put_codes(path, values, Listing(names, labels, splits, digests, classes), **spec)
    return values


@dataclass(frozen=True)
class Listing:
    """What stands beside made-up codes."""

    paths: Sequence[str]
    labels: Sequence[int]
    splits: Sequence[str]
    digests: Sequence[str]
    classes: Sequence[str]
    bad: Sequence[str] = ()


def put_codes(path: Path, values: np.ndarray, listing: Listing, **spec: object) -> None:
    """Write given codes to an HDF5 file, and nothing that earlier ones left."""
    shutil.rmtree(cache_folder(path.parent), ignore_errors=True)
    labels = np.asarray(listing.labels, dtype=np.int64)
    columns = Metadata(
        stored.encode_texts(listing.paths),
        labels,
        stored.encode_texts(listing.splits),
        stored.encode_texts(listing.classes),
    )
    with CodesWriter(path, make_spec(**spec), values.shape[1], columns) as writer:
        if len(labels):
            writer.write(range(len(labels)), values.astype(np.float32), listing.digests)
        writer.commit(listing.bad)


@pytest.fixture
def scored(run: Callable[..., Outcome], project: Path) -> Callable[..., Outcome]:
    """Run commands in a project with a dataset of photos and two evaluated classifiers, both with some mistakes."""
    write_scored_project(lambda *arguments: run(*arguments).code)
    return run


def write_scored_project(run: Callable[..., int]) -> None:
    """Write the project of `scored` into the working folder; run: runs a command and returns its exit code."""
    write_photos(Path("data/digits"), {"blue": 16, "green": 16, "red": 16})
    labels = [number // 16 for number in range(48)]
    classes = ["blue", "green", "red"]
    paths = [f"{classes[label]}/{number % 16:02}.png" for number, label in enumerate(labels)]
    values = 0.6 * np.eye(16)[labels] + np.random.default_rng(3).random((48, 16))
    digests = [f"{number:064x}" for number in range(48)]
    listing = Listing(paths, labels, ["train", "train", "test", "test"] * 12, digests, classes, BAD_FILES)
    put_codes(Path("features/digits/tinyvgg/fc7.h5"), values, listing)
    for model in ("svm", "softmax"):
        assert run("classify", "--model", model, "--grid", "{l2: {C: [1, 10, 100]}}") == 0
        assert run("evaluate", "--model", model) == 0
