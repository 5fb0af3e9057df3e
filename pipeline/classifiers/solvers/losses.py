"""The losses of linear classifiers over many columns of scores, with their derivatives along a direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from pipeline.classifiers.solvers.arrays import Array, Namespace

Derivatives = Callable[[Array], tuple[Array, Array]]
"""Takes t and returns first and second derivative by t, (n_units,) each, of a loss along a direction."""


@dataclass(frozen=True)
class Loss(ABC):
    """A sum over rows of a convex function of the scores.

    labels: (n,) class numbers, or (n, n_labels) of 0 and 1; weights: (n, n_problems), 0 for the rows that a problem
    (a fold) holds out; classes: the class numbers that have a column each; xp: numpy or torch.

    A unit is a problem that is independent of the others: one class of one fold for the SVM, one fold for softmax.
    Scores are (rows, n_columns), the columns of the units side by side; `rows` is a slice of all the rows.
    """

    labels: Array
    weights: Array
    classes: Array
    xp: Namespace = field(default=np, kw_only=True)

    @property
    @abstractmethod
    def columns(self) -> int:
        """Number of columns of a unit."""

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.classes) * int(self.weights.shape[1]) // self.columns

    @property
    def problems(self) -> Array:
        """The problem of each unit, (n_units,)."""
        return self.xp.arange(self.units) * self.columns // len(self.classes)

    @abstractmethod
    def split(self, n_columns: int) -> list[Self]:
        """Return losses of at most `n_columns` columns, where the loss can be split; their sum is this one."""

    @abstractmethod
    def value(self, rows: slice, Z: Array, units: Array) -> tuple[Array, Array]:
        """Return the loss of each unit (n_units,) and its derivative by the scores, (rows, n_columns)."""

    @abstractmethod
    def along(self, rows: slice, Z: Array, D: Array, units: Array) -> Derivatives:
        """Return the derivatives of the loss at Z + t D by t; t: (n_columns,)."""

    @abstractmethod
    def curvatures(self, rows: slice, Z: Array, units: Array) -> Array:
        """Return the second derivative by each score alone, (rows, n_columns)."""

    def curvature(self, rows: slice, Z: Array, units: Array) -> Array:
        """Return the curvatures summed over rows, and their mean over a unit's columns, (n_units,)."""
        return self.curvatures(rows, Z, units).sum(0).reshape(len(units), self.columns).mean(1)


@dataclass(frozen=True)
class SquaredHinge(Loss):
    """Sum over rows of c max(0, 1 - s f)² for each class against the rest, s = 1 for the class and -1 for the others.

    boost: (n_classes, 2), factors of the weights of the others and of the class itself, as LIBLINEAR applies class
    weights. Unit p * len(classes) + k is class k of problem p.
    """

    boost: Array = None

    @property
    def columns(self) -> int:
        """One."""
        return 1

    def split(self, n_columns: int) -> list[Self]:
        """Return a loss for each group of classes."""
        size = max(1, n_columns // self.weights.shape[1])
        spans = [slice(first, first + size) for first in range(0, len(self.classes), size)]
        boosts = [None if self.boost is None else self.boost[span] for span in spans]
        return [replace(self, classes=self.classes[s], boost=b) for s, b in zip(spans, boosts, strict=True)]

    @cached_property
    def _roots(self) -> Array:
        return self.xp.sqrt(self.weights)

    def _signed_roots(self, rows: slice, units: Array) -> Array:
        """Return s √c, (rows, n_units): the root of a row's loss is √c - s √c f, where that is positive."""
        classes = units % len(self.classes)
        positive = self._positive(rows, self.classes[classes])
        roots = self._roots[rows][:, units // len(self.classes)]
        if self.boost is not None:
            others, own = self.xp.sqrt(self.boost[classes]).T
            roots = roots * self.xp.where(positive, own, others)
        return self.xp.where(positive, roots, -roots)

    def _positive(self, rows: slice, classes: Array) -> Array:
        """Return which rows are of a class, or have it among their labels: (rows, n_classes) bool."""
        if self.labels.ndim == 2:
            return self.labels[rows][:, classes] > 0
        return self.labels[rows, None] == classes

    def value(self, rows: slice, Z: Array, units: Array) -> tuple[Array, Array]:
        """Return losses and residuals."""
        signed = self._signed_roots(rows, units)
        roots = self.xp.clip(abs(signed) - signed * Z, 0, None)
        signed *= roots
        signed *= -2
        return self.xp.einsum("ij,ij->j", roots, roots), signed

    def along(self, rows: slice, Z: Array, D: Array, units: Array) -> Derivatives:
        """Return the derivatives of a piecewise quadratic."""
        signed = self._signed_roots(rows, units)
        start, step = abs(signed) - signed * Z, signed * D
        buffer = self.xp.empty_like(start)

        def derivatives(t: Array) -> tuple[Array, Array]:
            self.xp.multiply(step, t, out=buffer)
            self.xp.subtract(start, buffer, out=buffer)
            roots = self.xp.clip(buffer, 0, None, out=buffer)
            first = -2 * self.xp.einsum("ij,ij->j", roots, step)
            inside = self.xp.multiply(step, roots > 0, out=buffer)
            return first, 2 * self.xp.einsum("ij,ij->j", inside, inside)

        return derivatives

    def curvatures(self, rows: slice, Z: Array, units: Array) -> Array:
        """Return twice the weight of the rows within the margin."""
        signed = self._signed_roots(rows, units)
        signed *= abs(signed) > signed * Z
        signed *= signed
        return 2 * signed


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
        """Return this loss: the classes of a problem depend on one another."""
        return [self]

    def _probabilities(self, Z: Array, units: Array) -> tuple[Array, Array]:
        """Return probabilities (rows, n_units, n_classes), and the logarithms (rows, n_units) of their denominators.

        scipy.special has them for NumPy alone, and would compute the exponentials twice.
        """
        Z = Z.reshape(len(Z), len(units), self.columns)
        highest = self.xp.amax(Z, 2)[:, :, None]
        P = self.xp.exp(Z - highest)
        total = P.sum(2)[:, :, None]
        P /= total
        return P, (highest + self.xp.log(total))[:, :, 0]

    def value(self, rows: slice, Z: Array, units: Array) -> tuple[Array, Array]:
        """Return losses and residuals."""
        P, logs = self._probabilities(Z, units)
        weights, labels, numbers = self.weights[rows][:, units], self.labels[rows], self.xp.arange(len(Z))
        own = Z.reshape(P.shape)[numbers, :, labels]
        P[numbers, :, labels] -= 1
        P *= weights[:, :, None]
        return (weights * (logs - own)).sum(0), P.reshape(Z.shape)

    def along(self, rows: slice, Z: Array, D: Array, units: Array) -> Derivatives:
        """Return the derivatives: the mean of D by the probabilities, less its value at the label; its variance."""
        weights, steps = self.weights[rows][:, units], D.reshape(len(D), len(units), self.columns)
        own = steps[self.xp.arange(len(D)), :, self.labels[rows]]

        def derivatives(t: Array) -> tuple[Array, Array]:
            P, _ = self._probabilities(Z + t * D, units)
            P *= steps
            mean = P.sum(2)
            P *= steps
            return (weights * (mean - own)).sum(0), (weights * (P.sum(2) - mean**2)).sum(0)

        return derivatives

    def curvatures(self, rows: slice, Z: Array, units: Array) -> Array:
        """Return p (1 - p) of each class."""
        P, _ = self._probabilities(Z, units)
        P *= 1 - P
        P *= self.weights[rows][:, units][:, :, None]
        return P.reshape(Z.shape)


def squared_hinge(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> SquaredHinge:
    """Return the loss of the SVM; of two classes only the second has a column, of two labels per row both have."""
    one_column = labels.ndim == 1 and n_classes == 2
    return SquaredHinge(labels, weights, np.array([1]) if one_column else np.arange(n_classes))


def cross_entropy(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> CrossEntropy:
    """Return the loss of softmax.

    Of two classes scikit-learn has one column w; here there are two, ±w/2, which cost half the penalty, hence half the
    loss.
    """
    if labels.ndim == 2:
        raise ValueError("Softmax takes one label per row, and these rows have several. Take the SVM.")
    return CrossEntropy(labels, weights * weights.dtype.type(0.5 if n_classes == 2 else 1), np.arange(n_classes))


LOSSES: dict[str, Callable[[np.ndarray, np.ndarray, int], Loss]] = {"svm": squared_hinge, "softmax": cross_entropy}
"""The losses by the name of their classifier, from labels (n,), weights (n, n_problems) and the number of classes."""

PENALISED = {"svm": True, "softmax": False}
"""Whether the intercept counts in the penalty: as in LinearSVC it does, as in LogisticRegression it does not."""
