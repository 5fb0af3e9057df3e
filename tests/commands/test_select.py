"""select: cross-validation on training images chooses the best classifier, and the test images have no say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from helpers import mistake, write_scores

Run = Callable[..., Outcome]
HALF, MOST = [True, False] * 20, [True] * 39 + [False]


def best() -> Any:
    return json.loads(Path("reports/best.json").read_text())


def test_the_best_in_cross_validation_is_selected_and_its_test_score_told(run: Run, project: Path) -> None:
    write_scores("photos/timm/tiny.r1/stage1-svm", HALF, held_out=0.9)
    write_scores("photos/timm/tiny.r1/stage2-svm", MOST, held_out=0.8)
    write_scores("photos/tinyvgg/stage1-svm", MOST, held_out=0.99)
    outcome = run("select", "--dataset", "photos", "--backbone", "timm/tiny.r1", "--layer", "stage1", "stage2")
    assert outcome.code == 0 and "not evaluated: stage1-softmax, stage2-softmax" in outcome.err
    assert "stage1 with svm is the best of 2 classifiers on held-out training images, 0.9000" in outcome.out
    assert best() == {
        "best_in_cv": {
            "dataset": "photos",
            "backbone": "timm/tiny.r1",
            "layer": "stage1",
            "model": "svm",
            "cv_accuracy": 0.9,
            "test_top1": 0.5,
            "test_top1_low": pytest.approx(0.352, abs=0.001),
            "test_top1_high": pytest.approx(0.648, abs=0.001),
            "test_n": 40,
        }
    }


def test_what_params_yaml_names_is_compared(run: Run, scored: Run) -> None:
    Path("params.yaml").write_text("{dataset: digits, extract: {layer: [fc7]}, models: [softmax]}")
    assert scored("select").code == 0
    assert best()["best_in_cv"]["model"] == "softmax" and best()["best_in_cv"]["cv_accuracy"] > 0


def test_nothing_to_select_from(run: Run, project: Path) -> None:
    write_scores("photos/tinyvgg/fc7-svm", HALF, held_out=0.9)
    address = ("--dataset", "photos", "--layer", "fc6", "--model", "svm")
    mistake(
        run("select", *address), "None of fc6-svm is evaluated", "pipeline.evaluate --dataset photos", "--layer fc6"
    )
    mistake(run("select", "--dataset", "nowhere"), "no scores under reports/nowhere/tinyvgg", "reports has photos")
