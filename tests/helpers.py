"""What tests of several rooms check alike: mistakes, forward passes, small codes to train on."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import BAD_FILES, Listing, Outcome, make_spec, put_codes, write_codes
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import files
from pipeline.classifiers import persistence, scoring
from pipeline.data.manifest import Manifest
from pipeline.texts import Texts

if TYPE_CHECKING:
    import torch

    from pipeline.extraction.engine import BatchCodes, Engine
    from pipeline.networks.frozen import FrozenNetwork

FC7 = Path("features/photos/tinyvgg/fc7.h5")
CODES = Path("features/digits/tinyvgg/fc7.h5")
MODEL = Path("models/digits/tinyvgg/fc7-svm.skops")
PAGE = Path("reports/index.html")
GRID = "{l2: {C: [1, 10]}, standard: {C: [0.01, 0.1]}}"

TOLERANCE = 1e-5

NASTY_NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(1)</script>",
    "\"quoted\" & 'single' {{ 7 * 7 }}.png",
    "two\nlines\u2028three.png",
    "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd.png",
    "x" * 196 + ".png",
    "odd bytes \udcff.png",
]
"""Names of files and classes that must be shown as text."""


def mistake(outcome: Outcome, *words: str) -> None:
    """One sentence after any notes, with a command to paste or without; exit code 2; the words that the user needs."""
    assert outcome.code == 2, outcome
    lines = outcome.err.strip().splitlines()
    if lines[-1].startswith("  python -m pipeline."):
        assert lines.pop().strip() and lines[-1].endswith(" Run:"), outcome.err
    assert lines[-1].startswith("Error: ") and sum(line.startswith("Error: ") for line in lines) == 1, outcome.err
    assert "Traceback" not in outcome.err, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of images of each forward pass."""
    from pipeline.extraction.engine import Engine

    seen: list[int] = []
    launch = Engine.launch

    def counted(self: Engine, images: Sequence[np.ndarray]) -> Callable[[], BatchCodes]:
        seen.append(len(images))
        return launch(self, images)

    monkeypatch.setattr(Engine, "launch", counted)
    return seen


def smooth_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of soft blots, similar to a photo."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def encode_image(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_jpegs(folder: Path, count: int) -> Path:
    """Write `count` JPEG photos of two classes, and one PNG of each."""
    for number, name in enumerate(("light", "dark")):
        (folder / name).mkdir(parents=True)
        for row in range(count // 2):
            image = smooth_image(90, 70, 100 * number + row).point(lambda value, dark=number: value // (1 + 2 * dark))
            image.save(folder / name / f"{row:02}.jpg", quality=90)
        image.save(folder / name / "last.png")
    return folder


def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the import of TorchCodec fail as where it is not installed."""
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)


def digit_images() -> list[np.ndarray]:
    """Return ten digits as (3, 64, 64) uint8."""
    digits = (load_digits().images[:10] * 15.9).astype(np.uint8)
    return [np.repeat(np.kron(digit, np.ones((8, 8), np.uint8))[None], 3, axis=0) for digit in digits]


def write_training(path: Path = CODES, per_class: int = 20, **spec: object) -> np.ndarray:
    """Write codes of 3 classes, three quarters of them for training."""
    labels = [c for c in range(3) for _ in range(per_class)]
    splits = ["test" if number % 4 == 0 else "train" for number in range(3 * per_class)]
    return write_codes(path, labels, splits, ["ant", "bee", "fly"], **spec)


def write_listed_codes(
    paths: Sequence[str],
    labels: Sequence[int],
    splits: Sequence[str],
    classes: Sequence[str],
    values: np.ndarray | None = None,
) -> None:
    """Write codes of listed images that need not exist; by default the classes are far apart."""
    if values is None:
        noise = 0.5 * np.random.default_rng(1).random((len(labels), 16))
        values = np.maximum(2 * np.eye(16)[np.array(labels)] + noise, 0)
    digests = [f"{number:064x}" for number in range(len(paths))]
    put_codes(CODES, values, Listing(paths, labels, splits, digests, classes, BAD_FILES))


def train_and_evaluate(run: Callable[..., Outcome], *models: str, grid: str = "{l2: {C: [1, 10, 100]}}") -> None:
    """Train and evaluate classifiers on the codes that are there."""
    for model in models:
        assert run("classify", "--model", model, "--grid", grid, "--folds", 2).code == 0
        assert run("evaluate", "--model", model).code == 0


def write_scores(
    name: str,
    correct: Sequence[bool],
    classes: Sequence[str] = ("ant", "bee"),
    held_out: float | None = None,
    n: int = 100,
) -> None:
    """Write the scores of an experiment dataset/backbone/layer-model, and the metadata of its classifier.

    correct: which of the test images are predicted correctly, the others as the next class; held_out: cross-validated
    accuracy on n training images, None for no metadata.
    """
    folder, k = Path("reports", name), len(classes)
    labels = np.arange(len(correct)) % k
    predicted = np.where(correct, labels, (labels + 1) % k)
    scores = scoring.score(labels, np.eye(k)[predicted], classes)
    scores.metrics.update(related=0, validation=None)
    rows = [(f"{row}.png", classes[labels[row]], classes[predicted[row]], 1, row) for row in range(len(labels))]
    files.write_csv(folder / "predictions.csv", ("path", "label", "predicted", "margin", "unit"), rows)
    files.write_csv(
        folder / "per_class.csv", list(scores.per_class[0]), [list(row.values()) for row in scores.per_class]
    )
    if held_out is not None:
        facts = {"chosen": {"accuracy": held_out, "standard_deviation": 0.01}, "n_train": n, "versions": {}}
        metadata = {"format": persistence.FORMAT, "spec": make_spec().to_dict(), "sha256": "", "classes": list(classes)}
        files.write_json(Path("models", f"{name}.json"), metadata | facts)
        scores.metrics["validation"] = persistence.validation_of(facts)  # type: ignore[arg-type]
    files.write_json(folder / "metrics.json", scores.metrics)


def write_nasty_report(run: Callable[..., Outcome]) -> None:
    """Write the report of a dataset whose files and classes have names that look like code."""
    n_classes = len(NASTY_NAMES)
    labels = [number % n_classes for number in range(12 * n_classes)]
    paths = [f"{number}/{NASTY_NAMES[label]}" for number, label in enumerate(labels)]
    classes = [name.replace("\udcff", "ÿ") for name in NASTY_NAMES]
    write_listed_codes(paths, labels, ["train"] * n_classes * 8 + ["test"] * n_classes * 4, classes)
    train_and_evaluate(run, "svm")
    assert run("report").code == 0


def read_page_data(project: Path = Path()) -> Any:
    """Return the data that the page of a project's report gives its script."""
    html = (project / PAGE).read_text(encoding="utf-8")
    island = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert island
    return json.loads(island.group(1))


def noise_images(count: int, size: int = 224) -> np.ndarray:
    """Return (count, 3, size, size) uint8 noise."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def normalised(x: np.ndarray) -> torch.Tensor:
    """Return uint8 images as a network trained on ImageNet wants them."""
    import torch

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.from_numpy(x).float() / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal within 1e-5 of the largest value of each row."""
    largest = np.abs(theirs).max(1, keepdims=True)
    assert largest.min() > 0
    assert (np.abs(ours - theirs) / largest).max() <= TOLERANCE


@cache
def frozen(name: str, *layers: str) -> FrozenNetwork:
    """Return a frozen network with random weights."""
    from pipeline.networks.frozen import FrozenNetwork

    return FrozenNetwork(name, layers, "random", "avg")


def make_manifest(
    folder: str,
    paths: Iterable[str],
    labels: np.ndarray,
    splits: Iterable[str],
    classes: tuple[str, ...],
    digests: Iterable[str],
    **metadata: Iterable[str],
) -> Manifest:
    """Return a dataset whose images need not exist; each keyword is a column of its metadata."""
    paths, splits, digests = map(Texts.of, (paths, splits, digests))
    columns = {name: Texts.of(values) for name, values in metadata.items()}
    return Manifest(Path(folder), paths, labels, splits, classes, digests, columns)
