"""saved, scores, evaluate and report: honest figures, and no trust in files that were changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, write_codes
from helpers import CODES, GRID, MODEL, mistake, write_training

from pipeline.classifiers import catalogue

Run = Callable[..., Outcome]
REPORT = Path("reports/digits/tinyvgg/fc7-svm")


@pytest.fixture
def trained(run: Run) -> Run:
    write_training()
    assert run("classify", "--grid", GRID).code == 0
    return run


def test_evaluate_writes_metrics_tables_and_a_picture(trained: Run) -> None:
    outcome = trained("evaluate")
    assert outcome.code == 0 and "n = 15" in outcome.out
    metrics = json.loads((REPORT / "metrics.json").read_text())
    assert {"top1", "top1_low", "top1_high", "balanced_accuracy", "n"} <= metrics.keys()
    assert metrics["top1_low"] <= metrics["top1"] <= metrics["top1_high"] and metrics["n"] == 15
    predictions = list(csv.DictReader((REPORT / "predictions.csv").open()))
    assert np.mean([row["label"] == row["predicted"] for row in predictions]) == metrics["top1"]
    per_class = list(csv.DictReader((REPORT / "per_class.csv").open()))
    assert [row["class"] for row in per_class] == ["ant", "bee", "fly"]
    assert {"precision", "recall", "f1", "support"} <= per_class[0].keys()
    confusion = np.array([row[1:] for row in csv.reader((REPORT / "confusion.csv").open())][1:], int)
    assert confusion.sum() == 15 and np.trace(confusion) / 15 == metrics["top1"]
    assert (REPORT / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("model", catalogue.CLASSIFIERS)
def test_every_model_is_scored(run: Run, model: str) -> None:
    write_training(CODES.with_name("logits.h5"), layer="logits")
    assert run("classify", "--model", model, "--layer", "logits").code == 0
    assert "n = 15" in run("evaluate", "--model", model, "--layer", "logits").out


def test_report_prints_every_experiment_with_its_interval(trained: Run) -> None:
    trained("evaluate")
    table = trained("report").out
    assert table.splitlines()[0].split() == [
        "dataset",
        "backbone",
        "layer",
        "model",
        "top-1",
        "95%",
        "interval",
        "balanced",
        "n",
    ]
    assert table.splitlines()[1].split()[:4] == ["digits", "tinyvgg", "fc7", "svm"]


def test_two_classes_are_scored(run: Run) -> None:
    write_codes(CODES, [0, 1] * 20, ["train"] * 30 + ["test"] * 10, ["a", "b"])
    run("classify", "--grid", GRID)
    assert run("evaluate").code == 0 and json.loads((REPORT / "metrics.json").read_text())["n"] == 10


def test_a_class_may_be_missing_from_training_codes(run: Run) -> None:
    """Its images may all have been skipped; then it is never predicted, and that is counted as wrong."""
    write_codes(CODES, [0, 1] * 15 + [2] * 4, ["train"] * 30 + ["test"] * 4, ["a", "b", "c"])
    run("classify", "--grid", GRID)
    run("evaluate")
    assert json.loads((REPORT / "metrics.json").read_text())["top1"] == 0


# Mistakes, and files of others


def test_no_classifier_and_no_report(run: Run) -> None:
    mistake(run("evaluate"), "no classifier at models/digits/tinyvgg/fc7-svm.skops", "pipeline.classify")
    mistake(run("report"), "no scores under reports", "dvc repro")


def test_no_test_split(run: Run) -> None:
    write_codes(CODES, [0, 1] * 15, ["train"] * 30, ["a", "b"])
    run("classify", "--grid", GRID)
    mistake(run("evaluate"), "no test images", "--test")


def test_a_classifier_of_another_dataset_is_said_to_be_one(trained: Run) -> None:
    outcome = trained("evaluate", "--dataset", "other", "--codes", CODES, "--classifier", MODEL)
    assert outcome.code == 0 and "trained on the dataset 'digits'" in outcome.out
    assert "trained on" not in trained("evaluate").out


def test_codes_of_another_spec_are_refused(trained: Run) -> None:
    write_training(weights_sha256="cd" * 32, resize=128)
    mistake(trained("evaluate"), "weights_sha256 is", "transform.resize is 128, not 64")
    assert not REPORT.exists()


def test_codes_with_other_classes_are_refused(trained: Run) -> None:
    write_codes(CODES, [0, 1] * 10, ["test"] * 20, ["cat", "dog"])
    mistake(trained("evaluate"), "other training images or labels", "pipeline.classify --dataset digits")
    facts = json.loads(MODEL.with_suffix(".json").read_text()) | {"dataset": "insects"}
    MODEL.with_suffix(".json").write_text(json.dumps(facts))
    mistake(trained("evaluate"), "labels do not match", "ant", "cat")
