"""summary: the summary agrees with the files, and compares experiments on the same images only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Outcome
from sklearn.metrics import f1_score

from pipeline.analysis import predictions
from pipeline.reporting.experiments import find_experiments
from pipeline.reporting.page_data import ExperimentSummary, Summary
from pipeline.reporting.summary import summarise

REPORTS = Path("reports")


def check_experiment(summary: Summary, entry: ExperimentSummary) -> None:
    outcomes = predictions.read_predictions(REPORTS / entry["name"])
    mistakes, least_certain = entry["lists"]["mistakes"], entry["lists"]["least_certain"]["cards"]
    assert entry["top1"] == outcomes.correct.mean() and mistakes["found"] == (~outcomes.correct).sum() > 0
    assert sum(cell.n for cell in entry["confusion_cells"]) == 24
    f1 = f1_score(outcomes.labels, outcomes.predicted, average=None)
    np.testing.assert_allclose([scores.f1 for scores in entry["per_class"]], f1, atol=1e-4)
    assert len(mistakes["cards"]) == mistakes["found"] and len(least_certain) == 24
    for item in mistakes["cards"]:
        image = summary["images"][item["images"][0]]
        assert image.split == "test" and outcomes.classes[image.label] == image.path.split("/")[0]
        assert item["predicted"] != image.label
        assert [summary["images"][neighbour.image].split for neighbour in item["nearest"]] == ["train"] * 5
    confidence = [item["confidence"] for item in mistakes["cards"]]
    assert confidence == sorted(confidence, reverse=True)
    confidence = [item["confidence"] for item in least_certain]
    assert confidence == sorted(confidence)


def test_the_summary_agrees_with_the_files(scored: Callable[..., Outcome]) -> None:
    summary = summarise(REPORTS, find_experiments(REPORTS), 10**6)
    assert len(summary["experiments"]) == 2 and summary["experiments"][0]["comparison"]["best"]
    for entry in summary["experiments"]:
        check_experiment(summary, entry)
    by_model = {entry["model"]: entry for entry in summary["experiments"]}
    calibration, study = by_model["softmax"]["calibration"], summary["datasets"]["digits"]["study"]
    assert calibration and 0 <= calibration["ece"] <= 1 and by_model["svm"]["calibration"] is None
    assert study and study["code_map"] and len(study["code_map"]["points"]) == 48 == len(summary["thumbnails"])
    assert study["split_sizes"] == {"train": 24, "val": 0, "test": 24, "unlabelled": 0}
