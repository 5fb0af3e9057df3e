"""predict --source-classes: what an untouched network says of new images, over the classes that it was trained on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from helpers import mistake
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.images.transforms import load_image
from pipeline.networks import backbones, source_classes

Run = Callable[..., Outcome]


@pytest.fixture
def two_photos(project: Path) -> list[Path]:
    """A photo of a Chinese temple, and one of a flower."""
    paths = [Path("temple.png"), Path("flower.png")]
    for path, photo in zip(paths, load_sample_images().images, strict=True):
        Image.fromarray(photo).save(path)
    return paths


def expected(name: str, paths: list[Path]) -> list[dict[str, str]]:
    """Return the rows that the network's own forward pass gives, two for each image."""
    backbone = backbones.get(name)
    model, transform = backbones.load(backbone, "default")
    head = source_classes.find_head(backbone, "default")
    assert head
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    pixels = torch.from_numpy(np.stack([load_image(path, transform) for path in paths]))
    with torch.no_grad():
        values, numbers = model((pixels / 255 - mean) / std).softmax(1).topk(2)
    return [
        {"path": str(path), "rank": str(rank), "source_class": head.names[number], "probability": f"{value:.3f}"}
        for path, of_path, at in zip(paths, values.tolist(), numbers.tolist(), strict=True)
        for rank, (value, number) in enumerate(zip(of_path, at, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("name", "classes", "first"),
    [("tinyvgg", 200, ["barn", "pomegranate"]), ("efficientnet_lite0", 1000, ["palace", "daisy"])],
)
def test_the_networks_own_probabilities_are_given(
    run: Run, two_photos: list[Path], name: str, classes: int, first: list[str]
) -> None:
    outcome = run("predict", "--source-classes", "--backbone", name, "--top", 2, *two_photos)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert [row["source_class"] for row in rows[::2]] == first
    assert [row | {"probability": f"{float(row['probability']):.3f}"} for row in rows] == expected(name, two_photos)
    assert outcome.err.startswith(f"backbone: {name} (--backbone)\n")
    assert f"predicts the {classes} classes that it was trained on" in outcome.err
    assert outcome.err.endswith("2 images, 0 skipped\n")


def test_all_of_the_classes_add_up_to_one(run: Run, two_photos: list[Path]) -> None:
    outcome = run("predict", "--source-classes", "--top", 999, "--format", "json", "temple.png")
    (line,) = map(json.loads, outcome.out.splitlines())
    assert len({entry["source_class"] for entry in line["top"]}) == 200
    assert sum(entry["probability"] for entry in line["top"]) == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_answered_is_one_sentence(run: Run, two_photos: list[Path]) -> None:
    flags = ("--source-classes", "temple.png")
    mistake(run("predict", *flags, "--weights", "random"), "predicts no classes", "--weights default")
    mistake(run("predict", *flags, "--backbone", "timm/vit_small_patch14_dinov2"), "predicts no classes")
    mistake(run("predict", *flags, "--classifier", "some.skops"), "without a classifier")


def test_the_weights_are_those_that_extract_takes(run: Run, two_photos: list[Path]) -> None:
    Path("params.yaml").write_text("extract: {weights: random}", encoding="utf-8")
    mistake(run("predict", "--source-classes", "temple.png"), "'random' predicts no classes")
    assert run("predict", "--source-classes", "--weights", "default", "temple.png").code == 0
