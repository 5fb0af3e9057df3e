"""The regularisation path, cross-validated: every fold, class and value of C in one descent with warm starts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from pipeline.classifiers.solvers import checks
from pipeline.classifiers.solvers.descent import Objective, Solution, Spectrum, solve_path
from pipeline.classifiers.solvers.design import NARROW, Design, compact
from pipeline.classifiers.solvers.losses import LOSSES, PENALISED, Loss

Fold = tuple[np.ndarray, np.ndarray]

STATE_SHARE = 0.5
"""Share of the codes' bytes that the scores and coefficients of what is solved at once may take."""


@dataclass(frozen=True)
class Path:
    """What a search found, an array (n_Cs, n_folds) each.

    accuracy: share of the held-out rows that are right; for several labels a row, the mean of their average
    precisions; iterations: the most that a class took; converged: all classes did; seconds: (n_Cs,) wall time.
    """

    Cs: np.ndarray
    accuracy: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    seconds: np.ndarray


def search_path(
    X: Any,
    y: np.ndarray,
    folds: Sequence[Fold],
    Cs: Sequence[float],
    model: str = "svm",
    *,
    normalise: str | None = None,
    sample_weight: np.ndarray | None = None,
    tol: float = 2e-5,
    max_iter: int = 1000,
    memory: int | None = None,
) -> Path:
    """Cross-validate a linear classifier at each value of C.

    X: (n, d) float32 codes, not copied: an array, or whatever has a shape and a dtype and gives rows for a slice;
    y: (n,) labels, or (n, n_labels) of 0 and 1 for the SVM; folds: rows to fit and rows held out, one pair a fold;
    model: "svm" or "softmax"; normalise: None, "l2" (each row to length 1) or "standard" (each column to mean 0 and
    variance 1 over the rows that the fold fits); sample_weight: (n,) of the rows in the fit, a held-out row counts
    once whatever it weighs; tol, max_iter: as in `LinearSVM`; memory: bytes that scores and coefficients may take
    (half of what the codes take, if not given). Arrays in the result are in the order of Cs.
    """
    checks.path(folds, Cs)
    X, labels, n_classes = checks.samples(X, y)
    kind = _Precision if labels.ndim == 2 else _Accuracy
    tally = kind(labels, folds, len(Cs), floor=0.0 if model == "svm" and n_classes == 2 else -np.inf)
    order = np.argsort(Cs, kind="stable")
    ascending = [float(Cs[index]) for index in order]
    task = _Task(X, labels, n_classes, folds, model, normalise, memory)
    for problems, loss, solutions in task.solve(ascending, checks.weights(sample_weight, X), tol, max_iter):
        for index, solution in zip(order, solutions, strict=True):
            tally.add(int(index), problems, loss, solution)
    return tally.path(np.asarray(Cs, float))


def held_out_scores(
    X: Any,
    y: np.ndarray,
    folds: Sequence[Fold],
    C: float,
    model: str = "svm",
    *,
    normalise: str | None = None,
    tol: float = 2e-5,
    max_iter: int = 1000,
    memory: int | None = None,
) -> np.ndarray:
    """Return the scores (n, n_columns) of each row by the fold that held it out, NaN where none did.

    The arguments are those of `search`; two classes have one column, that of the second.
    """
    checks.path(folds, [C])
    X, labels, n_classes = checks.samples(X, y)
    scores = np.full((len(labels), n_classes), np.nan, X.dtype)
    task = _Task(X, labels, n_classes, folds, model, normalise, memory)
    for problems, loss, solutions in task.solve([float(C)], checks.weights(None, X), tol, max_iter):
        found = next(solutions).Z.reshape(len(labels), len(problems), -1)
        for place, problem in enumerate(problems):
            held = folds[problem][1]
            scores[held[:, None], loss.classes] = found[held, place]
    if labels.ndim == 2 or n_classes > 2:
        return scores
    return scores[:, 1:] if model == "svm" else scores[:, 1:] - scores[:, :1]


@dataclass(frozen=True)
class _Task:
    """What is solved: codes, labels (n,) or (n, n_labels), folds, and how; `memory` in bytes, or None."""

    X: Any
    labels: np.ndarray
    n_classes: int
    folds: Sequence[Fold]
    model: str
    normalise: str | None
    memory: int | None

    def solve(
        self, Cs: Sequence[float], each: np.ndarray, tol: float, max_iter: int
    ) -> Iterator[tuple[range, Loss, Iterator[Solution]]]:
        """Yield some problems, their loss, and their solutions for each C, ascending; each: (n,) weights."""
        if self.model not in LOSSES:
            raise ValueError(f"Unknown model {self.model!r}. Choose from: {', '.join(LOSSES)}.")
        weights = np.zeros((len(self.labels), len(self.folds)), self.X.dtype)
        for fold, (fitted, _) in enumerate(self.folds):
            weights[fitted, fold] = each[fitted]
        checks.weighted_classes(self.labels, weights)
        design = normalised_design(self.X, [fitted for fitted, _ in self.folds], self.normalise)
        for problems, part, loss in self._parts(design, weights):
            objective = Objective(part, loss, PENALISED[self.model])
            spectrum = Spectrum.of(part, loss.weights.mean(1))
            yield problems, loss, solve_path(objective, spectrum, Cs, tol, max_iter)

    def _parts(self, design: Design, weights: np.ndarray) -> Iterator[tuple[range, Design, Loss]]:
        """Yield problems, their design and their loss, so many at once as memory allows."""
        apart = design.scale is not None and design.n * NARROW <= design.X.shape[1]
        design = design if apart else compact(design)[0]
        n_columns = _column_budget(design, self.memory)
        step = 1 if apart else max(1, n_columns // self.n_classes)
        for first in range(0, weights.shape[1], step):
            problems = slice(first, min(first + step, weights.shape[1]))
            part = compact(design.of(problems))[0] if apart else design.of(problems)
            loss = LOSSES[self.model](self.labels, weights[:, problems], self.n_classes)
            for some in loss.split(n_columns):
                yield range(problems.start, problems.stop), part, some


def normalised_design(X: Any, fitted: Sequence[np.ndarray], how: str | None) -> Design:
    """Return the design of normalised codes; fitted: the rows whose statistics each problem takes."""
    if how is None:
        return Design(X)
    if how == "l2":
        lengths = np.concatenate([_lengths(X[block]) for block in Design(X).blocks])
        return Design(X, row_scale=1 / np.where(lengths == 0, 1, lengths))
    if how != "standard":
        raise ValueError(f"Unknown normalisation {how!r}. Choose from: l2, standard.")
    found = fit_scalers(X, fitted)
    centre = np.array([scaler.mean_ for scaler in found], X.dtype)
    return Design(X, centre=centre, scale=np.array([1 / scaler.scale_ for scaler in found], X.dtype))


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def fit_scalers(X: Any, fitted: Sequence[np.ndarray]) -> list[StandardScaler]:
    """Fit scikit-learn's scaler to the rows of each problem, in one pass over the codes, block by block."""
    found = [StandardScaler() for _ in fitted]
    inside = [np.isin(np.arange(X.shape[0]), rows) for rows in fitted]
    for block in Design(X).blocks:
        values = X[block]
        for scaler, mask in zip(found, inside, strict=True):
            if mask[block].any():
                scaler.partial_fit(values[mask[block]])
    return found


def _column_budget(design: Design, memory: int | None) -> int:
    """Return how many columns fit into the memory for them: the scores four times, the coefficients eight times."""
    size = STATE_SHARE * design.n * design.X.shape[1] if memory is None else memory / design.X.dtype.itemsize
    return max(32, int(size / (4 * design.n + 8 * min(design.n, design.width))))


class _Tally(ABC):
    """How well each fold does at each C, as the scores of classes come in."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int, floor: float) -> None:
        self.labels, self.held, self.floor = labels, [held for _, held in folds], floor
        self.iterations = np.zeros((n_Cs, len(folds)), int)
        self.converged = np.ones((n_Cs, len(folds)), bool)
        self.seconds = np.zeros(n_Cs)
        self.clock = time.perf_counter()

    def add(self, index: int, problems: range, loss: Loss, solution: Solution) -> None:
        """Count the scores of some classes of some problems."""
        shape = (len(problems), -1)
        iterations, converged = solution.iterations.reshape(shape), solution.converged.reshape(shape)
        for place, problem in enumerate(problems):
            scores = solution.Z.reshape(len(solution.Z), *shape)[self.held[problem], place]
            self.count(index, problem, scores, loss.classes)
            self.iterations[index, problem] = max(self.iterations[index, problem], iterations[place].max())
            self.converged[index, problem] &= converged[place].all()
        now = time.perf_counter()
        self.seconds[index] += now - self.clock
        self.clock = now

    @abstractmethod
    def count(self, index: int, problem: int, scores: np.ndarray, classes: np.ndarray) -> None:
        """Take in the scores (n_held, n_classes) of some classes, of the held-out rows of a problem."""

    @abstractmethod
    def reached(self) -> np.ndarray:
        """Return what each C reached on each fold, (n_Cs, n_folds)."""

    def path(self, Cs: np.ndarray) -> Path:
        """Return the result."""
        return Path(Cs, self.reached(), self.iterations, self.converged, self.seconds)


class _Accuracy(_Tally):
    """Which class each held-out row is given: the share that is right."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int, floor: float) -> None:
        super().__init__(labels, folds, n_Cs, floor)
        self.best = [np.full((n_Cs, len(held)), floor) for held in self.held]
        self.given = [np.zeros((n_Cs, len(held)), int) for held in self.held]

    def count(self, index: int, problem: int, scores: np.ndarray, classes: np.ndarray) -> None:
        """Let the highest score so far name the class."""
        best, given = self.best[problem][index], self.given[problem][index]
        top = scores.max(1)
        given[top > best] = classes[scores.argmax(1)][top > best]
        np.maximum(best, top, out=best)

    def reached(self) -> np.ndarray:
        """Return accuracies."""
        right = [(given == self.labels[held]).mean(1) for given, held in zip(self.given, self.held, strict=True)]
        return np.array(right).T


class _Precision(_Tally):
    """The average precision of each label, where a fold holds out a row that has it: their mean."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int, floor: float) -> None:
        super().__init__(labels, folds, n_Cs, floor)
        self.precision = np.full((n_Cs, len(folds), labels.shape[1]), np.nan)

    def count(self, index: int, problem: int, scores: np.ndarray, classes: np.ndarray) -> None:
        """Rank the held-out rows by the scores of each label."""
        truth = self.labels[self.held[problem]]
        for column, label in enumerate(classes):
            if truth[:, label].any():
                found = average_precision_score(truth[:, label], scores[:, column])
                self.precision[index, problem, label] = found

    def reached(self) -> np.ndarray:
        """Return mean average precisions."""
        return np.nanmean(self.precision, axis=2)
