"""The losses of linear classifiers over many columns of scores, with their slopes and curvatures along a direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Loss(ABC):
    """A sum over rows of a convex function of the scores.

    labels: (n,) class numbers; weights: (n, n_problems), 0 for the rows that a problem (a fold) holds out;
    classes: the class numbers that have a column each; xp: numpy, or torch.

    A unit is what is solved on its own: one class of one problem for the SVM, one problem for softmax. Scores are
    (rows, n_columns), the columns of the given units side by side; `rows` is a slice of all the rows.
    """

    labels: Any
    weights: Any
    classes: Any
    xp: Any = field(default=np, kw_only=True)

    @property
    @abstractmethod
    def columns(self) -> int:
        """Number of columns of a unit."""

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.classes) * int(self.weights.shape[1]) // self.columns

    @property
    def problems(self) -> Any:
        """The problem of each unit: (n_units,)."""
        return self.xp.arange(self.units) * self.columns // len(self.classes)

    def on(self, xp: Any) -> Self:
        """Return this loss in another namespace, on its default device."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **{name: xp.asarray(value) for name, value in arrays.items()}, xp=xp)

    @abstractmethod
    def split(self, n_columns: int) -> list[Self]:
        """Return losses of at most so many columns, where it can be split, which add up to this one."""

    @abstractmethod
    def value(self, rows: slice, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return the loss of each unit (n_units,) and its derivative by the scores, (rows, n_columns)."""

    @abstractmethod
    def slopes(self, rows: slice, Z: Any, D: Any, units: Any) -> tuple[Any, Any]:
        """Return the first and second derivative of the loss along D at Z, (n_units,) each."""

    @abstractmethod
    def curvature(self, rows: slice, Z: Any, units: Any) -> Any:
        """Return the second derivative by the scores, summed over rows, meaned over a unit's columns: (n_units,)."""


@dataclass(frozen=True)
class SquaredHinge(Loss):
    """Sum over rows of c max(0, 1 - s f)² for each class against the rest, s = 1 for the class and -1 for the others.

    boost: (n_classes, 2), factors of the weights of the others and of the class itself, as LIBLINEAR applies class
    weights. Unit p * len(classes) + k is class k of problem p.
    """

    boost: Any = None

    @property
    def columns(self) -> int:
        """One."""
        return 1

    def split(self, n_columns: int) -> list[Self]:
        """Return losses of some of the classes each."""
        each = max(1, n_columns // self.weights.shape[1])
        spans = [slice(first, first + each) for first in range(0, len(self.classes), each)]
        boosts = [None if self.boost is None else self.boost[span] for span in spans]
        return [replace(self, classes=self.classes[s], boost=b) for s, b in zip(spans, boosts, strict=True)]

    def _margins(self, rows: slice, Z: Any, units: Any) -> tuple[Any, Any, Any]:
        """Return signs, weights and hinges max(0, 1 - s f), (rows, n_units) each."""
        own = self.labels[rows, None] == self.classes[units % len(self.classes)]
        signs = self.xp.asarray(own * 2 - 1, dtype=Z.dtype)
        weights = self.weights[rows][:, units // len(self.classes)]
        if self.boost is not None:
            others, ones = self.boost[units % len(self.classes)].T
            weights = weights * self.xp.where(own, ones, others)
        return signs, weights, self.xp.clip(1 - signs * Z, 0, None)

    def value(self, rows: slice, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return losses and residuals."""
        signs, weights, hinges = self._margins(rows, Z, units)
        pulls = weights * hinges
        return (pulls * hinges).sum(0), -2 * signs * pulls

    def slopes(self, rows: slice, Z: Any, D: Any, units: Any) -> tuple[Any, Any]:
        """Return first and second derivatives along D."""
        signs, weights, hinges = self._margins(rows, Z, units)
        pushes = weights * D
        return -2 * (signs * hinges * pushes).sum(0), 2 * (pushes * D * (hinges > 0)).sum(0)

    def curvature(self, rows: slice, Z: Any, units: Any) -> Any:
        """Return twice the weight of the rows within the margin."""
        _, weights, hinges = self._margins(rows, Z, units)
        return 2 * (weights * (hinges > 0)).sum(0)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Sum over rows of c (log sum exp f - f of the label): multinomial logistic regression.

    classes: all of them, 0 to n_classes - 1. Unit p is problem p, its classes side by side.
    """

    @property
    def columns(self) -> int:
        """One for each class."""
        return len(self.classes)

    def split(self, n_columns: int) -> list[Self]:
        """Return this: the classes of a problem hang together."""
        return [self]

    def _chances(self, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return the probabilities (rows, n_units, n_classes) and the logarithms of what normalises them."""
        Z = Z.reshape(len(Z), len(units), self.columns)
        highest = self.xp.amax(Z, 2)[:, :, None]
        P = self.xp.exp(Z - highest)
        total = P.sum(2)[:, :, None]
        P /= total
        return P, (highest + self.xp.log(total))[:, :, 0]

    def value(self, rows: slice, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return losses and residuals."""
        P, logs = self._chances(Z, units)
        weights, labels, each = self.weights[rows][:, units], self.labels[rows], self.xp.arange(len(Z))
        own = Z.reshape(P.shape)[each, :, labels]
        P[each, :, labels] -= 1
        P *= weights[:, :, None]
        return (weights * (logs - own)).sum(0), P.reshape(Z.shape)

    def slopes(self, rows: slice, Z: Any, D: Any, units: Any) -> tuple[Any, Any]:
        """Return first and second derivatives along D."""
        P, _ = self._chances(Z, units)
        D, weights = D.reshape(P.shape), self.weights[rows][:, units]
        own = D[self.xp.arange(len(Z)), :, self.labels[rows]]
        P *= D
        mean = P.sum(2)
        P *= D
        return (weights * (mean - own)).sum(0), (weights * (P.sum(2) - mean**2)).sum(0)

    def curvature(self, rows: slice, Z: Any, units: Any) -> Any:
        """Return the mean of p (1 - p) over classes."""
        P, _ = self._chances(Z, units)
        return (self.weights[rows][:, units] * (1 - (P * P).sum(2))).sum(0) / self.columns


def hinge(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> SquaredHinge:
    """Return the loss of the SVM; of two classes the second alone has a column."""
    return SquaredHinge(labels, weights, np.arange(n_classes) if n_classes > 2 else np.array([1]))


def entropy(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> CrossEntropy:
    """Return the loss of softmax.

    Of two classes scikit-learn has one column w; with two, ±w/2 costs half the penalty, hence half the loss.
    """
    return CrossEntropy(labels, weights * weights.dtype.type(0.5 if n_classes == 2 else 1), np.arange(n_classes))


LOSSES: dict[str, Callable[[np.ndarray, np.ndarray, int], Loss]] = {"svm": hinge, "softmax": entropy}
"""The losses by the name of their classifier, from labels (n,), weights (n, n_problems) and the number of classes."""

PENALISED = {"svm": True, "softmax": False}
"""Whether the intercept counts in the penalty: as in LinearSVC it does, as in LogisticRegression it does not."""
