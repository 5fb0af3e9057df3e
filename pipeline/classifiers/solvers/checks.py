"""Input that the solvers refuse, each with a sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.codes.spec import Rows

BLOCK = 1024
"""Number of rows that are checked at a time."""


def samples(X: Rows | ArrayLike, y: ArrayLike) -> tuple[Rows, np.ndarray, int]:
    """Return codes (n, d) of a float dtype, class numbers (n,) int64 or labels (n, n_labels), the number of classes.

    X: (n, d), an array or rows on disk, which stay there; y: (n,) labels of any type, or (n, n_labels) of 0 and 1.
    """
    rows: Any = X if hasattr(X, "shape") and hasattr(X, "dtype") else np.asarray(X)
    y = np.asarray(y)
    if rows.dtype not in (np.float32, np.float64):
        rows = np.asarray(rows, np.float32)
    if len(rows.shape) != 2 or y.shape[:1] != rows.shape[:1] or y.ndim not in (1, 2):
        raise ValueError(f"X must be (n, d) and y (n,) or (n, n_labels), but they are {rows.shape} and {y.shape}.")
    finite(rows)
    if y.ndim == 2:
        multi_label(y)
        return rows, y, y.shape[1]
    classes, labels = np.unique(y, return_inverse=True)
    two_classes(classes)
    return rows, labels, len(classes)


def multi_label(y: np.ndarray) -> None:
    """Refuse labels (n, n_labels) other than 0 and 1, and columns that are the same in all rows."""
    if not np.isin(y, (0, 1)).all():
        raise ValueError("Multi-label y must be a matrix of 0 and 1, with a column per label.")
    counts = (y > 0).sum(0)
    for column in np.flatnonzero((counts == 0) | (counts == len(y)))[:1]:
        which = "No row has" if counts[column] == 0 else "Every row has"
        raise ValueError(f"{which} the label of column {column}, so it cannot be learned. Take the column out.")


def finite(X: Rows) -> None:
    """Refuse codes that are not finite, and name the first row that has such a value."""
    for start in range(0, X.shape[0], BLOCK):
        bad = ~np.isfinite(X[start : start + BLOCK]).all(1)
        if bad.any():
            raise ValueError(f"Input X contains NaN or infinity, first in row {start + int(bad.argmax())}. Remove it.")


def two_classes(classes: np.ndarray) -> None:
    """Refuse labels of one class."""
    if len(classes) < 2:
        raise ValueError(f"All labels are of one class, {classes[0]!r}. A classifier needs two classes or more.")


def weighted_classes(labels: np.ndarray, weights: np.ndarray) -> None:
    """Refuse weights (n, n_problems) that leave a problem with rows of one class.

    Of multi-label rows a fold may lack a label: there its column says that no row has the label.
    """
    if labels.ndim == 2:
        return
    for problem, column in enumerate(weights.T):
        if len(np.unique(labels[column > 0])) < 2:
            which = f" of fold {problem}" if weights.shape[1] > 1 else ""
            raise ValueError(f"The rows{which} that have a weight are of one class. A classifier needs two classes.")


def weights(sample_weight: ArrayLike | None, X: Rows) -> np.ndarray:
    """Return weights (n,) >= 0 of the dtype of X, 1 each for None."""
    n = X.shape[0]
    if sample_weight is None:
        return np.ones(n, X.dtype)
    values = np.asarray(sample_weight, X.dtype)
    values = np.full(n, values) if values.ndim == 0 else values
    if values.shape != (n,):
        raise ValueError(
            f"sample_weight must have one weight for each of the {n} rows, but its shape is {values.shape}."
        )
    if not np.isfinite(values).all() or (values < 0).any():
        row = int((~(values >= 0) | ~np.isfinite(values)).argmax())
        raise ValueError(f"sample_weight must be finite and not negative, but that of row {row} is {values[row]}.")
    if not values.any():
        raise ValueError("Every sample_weight is zero: no row is left to learn from.")
    return values


def path(folds: Sequence[tuple[np.ndarray, np.ndarray]], Cs: Sequence[float]) -> None:
    """Refuse folds without rows, and values of C that are not positive and finite."""
    if not len(folds) or not all(len(fitted) and len(held) for fitted, held in folds):
        raise ValueError("Each fold needs rows to fit and rows held out, and there must be a fold.")
    if not len(Cs) or not all(np.isfinite(C) and C > 0 for C in Cs):
        raise ValueError(f"Each C must be positive, and there must be one, but they are {list(Cs)}.")
