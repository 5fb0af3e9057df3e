"""What the solvers refuse, in clear sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK = 1024


def samples(X: Any, y: Any) -> tuple[Any, np.ndarray, int]:
    """Return codes (n, d) of a float dtype, labels and how many classes there are.

    X: an array, or whatever has a shape and a dtype and gives rows for a slice, which is left where it is;
    the labels are class numbers (n,), or (n, n_labels) of 0 and 1.
    """
    X, y = X if hasattr(X, "shape") and hasattr(X, "dtype") else np.asarray(X), np.asarray(y)
    if X.dtype not in (np.float32, np.float64):
        X = np.asarray(X, np.float32)
    if len(X.shape) != 2 or y.shape[:1] != X.shape[:1] or y.ndim not in (1, 2):
        raise ValueError(f"X must be (n, d) and y (n,) or (n, n_labels), but they are {X.shape} and {y.shape}.")
    finite(X)
    if y.ndim == 2:
        several(y)
        return X, y, y.shape[1]
    classes, labels = np.unique(y, return_inverse=True)
    two_classes(classes)
    return X, labels, len(classes)


def several(y: np.ndarray) -> None:
    """Refuse labels (n, n_labels) other than 0 and 1, and columns where all rows are the same."""
    if not np.isin(y, (0, 1)).all():
        raise ValueError("Several labels a row must be a matrix of 0 and 1, a column a label.")
    counts = (y > 0).sum(0)
    for column in np.flatnonzero((counts == 0) | (counts == len(y)))[:1]:
        which = "No row has" if counts[column] == 0 else "Every row has"
        raise ValueError(f"{which} the label of column {column}. Take the column out: nothing tells it.")


def finite(X: Any) -> None:
    """Refuse codes that are not finite, naming the first row of them."""
    for start in range(0, X.shape[0], BLOCK):
        bad = ~np.isfinite(X[start : start + BLOCK]).all(1)
        if bad.any():
            raise ValueError(f"Input X contains NaN or infinity, first in row {start + int(bad.argmax())}. Remove it.")


def two_classes(classes: np.ndarray) -> None:
    """Refuse labels of one class."""
    if len(classes) < 2:
        raise ValueError(f"All labels are of one class, {classes[0]!r}. A classifier needs two classes or more.")


def weighted_classes(labels: np.ndarray, weights: np.ndarray) -> None:
    """Refuse weights (n, n_problems) that leave a problem rows of one class.

    Where rows have several labels, a fold may lack one: its column then says that no row has it.
    """
    if labels.ndim == 2:
        return
    for problem, column in enumerate(weights.T):
        if len(np.unique(labels[column > 0])) < 2:
            which = f" of fold {problem}" if weights.shape[1] > 1 else ""
            raise ValueError(f"The rows{which} that have a weight are of one class. A classifier needs two classes.")


def weights(sample_weight: Any, X: Any) -> np.ndarray:
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
