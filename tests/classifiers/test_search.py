"""The search chooses as scikit-learn's grid search does, and its estimates are of rows that it never saw."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from pipeline import errors
from pipeline.classifiers import catalogue, search
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData


def test_the_search_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = np.maximum(rng.normal(size=(90, 10)) + 0.7 * np.eye(3, 10)[y], 0).astype(np.float32)
    grid = {"l2": {"C": [0.1, 1.0]}, "standard": {"C": [0.01, 0.1]}}
    trained = search.train(TrainingData(X, y, np.arange(len(y))), SearchPlan("svm", grid, 4, 3))
    theirs = GridSearchCV(
        Pipeline([("normalise", Normalizer()), ("classify", LinearSVC(max_iter=10_000, random_state=0))]),
        [
            {"normalise": [Normalizer()], "classify__C": [0.1, 1.0]},
            {"normalise": [StandardScaler()], "classify__C": [0.01, 0.1]},
        ],
        cv=StratifiedKFold(4, shuffle=True, random_state=3),
    ).fit(X, y)
    ours = [row["accuracy"] for row in trained.table]
    np.testing.assert_allclose(ours, theirs.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(trained.pipeline.predict(X), theirs.predict(X))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_calibrated_probabilities_are_of_margins_held_out(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, 600)
    X = np.maximum(rng.normal(size=(600, 40)) + 1.2 * np.eye(n_classes, 40)[y], 0).astype(np.float32)
    data, plan = TrainingData(X[:400], y[:400], np.arange(400)), SearchPlan("svm", {"l2": {"C": [1.0]}}, 4, 0)
    trained = search.train(data, plan)
    assert not hasattr(trained.pipeline, "predict_proba")
    temperature = search.calibrate(trained, data, plan)
    probabilities = trained.pipeline.predict_proba(X[400:])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(trained.pipeline.predict(X[400:]), probabilities.argmax(1))
    negative_log_likelihood = log_loss(y[400:], probabilities)
    for factor in (0.4, 2.5):
        trained.pipeline[-1].temperature_ = factor * temperature
        assert negative_log_likelihood < log_loss(y[400:], trained.pipeline.predict_proba(X[400:]))


@pytest.mark.parametrize(
    ("model", "grid", "words"),
    [
        ("svm", {}, "must read {normalisation: {parameter: .values.}}"),
        ("svm", {"l2": {"C": 1}}, "must read {parameter: .values.}"),
        ("svm", {"l2": {1: [1]}}, "Unknown parameter '1' for svm"),
        ("svm", {"l2": {"C": [-1]}}, "svm does not take C=-1"),
        ("tree", {"l2": {"C": [1]}}, "Unknown model 'tree'"),
    ],
)
def test_grids_that_cannot_be_searched_are_refused(model: str, grid: object, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        catalogue.validate_grid(model, grid)


def test_nested_cross_validation_never_sees_what_it_scores() -> None:
    """Labels without meaning: the best of many settings looks better than chance, the nested estimate does not."""
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 30), np.float32), np.arange(60) % 2
    grid = {"l2": {"C": [0.01, 0.1, 1, 10, 100]}, "standard": {"C": [1e-4, 1e-3, 1e-2, 0.1]}}
    nested = search.nested_cv(TrainingData(X, y, np.arange(60)), SearchPlan("svm", grid, 5, 0))
    assert nested["n"] == 60 and nested["low"] < 0.5 < nested["high"] and len(nested["settings"]) == 5
