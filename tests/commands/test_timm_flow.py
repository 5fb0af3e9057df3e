"""All commands with a transformer of timm's: from its tokens to ONNX, fine-tuned weights, advice and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from pipeline import CNNCodes
from pipeline.classifiers import persistence
from pipeline.codes import reader

Run = Callable[..., Outcome]
NAME = "timm/test_vit"


def succeed(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome
    return outcome.out


@pytest.mark.slow
def test_every_command_works_with_a_transformer(run: Run, photos: Path) -> None:
    joined = ("--dataset", "photos", "--backbone", NAME, "--layer", "block3+block6", "--model", "softmax")
    last = (*joined[:4], "--layer", "norm")
    succeed(run("prepare", "--dataset", photos))
    layers = ("block3", "block6", "norm")
    network = ("--weights", "random", "--pool", "cls+mean", "--precision", "fp32")
    succeed(run("extract", *joined[:4], "--layer", *layers, *network))
    codes = reader.read(Path("features/photos", NAME, "block6.h5"), {})
    assert codes.values.shape == (36, 128) and codes.spec.activation == "none"
    for address in (joined, (*last, "--model", "softmax")):
        succeed(run("classify", *address, "--folds", 2, "--grid", "{l2: {C: [100]}}"))
        succeed(run("evaluate", *address))
    assert len(succeed(run("predict", *joined, photos / "red")).splitlines()) == 13
    succeed(run("export", *joined, "--out", "photos.onnx"))
    succeed(run("finetune", *last, "--model", "softmax", "--unfreeze", "block6", "--epochs", 1, "--augment", "none"))
    tuned = Path("models/photos", NAME, "norm-finetuned.skops")
    assert persistence.load(tuned).spec.pool == "cls_mean"
    assert len(succeed(run("predict", "--classifier", tuned, photos / "red")).splitlines()) == 13
    advised = run("advise", *joined[:4], "--layer", "block6", "norm", "--weights", "random", "--folds", 2)
    assert "Take " in succeed(advised)
    advice = json.loads(Path("reports/photos", NAME, "advice/advice.json").read_text(encoding="utf-8"))
    assert {layer["layer"] for layer in advice["layers"]} == {"block6", "norm"}
    assert f"photos   {NAME}  block3+block6" in succeed(run("report"))


def test_cnn_codes_takes_timms_networks_and_the_poolings_of_tokens(run: Run, photos: Path) -> None:
    paths = sorted(photos.glob("red/*"))[:2]
    both, cls, mean = (
        CNNCodes(NAME, "norm", weights="random", pool=pool).fit_transform(paths) for pool in ("cls+mean", "cls", "mean")
    )
    assert both.tolist() == [[*first, *second] for first, second in zip(cls.tolist(), mean.tolist(), strict=True)]
