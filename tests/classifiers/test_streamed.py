"""Rows that do not fit into memory: the same minimum in some ten passes, each of which reads a row once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from test_solvers import MODELS, codes, entropies, hinges, multi_label

from pipeline.classifiers import solvers
from pipeline.classifiers.solvers.streamed import draw_sample


class OnDisk:
    """An array that is sliced as rows on disk are, and counts the rows that were read; the last slice is kept."""

    def __init__(self, X: np.ndarray) -> None:
        self.X, self.shape, self.dtype, self.read, self.last = X, X.shape, X.dtype, 0, slice(0)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        self.read += 0 if rows == self.last else len(self.X[rows])
        self.last = rows
        return self.X[rows]


def fit(model: str, X: Any, y: np.ndarray, C: float, normalisation: str | None, **more: Any) -> Any:
    """Fit to rows of which about 400 fit into the memory."""
    design = solvers.normalised_design(X, [np.arange(len(y))], normalisation)
    n_columns = y.shape[1] if y.ndim == 2 else len(np.unique(y))
    return MODELS[model](C=C, **more.pop("settings", {})).fit_design(
        design, y, memory=800 * 4 * (X.shape[1] + 1 + 4 * n_columns), **more
    )


def objective(model: str, fitted: Any, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the objective of each unit."""
    return np.atleast_1d({"svm": hinges, "softmax": entropies}[model](fitted, X, y, weight))


@pytest.mark.parametrize(("C", "normalisation"), [(0.1, None), (30, "l2"), (0.1, "standard")])
@pytest.mark.parametrize("n_classes", [2, 12])
@pytest.mark.parametrize("model", MODELS)
def test_the_minimum_is_that_of_rows_in_memory(model, n_classes, C, normalisation):
    X, y = codes(3000, 40, n_classes)
    y = np.where(np.arange(3000) < 2700, y % max(2, n_classes // 2), y)  # some classes are rare
    weight = np.random.default_rng(1).integers(0, 4, 3000).astype(float)
    rows = OnDisk(X)
    streamed = fit(model, rows, y, C, normalisation, sample_weight=weight)
    whole = fit(model, X, y, C, normalisation, sample_weight=weight)
    if normalisation == "standard":
        scaler = solvers.fit_scalers(X, [np.arange(3000)])[0]
        X = scaler.transform(X)
    ours, theirs = (objective(model, one, X, y, weight) for one in (streamed, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    passes = int(streamed.n_iter_.max())
    assert rows.read <= 3000 * (passes + 4), "a pass reads each row once"
    assert passes < 200


def test_rows_of_several_labels_and_long_codes_are_learned_too():
    X, Y = multi_label(1500, 300, 6)
    streamed, whole = (fit("svm", rows, Y, 1, "l2") for rows in (OnDisk(X), X))
    apart = abs(streamed.decision_function(X) - whole.decision_function(X))
    assert apart.max() < 0.02


def test_a_sample_has_every_class_and_stands_for_all_rows():
    X, y = codes(4000, 20, 4)
    y = np.where(np.arange(4000) < 3990, y % 2, y)
    loss = solvers.losses.squared_hinge(y, np.ones((4000, 1), np.float32), 4)
    whole = solvers.descent.Objective(solvers.normalised_design(OnDisk(X), [np.arange(4000)], "l2"), loss)
    sample = draw_sample(whole, 200)
    counts = np.bincount(sample.loss.labels)
    assert (counts[2:] == np.bincount(y)[2:]).all(), "all of a rare class"
    np.testing.assert_allclose(np.bincount(sample.loss.labels, sample.loss.weights[:, 0]), np.bincount(y), rtol=1e-5)
    assert abs(counts.sum() - 200) <= 10
    found = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
    assert all(found[row.tobytes()] == k for row, k in zip(sample.design.X, sample.loss.labels, strict=True))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("model", MODELS)
def test_large_codes_and_a_large_c_have_a_factor_too(model):
    """Columns that repeat others, of sums far beyond what float32 tells from the penalty."""
    X, y = codes(1500, 20, 3)
    X = 1000 * np.repeat(X, 2, axis=1)
    streamed = fit(model, OnDisk(X), y, 1000, None, settings={"max_iter": 20, "tol": 1e-2})
    assert streamed.score(X, y) > 0.8


def test_too_few_passes_are_said():
    X, y = codes(3000, 40, 12)
    with pytest.warns(ConvergenceWarning, match="did not converge within 2 iterations"):
        fit("svm", OnDisk(X), y, 30, "l2", settings={"max_iter": 2})
