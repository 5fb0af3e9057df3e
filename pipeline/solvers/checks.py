"""What the solvers refuse, in clear sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK = 1024


def samples(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Return codes (n, d) of a float dtype, class numbers (n,) and how many classes there are."""
    X, y = np.asarray(X), np.asarray(y)
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float32)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"X must be (n, d) and y (n,), but they are {X.shape} and {y.shape}.")
    finite(X)
    classes, labels = np.unique(y, return_inverse=True)
    two_classes(classes)
    return X, labels, len(classes)


def finite(X: np.ndarray) -> None:
    """Refuse codes that are not finite, naming the first row of them."""
    for start in range(0, len(X), BLOCK):
        bad = ~np.isfinite(X[start : start + BLOCK]).all(1)
        if bad.any():
            raise ValueError(f"Input X contains NaN or infinity, first in row {start + int(bad.argmax())}. Remove it.")


def two_classes(classes: np.ndarray) -> None:
    """Refuse labels of one class."""
    if len(classes) < 2:
        raise ValueError(f"All labels are of one class, {classes[0]!r}. A classifier needs two classes or more.")


def weighted_classes(labels: np.ndarray, weights: np.ndarray) -> None:
    """Refuse weights (n, n_problems) that leave a problem rows of one class."""
    for problem, column in enumerate(weights.T):
        if len(np.unique(labels[column > 0])) < 2:
            which = f" of fold {problem}" if weights.shape[1] > 1 else ""
            raise ValueError(f"The rows{which} that have a weight are of one class. A classifier needs two classes.")


def weights(sample_weight: Any, X: np.ndarray) -> np.ndarray:
    """Return weights (n,) >= 0 of the dtype of X; 1 where none are given."""
    n = X.shape[0]
    if sample_weight is None:
        return np.ones(n, X.dtype)
    given = np.full(n, sample_weight, X.dtype) if np.isscalar(sample_weight) else np.asarray(sample_weight, X.dtype)
    if given.shape != (n,):
        raise ValueError(
            f"sample_weight must have one weight for each of the {n} rows, but its shape is {given.shape}."
        )
    if not np.isfinite(given).all() or (given < 0).any():
        row = int((~(given >= 0) | ~np.isfinite(given)).argmax())
        raise ValueError(f"sample_weight must be finite and not negative, but that of row {row} is {given[row]}.")
    if not given.any():
        raise ValueError("Every sample_weight is zero: no row is left to learn from.")
    return given


def path(folds: Sequence[tuple[np.ndarray, np.ndarray]], Cs: Sequence[float]) -> None:
    """Refuse folds without rows, and values of C that are none."""
    if not len(folds) or not all(len(fitted) and len(held) for fitted, held in folds):
        raise ValueError("Each fold needs rows to fit and rows held out, and there must be a fold.")
    if not len(Cs) or not all(np.isfinite(C) and C > 0 for C in Cs):
        raise ValueError(f"Each C must be positive, and there must be one, but they are {list(Cs)}.")
