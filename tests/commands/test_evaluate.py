"""saved, scores, evaluate and report: honest figures, and no trust in files that were changed."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skops.io
from conftest import Outcome, write_codes
from helpers import CODES, GRID, MODEL, mistake, write_training
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from pipeline.classifiers import persistence, scoring, search

Run = Callable[..., Outcome]
REPORT = Path("reports/digits/tinyvgg/fc7-svm")


@pytest.fixture
def trained(run: Run) -> Run:
    write_training()
    assert run("classify", "--grid", GRID).code == 0
    return run


def test_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, margins = rng.integers(0, 8, 200), rng.normal(size=(200, 8))
    found = scoring.score(labels, margins, [f"class {number}" for number in range(8)])
    assert found.metrics["top1"] == accuracy_score(labels, margins.argmax(1))
    assert found.metrics["top5"] == top_k_accuracy_score(labels, margins, k=5)
    assert found.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, margins.argmax(1)))
    assert found.metrics["n"] == found.confusion.sum() == sum(row["support"] for row in found.per_class) == 200


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(446, 450, 0.9774, 0.9965), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634)]
)
def test_the_interval_is_wilsons(right: int, total: int, low: float, high: float) -> None:
    assert scoring.wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)


def test_top5_is_left_out_where_it_would_say_nothing() -> None:
    assert "top5" not in scoring.score(np.array([0, 1]), np.eye(2), "ab").metrics


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


@pytest.mark.parametrize("model", search.CLASSIFIERS)
def test_every_model_is_scored(run: Run, model: str) -> None:
    write_training()
    assert run("classify", "--model", model).code == 0
    assert "n = 15" in run("evaluate", "--model", model).out


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


def test_a_tampered_classifier_is_refused(trained: Run) -> None:
    data = bytearray(MODEL.read_bytes())
    for place in (100, len(data) // 2, len(data) - 30):
        changed = bytearray(data)
        changed[place] ^= 1
        MODEL.write_bytes(changed)
        mistake(trained("evaluate"), "was changed")


def test_a_classifier_without_its_metadata_is_refused(trained: Run) -> None:
    MODEL.with_suffix(".json").unlink()
    mistake(trained("evaluate"), "no metadata file")


@pytest.mark.parametrize(
    "text", ["", "[1]", json.dumps({"format": persistence.FORMAT, "sha256": "", "spec": {}, "classes": []})]
)
def test_metadata_that_is_none_is_refused(trained: Run, text: str) -> None:
    MODEL.with_suffix(".json").write_text(text)
    mistake(trained("evaluate"), "no metadata of a classifier")


@pytest.mark.parametrize("changes", [{}, {"format": "cnn-codes-classifier 1"}])
def test_a_classifier_of_another_format_is_refused(trained: Run, changes: dict[str, str]) -> None:
    metadata = json.loads(MODEL.with_suffix(".json").read_text())
    del metadata["format"]
    MODEL.with_suffix(".json").write_text(json.dumps(metadata | changes))
    mistake(trained("evaluate"), "was saved by an earlier release. Train it again: python -m pipeline.classify")


class Evil(LinearSVC):
    """Foreign code: to be loaded, this class would have to be imported and called."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)

    def __setstate__(self, state: object) -> None:
        os.mkdir("owned")  # noqa: PTH102


def replace_classifier(path: Path, data: bytes) -> None:
    """Put a file in the classifier's place, with metadata that fit it, as an attacker would."""
    import hashlib

    path.write_bytes(data)
    beside = path.with_suffix(".json")
    facts = json.loads(beside.read_text())
    beside.write_text(json.dumps(facts | {"sha256": hashlib.sha256(data).hexdigest()}))


def test_a_foreign_classifier_is_refused_and_nothing_of_it_runs(trained: Run) -> None:
    import pickle

    evil = Pipeline([("normalise", FunctionTransformer(os.mkdir)), ("classify", Evil())])
    replace_classifier(MODEL, skops.io.dumps(evil))
    mistake(trained("evaluate"), "not trusted")
    replace_classifier(MODEL, pickle.dumps(Evil()))
    mistake(trained("evaluate"), "damaged, or no classifier of ours")
    assert not Path("owned").exists()


def test_files_that_are_no_classifier_are_refused(trained: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    replace_classifier(MODEL, (tmp_path / "other.zip").read_bytes())
    mistake(trained("evaluate"), "damaged, or no classifier of ours")
    replace_classifier(MODEL, skops.io.dumps(LinearSVC()))
    mistake(trained("evaluate"), "holds a LinearSVC")
    assert all(
        name.startswith(("pipeline.classifiers.solvers.", "pipeline.classifiers.preprocessing."))
        for name in persistence.TRUSTED
    )
