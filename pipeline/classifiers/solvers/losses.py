"""The losses of linear classifiers over many columns of scores, with their slopes and curvatures along a direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Loss(ABC):
    """A sum over rows of a convex function of the scores.

    labels: (n,) class numbers, or (n, n_labels) of 0 and 1; weights: (n, n_problems), 0 for the rows that a problem
    (a fold) holds out; classes: the class numbers that have a column each; xp: numpy, or torch.

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
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {name: xp.asarray(value) for name, value in given.items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays, xp=xp)

    @abstractmethod
    def split(self, n_columns: int) -> list[Self]:
        """Return losses of at most so many columns, where it can be split, which add up to this one."""

    @abstractmethod
    def value(self, rows: slice, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return the loss of each unit (n_units,) and its derivative by the scores, (rows, n_columns)."""

    @abstractmethod
    def along(self, rows: slice, Z: Any, D: Any, units: Any) -> Callable[[Any], tuple[Any, Any]]:
        """Return what gives the first and second derivative of the loss along D at Z + t D, (n_units,) each.

        t: (n_columns,).
        """

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

    @cached_property
    def _roots(self) -> Any:
        return self.xp.sqrt(self.weights)

    def _pulls(self, rows: slice, units: Any) -> Any:
        """Return s √c, (rows, n_units): times f, what lowers the root of a row's loss, √c where f = 0."""
        classes = units % len(self.classes)
        own = self._own(rows, self.classes[classes])
        roots = self._roots[rows][:, units // len(self.classes)]
        if self.boost is not None:
            others, ones = self.xp.sqrt(self.boost[classes]).T
            roots = roots * self.xp.where(own, ones, others)
        return self.xp.where(own, roots, -roots)

    def _own(self, rows: slice, classes: Any) -> Any:
        """Return which rows are of a class, or have it among their labels: (rows, n_classes) bool."""
        if self.labels.ndim == 2:
            return self.labels[rows][:, classes] > 0
        return self.labels[rows, None] == classes

    def value(self, rows: slice, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return losses and residuals."""
        pulls = self._pulls(rows, units)
        roots = self.xp.clip(abs(pulls) - pulls * Z, 0, None)
        pulls *= roots
        pulls *= -2
        return self.xp.einsum("ij,ij->j", roots, roots), pulls

    def along(self, rows: slice, Z: Any, D: Any, units: Any) -> Callable[[Any], tuple[Any, Any]]:
        """Return the derivatives of a piecewise quadratic."""
        pulls = self._pulls(rows, units)
        start, step = abs(pulls) - pulls * Z, pulls * D
        buffer = self.xp.empty_like(start)

        def slopes(t: Any) -> tuple[Any, Any]:
            self.xp.multiply(step, t, out=buffer)
            self.xp.subtract(start, buffer, out=buffer)
            roots = self.xp.clip(buffer, 0, None, out=buffer)
            first = -2 * self.xp.einsum("ij,ij->j", roots, step)
            inside = self.xp.multiply(step, roots > 0, out=buffer)
            return first, 2 * self.xp.einsum("ij,ij->j", inside, inside)

        return slopes

    def curvature(self, rows: slice, Z: Any, units: Any) -> Any:
        """Return twice the weight of the rows within the margin."""
        pulls = self._pulls(rows, units)
        pulls *= abs(pulls) > pulls * Z
        return 2 * self.xp.einsum("ij,ij->j", pulls, pulls)


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

    def along(self, rows: slice, Z: Any, D: Any, units: Any) -> Callable[[Any], tuple[Any, Any]]:
        """Return mean and variance of D, less its value at the label, by the probabilities."""
        weights, steps = self.weights[rows][:, units], D.reshape(len(D), len(units), self.columns)
        own = steps[self.xp.arange(len(D)), :, self.labels[rows]]

        def slopes(t: Any) -> tuple[Any, Any]:
            P, _ = self._chances(Z + t * D, units)
            P *= steps
            mean = P.sum(2)
            P *= steps
            return (weights * (mean - own)).sum(0), (weights * (P.sum(2) - mean**2)).sum(0)

        return slopes

    def curvature(self, rows: slice, Z: Any, units: Any) -> Any:
        """Return the mean of p (1 - p) over classes."""
        P, _ = self._chances(Z, units)
        return (self.weights[rows][:, units] * (1 - (P * P).sum(2))).sum(0) / self.columns


def hinge(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> SquaredHinge:
    """Return the loss of the SVM; of two classes the second alone has a column, of two labels a row each has one."""
    one = labels.ndim == 1 and n_classes == 2
    return SquaredHinge(labels, weights, np.array([1]) if one else np.arange(n_classes))


def entropy(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> CrossEntropy:
    """Return the loss of softmax.

    Of two classes scikit-learn has one column w; with two, ±w/2 costs half the penalty, hence half the loss.
    """
    if labels.ndim == 2:
        raise ValueError("Softmax takes one label a row, and these rows have several. Take the SVM.")
    return CrossEntropy(labels, weights * weights.dtype.type(0.5 if n_classes == 2 else 1), np.arange(n_classes))


LOSSES: dict[str, Callable[[np.ndarray, np.ndarray, int], Loss]] = {"svm": hinge, "softmax": entropy}
"""The losses by the name of their classifier, from labels (n,), weights (n, n_problems) and the number of classes."""

PENALISED = {"svm": True, "softmax": False}
"""Whether the intercept counts in the penalty: as in LinearSVC it does, as in LogisticRegression it does not."""
