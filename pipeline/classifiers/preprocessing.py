"""Normalisations of codes that scikit-learn does not have."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import Normalizer, normalize
from sklearn.utils.validation import validate_data

from pipeline.codes.spec import Rows


def signed_root(X: np.ndarray) -> np.ndarray:
    """Return sign(x) √|x| of each number, so that large values of one feature count less."""
    return np.sign(X) * np.sqrt(np.abs(X))


class SignedRootRows:
    """Rows on disk whose signed roots are taken when a slice of them is read."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.rows.dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Return the signed roots of a slice of the rows."""
        return signed_root(self.rows[rows])


def signed_root_rows(X: Rows) -> Rows:
    """Return the signed root of codes: of an array immediately, of rows on disk when they are read."""
    return signed_root(X) if isinstance(X, np.ndarray) else SignedRootRows(X)


class SignedRoot(Normalizer):
    """Take the signed square root of each number, then scale each row to length 1.

    The power transform of Razavian et al., "CNN features off-the-shelf" (2014).
    """

    def transform(self, X: np.ndarray, copy: bool | None = None) -> np.ndarray:
        """Return the normalised rows."""
        return super().transform(signed_root(X), copy)


class Centred(TransformerMixin, BaseEstimator):
    """Subtract the mean training code, then scale each row to length 1: the CL2N of SimpleShot (Wang et al., 2019).

    Codes after a ReLU lie in a narrow cone; seen from their mean they point in all directions, and cosines tell more.

    Fitted: `mean_` (d,), in the dtype of the codes.
    """

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Take the mean of the rows (n, d)."""
        self.mean_ = validate_data(self, X, dtype=[np.float64, np.float32]).mean(0)
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return the normalised rows."""
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        normalised: np.ndarray = normalize(rows - self.mean_)
        return normalised
