"""Correct a trained classifier for other shares of the classes, by images without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from sklearn.pipeline import Pipeline

from pipeline import errors
from pipeline.classifiers import solvers

STEPS, TOLERANCE = 1000, 1e-8
"""Most steps of EM, and the change of a share below which it ends."""

SINGULAR = 0.02
"""Smallest singular value of the confusion matrix, with columns of sum 1, by which shares can be told."""


@dataclass(frozen=True)
class Evidence:
    """What shares of k classes are estimated from, all of it as margins by a classifier of a source.

    held_out: (n, k) of source images that the classifier did not see; labels: (n,) int64 of these; new: (m, k) of the
    target's images; temperature: at which softmax(margins / temperature) are probabilities, by held_out.
    """

    held_out: np.ndarray
    labels: np.ndarray
    new: np.ndarray
    temperature: float

    @property
    def prior(self) -> np.ndarray:
        """(k,), the share of each class among the source's images."""
        counts = np.bincount(self.labels, minlength=self.new.shape[1])
        shares: np.ndarray = counts / counts.sum()
        return shares


def estimate_by_em(evidence: Evidence) -> np.ndarray:
    """Return the shares (k,) of classes that make the target's images likeliest, by the probabilities of each.

    "Adjusting the outputs of a classifier to new a priori probabilities" (Saerens et al., Neural Computation 2002).
    """
    probabilities = np.exp(solvers.log_probabilities(evidence.new.astype(np.float64), evidence.temperature))
    shares = prior = evidence.prior
    for _ in range(STEPS):
        weighted = probabilities * (shares / prior)
        before, shares = shares, (weighted / weighted.sum(1, keepdims=True)).mean(0)
        if np.abs(shares - before).max() < TOLERANCE:
            break
    return shares


def estimate_by_confusion(evidence: Evidence) -> np.ndarray:
    """Return the shares (k,) of classes under which the predictions would be as often each class as they are.

    "Detecting and correcting for label shift with black box predictors" (Lipton et al., ICML 2018), as the least
    squares of no negative share. Raises PipelineError where the classifier confuses classes too much.
    """
    k = evidence.new.shape[1]
    confusion = np.zeros((k, k))
    np.add.at(confusion, (evidence.held_out.argmax(1), evidence.labels), 1)
    confusion /= confusion.sum(0)
    if np.linalg.svd(confusion, compute_uv=False)[-1] < SINGULAR:
        raise errors.PipelineError(
            "The classifier confuses classes too much to tell their shares (bbse). Take --adapt em, or a better layer."
        )
    predicted = np.bincount(evidence.new.argmax(1), minlength=k) / len(evidence.new)
    shares: np.ndarray = nnls(confusion, predicted)[0]
    return shares / shares.sum()


METHODS: dict[str, Callable[[Evidence], np.ndarray]] = {"em": estimate_by_em, "bbse": estimate_by_confusion}
"""The ways to estimate the shares of classes, by name."""


def full_margins(margins: np.ndarray) -> np.ndarray:
    """Return margins (n, k) from those of scikit-learn's classifiers, which are (n,) of two classes."""
    return margins if margins.ndim == 2 else np.stack([np.zeros_like(margins), margins], 1)


def temperature_of(margins: np.ndarray, y: np.ndarray) -> float:
    """Return the temperature at which softmax(margins / temperature) fits labels (n,) best; margins: (n, k)."""
    judge = solvers.LinearSVM()
    judge.classes_ = np.arange(margins.shape[1])
    return judge.calibrate(margins.astype(np.float64), y).temperature_


def correct(pipeline: Pipeline, ratios: np.ndarray, temperature: float, kept: np.ndarray) -> Pipeline:
    """Return a linear classifier of some classes, for other shares of these.

    ratios: (k,), new share over old share of each class that the classifier knows; temperature: of its margins; kept:
    (k,) int64, the number of each class in the new classifier, -1 of those that it does not have. Of probabilities that
    are softmax(margins / temperature), Bayes' rule asks for a constant more of each margin.
    """
    normalise, classifier = copy.deepcopy(pipeline[0]), copy.deepcopy(pipeline[-1])
    coefficients, intercepts = classifier.coef_, classifier.intercept_
    if len(coefficients) == 1:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    rows = np.flatnonzero(kept >= 0)
    rows = rows[np.argsort(kept[rows])]
    coefficients = coefficients[rows]
    intercepts = (intercepts[rows] + temperature * np.log(ratios[rows])).astype(intercepts.dtype)
    if len(rows) == 2:
        coefficients, intercepts = coefficients[1:] - coefficients[:1], intercepts[1:] - intercepts[:1]
    classifier.coef_, classifier.intercept_, classifier.classes_ = coefficients, intercepts, kept[rows]
    return Pipeline([("normalise", normalise), ("classify", classifier)])
