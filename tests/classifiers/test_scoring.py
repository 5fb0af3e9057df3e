"""Scores equal scikit-learn's, and average precisions equal those computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, top_k_accuracy_score

from pipeline.classifiers import scoring


def test_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, margins = rng.integers(0, 8, 200), rng.normal(size=(200, 8))
    scores = scoring.score(labels, margins, [f"class {number}" for number in range(8)])
    assert scores.metrics["top1"] == accuracy_score(labels, margins.argmax(1))
    assert scores.metrics["top5"] == top_k_accuracy_score(labels, margins, k=5)
    assert scores.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, margins.argmax(1)))
    assert scores.metrics["n"] == scores.confusion.sum() == sum(row["support"] for row in scores.per_class) == 200


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"), [(446, 450, 0.9774, 0.9965), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634)]
)
def test_the_interval_is_wilsons(correct: int, total: int, low: float, high: float) -> None:
    assert scoring.wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_top5_is_left_out_where_there_are_five_classes_or_fewer() -> None:
    assert "top5" not in scoring.score(np.array([0, 1]), np.eye(2), "ab").metrics


def test_average_precision_by_hand() -> None:
    truth, margins = np.array([1, 0, 1, 0, 1]), np.array([5.0, 4, 3, 2, 1])
    continuous, eleven = scoring.average_precisions(truth, margins)
    assert continuous == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert eleven == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)
    assert np.isnan(scoring.average_precisions(np.zeros(3), np.arange(3))).all()


def test_the_mean_is_over_labels_that_occur() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    scores = scoring.score_multi_label(labels, np.array([[1.0, 0], [2, 0], [3, 0]]), ["a", "b"])
    assert scores.metrics["map"] == pytest.approx((1 + 2 / 3) / 2) and scores.metrics["n"] == 3


def test_the_interval_of_the_mean_average_precision_covers_it_in_about_95_of_100_samples() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((20_000, 3)) < [0.2, 0.4, 0.5]
    margins = truth + rng.normal(size=truth.shape)
    population = np.mean([average_precision_score(*columns) for columns in zip(truth.T, margins.T, strict=True)])
    covered = []
    for rows in (rng.choice(len(truth), 200) for _ in range(60)):
        metrics = scoring.score_multi_label(truth[rows].astype(int), margins[rows], ["a", "b", "c"]).metrics
        covered.append(metrics["map_low"] <= population <= metrics["map_high"])
    assert 0.88 <= np.mean(covered) < 1
