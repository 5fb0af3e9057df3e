"""experiments: finding scores, and reading the classifier and the codes that they were made with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import mistake, train_and_evaluate, write_training

from pipeline import errors
from pipeline.reporting.experiments import find_experiments, find_multi_label, load_experiment

REPORTS = Path("reports")

Run = Callable[..., Outcome]


def write_metrics(name: str, **metrics: float) -> None:
    path = REPORTS / name / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": 10, **metrics}))


def test_experiments_are_ordered_by_dataset_and_accuracy(project: Path) -> None:
    write_metrics("b/tinyvgg/fc7-svm", top1=0.5)
    write_metrics("a/tinyvgg/fc6+fc7-svm", top1=0.5)
    write_metrics("a/resnet18/avgpool-softmax", top1=0.75)
    write_metrics("a/tinyvgg/fc7-svm", map=0.5)
    layers = [(scores["dataset"], scores["layer"], scores["model"]) for scores in find_experiments(REPORTS)]
    assert layers == [("a", "avgpool", "softmax"), ("a", "fc6+fc7", "svm"), ("b", "fc7", "svm")]
    assert len(find_experiments(REPORTS, dataset="a", backbone="tinyvgg")) == 1
    assert [(scores["dataset"], scores["map"]) for scores in find_multi_label(REPORTS)] == [("a", 0.5)]
    with pytest.raises(errors.PipelineError, match="no scores"):
        find_experiments(REPORTS, dataset="c")


def test_confidence_is_the_probability_or_the_margin_over_the_second_class(scored: Run) -> None:
    by_model = {scores["model"]: load_experiment(REPORTS, scores) for scores in find_experiments(REPORTS)}
    assert by_model["softmax"].confidence_kind == "probability" and by_model["svm"].confidence_kind == "margin"
    assert ((by_model["softmax"].confidence > 1 / 3) & (by_model["softmax"].confidence <= 1)).all()
    assert (by_model["svm"].confidence >= 0).all()
    for experiment in by_model.values():
        assert experiment.note == "" and experiment.index is not None
        assert [experiment.index.paths[row] for row in experiment.test_rows] == list(experiment.predictions.paths)


def test_scores_without_a_classifier_have_the_score_as_confidence(run: Run) -> None:
    write_training()
    train_and_evaluate(run, "svm")
    shutil.rmtree("models")
    experiment = load_experiment(REPORTS, find_experiments(REPORTS)[0])
    assert "fc7-svm" in experiment.note and experiment.confidence_kind == "score"
    np.testing.assert_array_equal(experiment.confidence, experiment.predictions.margins)
    assert run("report").code == 0


def test_scores_of_other_codes_are_noticed(run: Run) -> None:
    write_training()
    train_and_evaluate(run, "svm")
    write_training(per_class=24)
    assert "Evaluate again. Run:" in load_experiment(REPORTS, find_experiments(REPORTS)[0]).note
    (REPORTS / "digits/tinyvgg/fc7-svm/predictions.csv").write_text("path,label\na,b\n")
    mistake(run("report"), "incomplete or damaged", "pipeline.evaluate")
