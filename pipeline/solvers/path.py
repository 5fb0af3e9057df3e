"""The regularisation path, cross-validated: every fold, class and value of C in one descent with warm starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from pipeline.solvers import checks
from pipeline.solvers.descent import Objective, Solution, Spectrum, path
from pipeline.solvers.design import NARROW, Design, compact
from pipeline.solvers.losses import LOSSES, PENALISED, Loss

Fold = tuple[np.ndarray, np.ndarray]

STATE = 0.5
"""Share of the codes' bytes that the scores and coefficients of what is solved at once may take."""


@dataclass(frozen=True)
class Path:
    """What a search found, an array (n_Cs, n_folds) each.

    accuracy: share of the held-out rows that are right; iterations: the most that a class took; converged: all
    classes did; seconds: (n_Cs,) wall time.
    """

    Cs: np.ndarray
    accuracy: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    seconds: np.ndarray


def search(
    X: np.ndarray,
    y: np.ndarray,
    folds: Sequence[Fold],
    Cs: Sequence[float],
    model: str = "svm",
    *,
    normalise: str | None = None,
    sample_weight: np.ndarray | None = None,
    tol: float = 2e-5,
    max_iter: int = 1000,
) -> Path:
    """Cross-validate a linear classifier at each value of C.

    X: (n, d) float32 codes, not copied; y: (n,) labels; folds: rows to fit and rows held out, one pair a fold;
    model: "svm" or "softmax"; normalise: None, "l2" (each row to length 1) or "standard" (each column to mean 0 and
    variance 1 over the rows that the fold fits); sample_weight: (n,) of the rows in the fit, a held-out row counts
    once whatever it weighs; tol, max_iter: as in `LinearSVM`. Arrays in the result are in the order of Cs.
    """
    if model not in LOSSES:
        raise ValueError(f"Unknown model {model!r}. Choose from: {', '.join(LOSSES)}.")
    checks.path(folds, Cs)
    X, labels, n_classes = checks.samples(X, y)
    each = checks.weights(sample_weight, X)
    weights = np.zeros((len(X), len(folds)), X.dtype)
    for fold, (fitted, _) in enumerate(folds):
        weights[fitted, fold] = each[fitted]
    checks.weighted_classes(labels, weights)
    order = np.argsort(Cs, kind="stable")
    tally = _Tally(labels, folds, len(Cs), floor=0.0 if model == "svm" and n_classes == 2 else -np.inf)
    design = normalised(X, [fitted for fitted, _ in folds], normalise)
    for problems, part, loss in _parts(design, weights, labels, n_classes, model):
        objective = Objective(part, loss, PENALISED[model])
        spectrum = Spectrum.of(part, loss.weights.mean(1))
        ascending = [float(Cs[index]) for index in order]
        for index, solution in zip(order, path(objective, spectrum, ascending, tol, max_iter), strict=True):
            tally.add(int(index), problems, loss, solution)
    return tally.path(np.asarray(Cs, float))


def normalised(X: np.ndarray, fitted: Sequence[np.ndarray], how: str | None) -> Design:
    """Return the design of normalised codes; fitted: the rows whose statistics each problem takes."""
    if how is None:
        return Design(X)
    if how == "l2":
        lengths = np.sqrt(np.concatenate([np.einsum("ij,ij->i", X[b], X[b]) for b in Design(X).blocks]))
        return Design(X, row_scale=1 / np.where(lengths == 0, 1, lengths))
    if how != "standard":
        raise ValueError(f"Unknown normalisation {how!r}. Choose from: l2, standard.")
    scalers = [_scaler(X, rows) for rows in fitted]
    centre = np.array([scaler.mean_ for scaler in scalers], X.dtype)
    return Design(X, centre=centre, scale=np.array([1 / scaler.scale_ for scaler in scalers], X.dtype))


def _scaler(X: np.ndarray, rows: np.ndarray) -> StandardScaler:
    """Fit scikit-learn's scaler block by block, not to copy the rows of a fold."""
    scaler = StandardScaler()
    for block in np.array_split(rows, max(1, len(rows) // 1024)):
        scaler.partial_fit(X[block])
    return scaler


def _parts(
    design: Design, weights: np.ndarray, labels: np.ndarray, n_classes: int, model: str
) -> Iterator[tuple[range, Design, Loss]]:
    """Yield problems, their design and their loss, so many at once as memory allows."""
    apart = design.scale is not None and design.n * NARROW <= design.X.shape[1]
    design = design if apart else compact(design)[0]
    n_columns = _room(design)
    step = 1 if apart else max(1, n_columns // n_classes)
    for first in range(0, weights.shape[1], step):
        problems = slice(first, min(first + step, weights.shape[1]))
        part = compact(design.of(problems))[0] if apart else design.of(problems)
        for loss in LOSSES[model](labels, weights[:, problems], n_classes).split(n_columns):
            yield range(problems.start, problems.stop), part, loss


def _room(design: Design) -> int:
    """Return how many columns fit into the memory for them: the scores four times, the coefficients eight times."""
    size = STATE * design.n * design.X.shape[1]
    return max(32, int(size / (4 * design.n + 8 * min(design.n, design.width))))


class _Tally:
    """Which class each held-out row is given, as the scores of classes come in."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int, floor: float) -> None:
        self.labels, self.held = labels, [held for _, held in folds]
        self.best = [np.full((n_Cs, len(held)), floor) for held in self.held]
        self.given = [np.zeros((n_Cs, len(held)), int) for held in self.held]
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
            self._vote(index, problem, scores, loss.classes)
            self.iterations[index, problem] = max(self.iterations[index, problem], iterations[place].max())
            self.converged[index, problem] &= converged[place].all()
        now = time.perf_counter()
        self.seconds[index] += now - self.clock
        self.clock = now

    def _vote(self, index: int, problem: int, scores: np.ndarray, classes: np.ndarray) -> None:
        best, given = self.best[problem][index], self.given[problem][index]
        top = scores.max(1)
        given[top > best] = classes[scores.argmax(1)][top > best]
        np.maximum(best, top, out=best)

    def path(self, Cs: np.ndarray) -> Path:
        """Return the result."""
        right = [(given == self.labels[held]).mean(1) for given, held in zip(self.given, self.held, strict=True)]
        return Path(Cs, np.array(right).T, self.iterations, self.converged, self.seconds)
