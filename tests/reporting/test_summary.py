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
from pipeline.reporting.summary import compare_with_first, summarise

REPORTS = Path("reports")


def test_experiments_on_other_images_are_not_compared() -> None:
    correct = np.array([True] * 20)
    comparisons = compare_with_first([(1, correct), (1, ~correct), (2, correct)])
    assert [comparison["best"] for comparison in comparisons] == [True, False, False]
    assert comparisons[1]["differs"] is True and comparisons[2]["p"] is None


def check_experiment(summary: Summary, entry: ExperimentSummary) -> None:
    outcomes = predictions.read_predictions(REPORTS / entry["name"])
    assert entry["top1"] == outcomes.correct.mean() and entry["mistakes_total"] == (~outcomes.correct).sum() > 0
    assert sum(cell.n for cell in entry["confusion_cells"]) == 24
    f1 = f1_score(outcomes.labels, outcomes.predicted, average=None)
    np.testing.assert_allclose([scores.f1 for scores in entry["per_class"]], f1, atol=1e-4)
    assert len(entry["mistakes"]) == entry["mistakes_total"] and len(entry["least_certain"]) == 24
    for item in entry["mistakes"]:
        image = summary["images"][item["image"]]
        assert image.split == "test" and outcomes.classes[image.label] == image.path.split("/")[0]
        assert item["predicted"] != image.label
        assert [summary["images"][neighbour.image].split for neighbour in item["nearest"]] == ["train"] * 5
    confidence = [item["confidence"] for item in entry["mistakes"]]
    assert confidence == sorted(confidence, reverse=True)
    confidence = [item["confidence"] for item in entry["least_certain"]]
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
    assert study["split_sizes"] == {"train": 24, "val": 0, "test": 24}
