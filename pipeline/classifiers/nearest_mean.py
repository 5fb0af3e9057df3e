"""The nearest class mean, as a linear classifier."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data


class NearestClassMean(LinearClassifierMixin, BaseEstimator):
    """Predict the class whose mean code is nearest, as "SimpleShot" (Wang et al., arXiv:1911.04623, 2019) does.

    Of ||x - m||² only 2 x·m - ||m||² differs between classes, so the classifier is linear: the margin of a class with
    the mean m is x·m - ½ ||m||². scikit-learn's NearestCentroid scores by each feature's variance within the classes,
    which one image per class does not have.

    Fitted: `coef_` (n_classes, d), or (1, d) for two classes; `intercept_`; `classes_`.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Take the mean of each class.

        X: (n, d) float32 or float64; y: (n,) labels of two classes or more; sample_weight: (n,) >= 0 of the rows.
        """
        rows, labels = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(labels)
        weights = _check_sample_weight(sample_weight, rows, dtype=rows.dtype)
        self.classes_ = np.unique(labels)
        own = [labels == label for label in self.classes_]
        means = np.stack([np.average(rows[each], axis=0, weights=weights[each]) for each in own])
        intercepts = -0.5 * (means**2).sum(1)
        if len(means) == 2:  # scikit-learn keeps one row for two classes, whose margins are then -f and f
            means, intercepts = ((values[1:] - values[:1]) / 2 for values in (means, intercepts))
        self.coef_, self.intercept_ = means, intercepts
        return self
