"""Scikit-learn estimators of dense codes: the squared-hinge SVM, and multinomial logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from pipeline.classifiers.solvers import checks
from pipeline.classifiers.solvers.descent import Objective, Spectrum, solve_path
from pipeline.classifiers.solvers.design import Design, compact
from pipeline.classifiers.solvers.losses import CrossEntropy, Loss, SquaredHinge, entropy, hinge


class _Linear(LinearClassifierMixin, BaseEstimator):
    """A linear classifier fitted by `minimise`; a subclass says its loss and whether the intercept is penalised."""

    penalised: bool

    def __init__(
        self,
        C: float = 1.0,
        *,
        tol: float = 2e-5,
        max_iter: int = 1000,
        class_weight: dict[Any, float] | str | None = None,
        fit_intercept: bool = True,
        device: str | None = None,
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the classifier.

        X: (n, d) float32 or float64, computed with as it is; y: (n,) labels; sample_weight: (n,) >= 0, factors of C.
        """
        y = y if y is None else np.asarray(y)
        several = y is not None and y.ndim == 2 and y.shape[1] > 1
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], order="C", multi_output=several)
        check_classification_targets(y)
        return self.fit_design(Design(X), y, sample_weight)

    def fit_design(self, design: Design, y: np.ndarray, sample_weight: Any = None) -> Self:
        """Fit the classifier to codes as a design normalises them, which may lie on disk; otherwise as `fit`.

        What was fitted takes codes that are normalised in the same way.
        """
        for name in ("C", "tol", "max_iter"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but it is {getattr(self, name)!r}.")
        X, labels, n_classes = checks.samples(design.X, y)
        self.n_features_in_ = X.shape[1]
        self.classes_ = np.unique(y) if labels.ndim == 1 else np.arange(n_classes)
        weights = checks.weights(sample_weight, X)
        checks.weighted_classes(labels, weights[:, None])
        loss = self._loss(labels, weights[:, None], self._factors(y))
        self._keep(*self._solve(replace(design, X=X, intercept=self.fit_intercept), loss))
        return self

    def _factors(self, y: np.ndarray) -> np.ndarray:
        """Return the factor of the weight of each class."""
        if y.ndim == 1:
            return compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        if self.class_weight is not None:
            raise ValueError("class_weight is for one label a row, and these rows have several. Leave it out.")
        return np.ones(y.shape[1])

    def _loss(self, labels: np.ndarray, weights: np.ndarray, factors: np.ndarray) -> Loss:
        raise NotImplementedError

    def _solve(self, design: Design, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (n_columns, width) and the iterations; warn if they have not converged."""
        with _array_namespace(self.device) as xp:
            if xp is not np:
                loss, design = loss.on(xp), design.on(xp)
            design, restore = compact(design)
            objective, spectrum = Objective(design, loss, self.penalised), Spectrum.of(design, loss.weights.mean(1))
            solution = next(solve_path(objective, spectrum, [self.C], self.tol, self.max_iter))
            W = restore(solution.W)
        if not solution.converged.all():
            warnings.warn(
                f"{type(self).__name__} did not converge within {self.max_iter} iterations. Raise max_iter or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return (W if xp is np else W.cpu().numpy()).T, solution.iterations

    def _keep(self, W: np.ndarray, iterations: np.ndarray) -> None:
        """Set the attributes of a fitted classifier."""
        self.n_iter_ = iterations
        self.coef_ = np.ascontiguousarray(W[:, : self.n_features_in_])
        self.intercept_ = W[:, -1].copy() if self.fit_intercept else np.zeros(len(W), W.dtype)


def _calibrated(svm: LinearSVM) -> bool:
    return hasattr(svm, "temperature_")


def _log_probabilities(margins: np.ndarray, temperature: float) -> np.ndarray:
    """Return the logarithms of the probabilities (n, n_classes) that margins, divided by a temperature, stand for."""
    columns = margins if margins.ndim == 2 else np.stack([np.zeros_like(margins), margins], 1)
    return log_softmax(columns / temperature, axis=1)


class LinearSVM(_Linear):
    """L2-regularised squared-hinge SVM, one class against the rest, on dense codes.

    For each class it minimises ½ ||(w, b)||² + C Σ cᵢ max(0, 1 - yᵢ (w·xᵢ + b))², as
    LinearSVC(loss="squared_hinge", intercept_scaling=1) does: the intercept b is the coefficient of a column of ones,
    and is penalised like the others. All classes are solved side by side by preconditioned conjugate gradients on
    matrix products (see `minimise`), in the dtype of X.

    C: weight of the loss; tol: how far, relative to itself, the objective may be above its minimum; max_iter: of
    conjugate gradients; class_weight: None, "balanced" or {class: factor of C}, which for three or more classes
    weighs the rows of a class where it stands against the rest, and there alone (as LIBLINEAR does); fit_intercept:
    whether there is a b; device: None for numpy, or a torch device.

    Of several labels a row, y (n, n_labels) of 0 and 1, each is learnt against its absence.

    Fitted: coef_ (n_classes, d), or (1, d) for two classes; intercept_; classes_; n_iter_ (n_classes,). After
    `calibrate` there is predict_proba.
    """

    penalised = True

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of each row (n,), or which labels it has, (n, n_labels) of 0 and 1."""
        if not getattr(self, "multilabel_", False):
            return super().predict(X)
        return (self.decision_function(X) > 0).astype(int)

    def calibrate(self, margins: np.ndarray, y: np.ndarray) -> Self:
        """Let margins become probabilities by the temperature at which these, of rows held out, tell the labels best.

        margins: (n,) of two classes, (n, n_classes) of more; y: (n,) labels. One number cannot change which class
        is first (Guo et al., "On calibration of modern neural networks", 2017).
        """
        labels = np.searchsorted(self.classes_, y)

        def surprise(log_temperature: float) -> float:
            chances = _log_probabilities(margins, np.exp(log_temperature))
            return -float(chances[np.arange(len(labels)), labels].mean())

        self.temperature_ = float(np.exp(minimize_scalar(surprise, bounds=(-7, 7), method="bounded").x))
        return self

    @available_if(_calibrated)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return each class's probability, (n, n_classes); of a calibrated classifier only."""
        return np.exp(_log_probabilities(self.decision_function(X), self.temperature_))

    def _loss(self, labels: np.ndarray, weights: np.ndarray, factors: np.ndarray) -> SquaredHinge:
        self.multilabel_ = labels.ndim == 2
        loss, factors = hinge(labels, weights, len(factors)), factors.astype(weights.dtype)
        if self.class_weight is None:
            return loss
        others = np.ones_like(factors) if len(factors) > 2 else factors[:1]
        return replace(loss, boost=np.stack([others, factors[-len(others) :]], 1))


class Softmax(_Linear):
    """Multinomial logistic regression with an L2 penalty, on dense codes.

    It minimises ½ ||W||² + C Σ cᵢ (log Σₖ exp fₖ(xᵢ) - f of the label), f = W x + b, as LogisticRegression does: the
    intercepts are not penalised, and two classes share one w. Solved by preconditioned conjugate gradients on matrix
    products (see `minimise`), in the dtype of X.

    The parameters are those of `LinearSVM`; class_weight is a factor of the weight of each row of the class.

    Fitted: coef_ (n_classes, d), or (1, d) for two classes; intercept_; classes_; n_iter_ (1,).
    """

    penalised = False

    def _loss(self, labels: np.ndarray, weights: np.ndarray, factors: np.ndarray) -> CrossEntropy:
        return entropy(labels, weights * factors.astype(weights.dtype)[labels][:, None], len(factors))

    def _keep(self, W: np.ndarray, iterations: np.ndarray) -> None:
        super()._keep(W[1:] - W[:1] if len(self.classes_) == 2 else W, iterations)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of each class's probability, (n, n_classes)."""
        return _log_probabilities(self.decision_function(X), 1.0)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return each class's probability, (n, n_classes)."""
        return np.exp(self.predict_log_proba(X))


@contextmanager
def _array_namespace(device: str | None) -> Iterator[Any]:
    """Yield numpy; or torch, with new tensors on the device."""
    if device is None:
        yield np
        return
    import torch  # imported here: without a device none is needed

    with torch.device(device):
        yield torch
