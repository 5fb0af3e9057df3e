"""What the project promises of its embedded data: early layers beat late ones on digits, and raw pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Outcome
from PIL import Image

from pipeline import params
from pipeline.classifiers import scoring, search
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.data.manifest import read_manifest

Run = Callable[..., Outcome]


def test_the_early_layer_beats_the_late_one_and_raw_pixels(run: Run) -> None:
    assert run("extract", "--layer", "pool3", "fc7").code == 0
    top1 = {}
    for layer in ("pool3", "fc7"):
        assert run("classify", "--layer", layer, "--folds", 2).code == 0
        assert run("evaluate", "--layer", layer).code == 0
        metrics = json.loads(Path(f"reports/digits/tinyvgg/{layer}-svm/metrics.json").read_text())
        top1[layer] = metrics["top1"]
    manifest = read_manifest(Path("data/digits"))
    pixels = np.stack([np.asarray(Image.open(path), np.float32).ravel() for path in manifest.files()])
    trained_on = np.array([split == "train" for split in manifest.splits])
    X, y, grid = pixels[trained_on], manifest.labels[trained_on], params.grid_of("svm")
    trained = search.train(TrainingData(X, y, np.arange(len(y))), SearchPlan("svm", grid, 2, 0))
    margins = trained.pipeline.decision_function(pixels[~trained_on])
    raw = scoring.score(manifest.labels[~trained_on], margins, manifest.classes).metrics["top1"]
    assert top1["pool3"] >= 0.985
    assert top1["pool3"] > top1["fc7"]
    assert top1["pool3"] > raw > 0.9
