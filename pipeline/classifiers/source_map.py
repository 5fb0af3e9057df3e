"""Each class from the classes that the network itself was trained on: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

FLOATS = (np.float64, np.float32)


class Probabilities(TransformerMixin, BaseEstimator):
    """Turn the scores of a network's own classes into their probabilities, (n, n_source_classes)."""

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Check the scores."""
        validate_data(self, X, dtype=FLOATS)
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return the probabilities."""
        rows: np.ndarray = softmax(validate_data(self, X, dtype=FLOATS, reset=False), axis=1)
        return rows


class OneHot(Probabilities):
    """Turn the scores of a network's own classes into 1 for the highest and 0 for all others."""

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return zeros, and a one in each row."""
        rows = validate_data(self, X, dtype=FLOATS, reset=False)
        return np.eye(rows.shape[1], dtype=rows.dtype)[rows.argmax(1)]


class SourceMap(LinearClassifierMixin, BaseEstimator):
    """Predict by P(class | source class), of which the training images are counted, or which is given.

    With `Probabilities` θ before it, this is the expected empirical predictor of LEEP (Nguyen et al., ICML 2020):
    P(class | image) = Σ P(class | source class) θ(source class). With `OneHot` it names the class that most training
    images of the same predicted source class have, as the NCE of Tran et al. (ICCV 2019) measures. A source class that
    no training image is predicted as says what the training images say on the whole.

    given: pairs of a source class and the class that it stands for, by their numbers, instead of counting.

    Fitted: `classes_`; `coef_` (n_classes, n_source_classes) in [0, 1], P(class | source class), or for two classes the
    difference of the second and the first, (1, n_source_classes); `intercept_`, zeros.
    """

    def __init__(self, given: Sequence[Sequence[int]] = ()) -> None:
        self.given = given

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Count; X: (n, n_source_classes) in [0, 1]; y: (n,) labels; sample_weight: (n,) >= 0 of the rows."""
        rows, labels = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        own = (labels == self.classes_[:, None]) * _check_sample_weight(sample_weight, rows)
        joint = own @ rows if not len(self.given) else self._count_given(rows.shape[1])
        totals, prior = joint.sum(0), own.sum(1, keepdims=True) / own.sum()
        otherwise = np.zeros_like(prior) if len(self.given) else prior
        conditional = np.where(totals > 0, joint / np.where(totals > 0, totals, 1), otherwise).astype(rows.dtype)
        self.coef_ = conditional if len(conditional) > 2 else conditional[1:] - conditional[:1]
        self.intercept_ = np.zeros(len(self.coef_), rows.dtype)
        return self

    def _count_given(self, n_sources: int) -> np.ndarray:
        """Return (n_classes, n_sources), 1 where a source class stands for a class."""
        pairs = np.asarray(self.given)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.min() < 0 or pairs[:, 0].max() >= n_sources:
            raise ValueError(f"given must be pairs of one of {n_sources} source classes and a class")
        joint = np.zeros((len(self.classes_), n_sources))
        for source, label in pairs:
            joint[self.classes_ == label, source] = 1
        return joint
