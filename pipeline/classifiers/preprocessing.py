"""What is done to codes before a classifier, beyond scikit-learn's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.preprocessing import Normalizer


def signed_root(X: np.ndarray) -> np.ndarray:
    """Return sign(x) √|x| of each number: bursts of one feature count less."""
    return np.sign(X) * np.sqrt(np.abs(X))


class SignedRootRows:
    """Rows that lie on disk, whose signed roots are taken when a slice of them is asked for."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __getitem__(self, part: slice) -> np.ndarray:
        return signed_root(self.rows[part])


def signed_root_rows(X: Any) -> Any:
    """Return the signed root of codes: of an array at once, of rows on disk when they are read."""
    return signed_root(X) if isinstance(X, np.ndarray) else SignedRootRows(X)


class SignedRoot(Normalizer):
    """Take the signed square root of each number, then bring each row to length 1.

    The power transform of Razavian et al., "CNN features off-the-shelf" (2014).
    """

    def transform(self, X: np.ndarray, copy: bool | None = None) -> np.ndarray:
        """Return the normalised rows."""
        return super().transform(signed_root(X), copy)
