"""Scikit-learn estimators of dense codes: the squared-hinge SVM, and multinomial logistic regression."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from pipeline.classifiers.solvers import checks, streamed
from pipeline.classifiers.solvers.arrays import array_namespace, to_namespace
from pipeline.classifiers.solvers.descent import Objective, Spectrum, Tolerance, solve_path
from pipeline.classifiers.solvers.design import Design, compact
from pipeline.classifiers.solvers.losses import CrossEntropy, Loss, SquaredHinge, cross_entropy, squared_hinge


class _Linear(LinearClassifierMixin, BaseEstimator):
    """A linear classifier fitted by `descent.minimise`.

    A subclass has a loss, and `penalised`: whether the intercept counts in the penalty.
    """

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

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the classifier.

        X: (n, d) float32 or float64, whose dtype is that of the computation; y: (n,) labels, or (n, n_labels) of 0 and
        1 for the SVM; sample_weight: (n,) >= 0, factors of C.
        """
        y = y if y is None else np.asarray(y)
        multi_label = y is not None and y.ndim == 2 and y.shape[1] > 1
        X, labels = validate_data(self, X, y, dtype=[np.float32, np.float64], order="C", multi_output=multi_label)
        check_classification_targets(labels)
        return self.fit_design(Design(X), labels, sample_weight)

    def fit_design(
        self, design: Design, y: np.ndarray, sample_weight: ArrayLike | None = None, memory: int | None = None
    ) -> Self:
        """Fit the classifier to codes that a design normalises, in memory or on disk; otherwise as `fit`.

        The fitted classifier takes codes that are normalised in the same way. memory: bytes for what is kept of codes
        on disk, see `streamed.minimise`.
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
        self._keep(*self._solve(replace(design, X=X, intercept=self.fit_intercept), loss, memory))
        return self

    def _factors(self, y: np.ndarray) -> np.ndarray:
        """Return the factor of the weight of each class."""
        if y.ndim == 1:
            return compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        if self.class_weight is not None:
            raise ValueError("class_weight is for one label per row, and these rows have several. Leave it out.")
        return np.ones(y.shape[1])

    def _loss(self, labels: np.ndarray, weights: np.ndarray, factors: np.ndarray) -> Loss:
        raise NotImplementedError

    def _solve(self, design: Design, loss: Loss, memory: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (n_columns, width) and the iterations; warn if they have not converged."""
        with array_namespace(self.device) as xp:
            if xp is not np:
                loss, design = to_namespace(loss, xp), to_namespace(design, xp)
            tolerance = Tolerance(self.tol, self.max_iter)
            if xp is np and streamed.is_for(design, loss.units * loss.columns, memory):
                solution = streamed.minimise(Objective(design, loss, self.penalised), self.C, tolerance, memory)
                W = solution.W
            else:
                design, restore = compact(replace(design, X=design.X[:]))
                spectrum = Spectrum.estimate(design, loss.weights.mean(1))
                solution = next(solve_path(Objective(design, loss, self.penalised), spectrum, [self.C], tolerance))
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


def log_probabilities(margins: np.ndarray, temperature: float) -> np.ndarray:
    """Return the logarithms of probabilities (n, n_classes): the log softmax of margins, divided by a temperature.

    margins: (n,) of two classes, (n, n_classes) of more.
    """
    columns = margins if margins.ndim == 2 else np.stack([np.zeros_like(margins), margins], 1)
    return log_softmax(columns / temperature, axis=1)


class LinearSVM(_Linear):
    """L2-regularised squared-hinge SVM, one class against the rest, on dense codes.

    For each class it minimises ½ ||(w, b)||² + C Σ cᵢ max(0, 1 - yᵢ (w·xᵢ + b))², as
    LinearSVC(loss="squared_hinge", intercept_scaling=1) does: the intercept b is the coefficient of a column of ones,
    and is penalised like the others. All classes are solved together by preconditioned conjugate gradients on matrix
    products (see `descent.minimise`), in the dtype of X.

    C: weight of the loss; tol: how far, relative to itself, the objective may be above its minimum; max_iter:
    iterations of conjugate gradients; class_weight: None, "balanced" or {class: factor of C}, which for three or more
    classes weighs the rows of a class where it is compared with the rest, and there alone (as LIBLINEAR does);
    fit_intercept: whether there is a b; device: None for NumPy, or a torch device.

    Where y is (n, n_labels) of 0 and 1, each label is learned independently, against its absence.

    Fitted: `coef_` (n_classes, d), or (1, d) for two classes; `intercept_`; `classes_`; `n_iter_` (n_classes,). After
    `calibrate` there is predict_proba.
    """

    penalised = True

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class of each row (n,), or the labels that it has, (n, n_labels) of 0 and 1."""
        if not getattr(self, "multilabel_", False):
            return super().predict(X)
        return (self.decision_function(X) > 0).astype(int)

    def calibrate(self, margins: np.ndarray, y: np.ndarray) -> Self:
        """Fit the temperature at which the probabilities of held-out rows have the lowest negative log-likelihood.

        margins: (n,) of two classes, (n, n_classes) of more, of rows that were held out; y: (n,) their labels. One
        number cannot change which class has the highest probability (Guo et al., "On calibration of modern neural
        networks", 2017).
        """
        labels = np.searchsorted(self.classes_, y)

        def negative_log_likelihood(log_temperature: float) -> float:
            logarithms = log_probabilities(margins, np.exp(log_temperature))
            return -float(logarithms[np.arange(len(labels)), labels].mean())

        minimum = minimize_scalar(negative_log_likelihood, bounds=(-7, 7), method="bounded")
        self.temperature_ = float(np.exp(minimum.x))
        return self

    @available_if(_calibrated)
    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return each class's probability, (n, n_classes); only a calibrated classifier has this method."""
        return np.exp(log_probabilities(self.decision_function(X), self.temperature_))

    def _loss(self, labels: np.ndarray, weights: np.ndarray, factors: np.ndarray) -> SquaredHinge:
        self.multilabel_ = labels.ndim == 2
        loss, factors = squared_hinge(labels, weights, len(factors)), factors.astype(weights.dtype)
        if self.class_weight is None:
            return loss
        others = np.ones_like(factors) if len(factors) > 2 else factors[:1]
        return replace(loss, boost=np.stack([others, factors[-len(others) :]], 1))


class Softmax(_Linear):
    """Multinomial logistic regression with an L2 penalty, on dense codes.

    It minimises ½ ||W||² + C Σ cᵢ (log Σₖ exp fₖ(xᵢ) - f of the label), f = W x + b, as LogisticRegression does: the
    intercepts are not penalised, and two classes share one w. It is solved by preconditioned conjugate gradients on
    matrix products (see `descent.minimise`), in the dtype of X.

    The parameters are those of `LinearSVM`; class_weight is a factor of the weight of each row of the class.

    Fitted: `coef_` (n_classes, d), or (1, d) for two classes; `intercept_`; `classes_`; `n_iter_` (1,).
    """

    penalised = False

    def _loss(self, labels: np.ndarray, weights: np.ndarray, factors: np.ndarray) -> CrossEntropy:
        return cross_entropy(labels, weights * factors.astype(weights.dtype)[labels][:, None], len(factors))

    def _keep(self, W: np.ndarray, iterations: np.ndarray) -> None:
        super()._keep(W[1:] - W[:1] if len(self.classes_) == 2 else W, iterations)

    def predict_log_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the logarithm of each class's probability, (n, n_classes)."""
        return log_probabilities(self.decision_function(X), 1.0)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return each class's probability, (n, n_classes)."""
        return np.exp(self.predict_log_proba(X))
