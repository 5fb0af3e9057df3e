"""The regularisation path, cross-validated: every fold, class and value of C in one descent with warm starts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from pipeline.classifiers.solvers import checks
from pipeline.classifiers.solvers.descent import Objective, Solution, Spectrum, Tolerance, solve_path
from pipeline.classifiers.solvers.design import NARROW, Design, compact
from pipeline.classifiers.solvers.losses import LOSSES, PENALISED, Loss
from pipeline.codes.spec import Rows

Fold = tuple[np.ndarray, np.ndarray]
"""Rows to fit and rows held out, (m,) int64 each."""

STATE_SHARE = 0.5
"""Size of the scores and coefficients that are solved together, as a share of the codes' bytes, if none is given."""

LEAST_STATE = 1 << 27
"""Their size in bytes, at least, if none is given."""


LEARNED = 0.99
"""Share of the rows of a fit from which on it has learned them by heart: a larger C can teach it nothing more."""


@dataclass(frozen=True)
class PathResult:
    """What cross-validation found, an array (n_Cs, n_folds) each, in the order of Cs, which are those that were tried.

    accuracy: share of the held-out rows that are predicted correctly; for multi-label rows, the mean of the labels'
    average precisions; iterations: the most that a class took; converged: whether all classes did; seconds: (n_Cs,)
    wall-clock time.
    """

    Cs: np.ndarray
    accuracy: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class PathSolver:
    """A linear classifier that is fitted on all folds, and for all values of C, together.

    model: "svm" or "softmax"; normalisation: None, "l2" (each row to length 1) or "standard" (each column to mean 0 and
    variance 1 over the rows that the fold fits); tol, max_iter: as in `LinearSVM`; memory: bytes that scores and
    coefficients may take, by default half of the codes' bytes, and 128 MB at least;
    exhaustive: whether hopeless values of C are tried as well.
    """

    model: str = "svm"
    normalisation: str | None = None
    tol: float = 2e-5
    max_iter: int = 1000
    memory: int | None = None
    exhaustive: bool = False

    def cross_validate(
        self,
        X: Rows,
        y: np.ndarray,
        folds: Sequence[Fold],
        Cs: Sequence[float],
        sample_weight: ArrayLike | None = None,
    ) -> PathResult:
        """Fit each fold at each value of C, and score it on the rows that it holds out.

        X: (n, d) float32 codes, in memory or on disk, which are not copied; y: (n,) labels, or (n, n_labels) of 0 and 1
        for the SVM; sample_weight: (n,) of the rows in the fits, while each held-out row counts once.

        Values of C are hopeless, and not tried, above one at which every fold has learned its rows by heart and does
        clearly worse on the others than at a smaller C. They are most of the work: the larger C, the more iterations.
        (This takes all folds and classes together; where the memory holds only some of them, all values are tried.)
        """
        checks.path(folds, Cs)
        task = self._task(X, y, folds)
        order = np.argsort(Cs, kind="stable")
        tally = task.tally(len(Cs))
        ascending = [float(Cs[index]) for index in order]
        for problems, loss, solutions in task.solve(ascending, checks.weights(sample_weight, task.X)):
            together = (len(problems), len(loss.classes)) == (len(folds), task.n_columns)
            for place, solution in enumerate(solutions):
                tally.add(int(order[place]), problems, loss, solution)
                if together and not self.exhaustive and tally.is_hopeless(order[: place + 1], solution):
                    order = order[: place + 1]
                    break
        return tally.result(np.asarray(Cs, float), np.sort(order))

    def held_out_scores(
        self, X: Rows, y: np.ndarray, folds: Sequence[Fold], C: float, sample_weight: ArrayLike | None = None
    ) -> np.ndarray:
        """Return the scores (n, n_columns) of each row by the fold that held it out, NaN where none did.

        X, y, sample_weight: as in `cross_validate`; two classes have one column, that of the second class.
        """
        checks.path(folds, [C])
        task = self._task(X, y, folds)
        scores = np.full((len(task.labels), task.n_classes), np.nan, task.X.dtype)
        for problems, loss, solutions in task.solve([float(C)], checks.weights(sample_weight, task.X)):
            outputs = next(solutions).Z.reshape(len(task.labels), len(problems), -1)
            for place, problem in enumerate(problems):
                held = folds[problem][1]
                scores[held[:, None], loss.classes] = outputs[held, place]
        if task.labels.ndim == 2 or task.n_classes > 2:
            return scores
        return scores[:, 1:] if self.model == "svm" else scores[:, 1:] - scores[:, :1]

    def _task(self, X: Rows, y: np.ndarray, folds: Sequence[Fold]) -> _Task:
        rows, labels, n_classes = checks.samples(X, y)
        if self.model not in LOSSES:
            raise ValueError(f"Unknown model {self.model!r}. Choose from: {', '.join(LOSSES)}.")
        return _Task(self, rows, labels, n_classes, folds)


@dataclass(frozen=True)
class _Task:
    """A solver with its input: codes (n, d), labels (n,) or (n, n_labels), and folds."""

    solver: PathSolver
    X: Rows
    labels: np.ndarray
    n_classes: int
    folds: Sequence[Fold]

    @property
    def n_columns(self) -> int:
        """Number of columns of a fold: one for each class, but of two classes the SVM has one."""
        one_column = self.labels.ndim == 1 and self.solver.model == "svm" and self.n_classes == 2
        return 1 if one_column else self.n_classes

    def tally(self, n_Cs: int) -> _Tally:
        """Return an empty tally of the results."""
        if self.labels.ndim == 2:
            return _PrecisionTally(self.labels, self.folds, n_Cs)
        return _AccuracyTally(self.labels, self.folds, n_Cs, floor=0.0 if self.n_columns == 1 else -np.inf)

    def solve(self, Cs: Sequence[float], sample_weight: np.ndarray) -> Iterator[tuple[range, Loss, Iterator[Solution]]]:
        """Yield some problems, their loss, and their solutions for each C; Cs: ascending; sample_weight: (n,)."""
        weights = np.zeros((len(self.labels), len(self.folds)), self.X.dtype)
        for fold, (fitted, _) in enumerate(self.folds):
            weights[fitted, fold] = sample_weight[fitted]
        checks.weighted_classes(self.labels, weights)
        design = normalised_design(self.X, [fitted for fitted, _ in self.folds], self.solver.normalisation)
        tolerance = Tolerance(self.solver.tol, self.solver.max_iter)
        for problems, part, loss in self._parts(design, weights):
            objective = Objective(part, loss, PENALISED[self.solver.model])
            spectrum = Spectrum.estimate(part, loss.weights.mean(1))
            yield problems, loss, solve_path(objective, spectrum, Cs, tolerance)

    def _parts(self, design: Design, weights: np.ndarray) -> Iterator[tuple[range, Design, Loss]]:
        """Yield problems, their design and their loss, as many together as the memory allows."""
        separate = design.scale is not None and design.n * NARROW <= design.X.shape[1]  # each has a rotation of its own
        design = design if separate else compact(design)[0]
        n_columns = column_budget(design, self.solver.memory)
        step = 1 if separate else max(1, n_columns // self.n_classes)
        for first in range(0, weights.shape[1], step):
            problems = slice(first, min(first + step, weights.shape[1]))
            part = compact(design.of_problems(problems))[0] if separate else design.of_problems(problems)
            loss = LOSSES[self.solver.model](self.labels, weights[:, problems], self.n_classes)
            for piece in loss.split(n_columns):
                yield range(problems.start, problems.stop), part, piece


def normalised_design(X: Rows, fitted: Sequence[np.ndarray], normalisation: str | None) -> Design:
    """Return the design of normalised codes; fitted: for each problem the rows that its statistics are of."""
    if normalisation is None:
        return Design(X)
    if normalisation == "l2":
        lengths = np.concatenate([_lengths(X[block]) for block in Design(X).blocks])
        return Design(X, row_scale=1 / np.where(lengths == 0, 1, lengths))
    if normalisation != "standard":
        raise ValueError(f"Unknown normalisation {normalisation!r}. Choose from: l2, standard.")
    scalers = fit_scalers(X, fitted)
    centre = np.array([scaler.mean_ for scaler in scalers], X.dtype)
    return Design(X, centre=centre, scale=np.array([1 / scaler.scale_ for scaler in scalers], X.dtype))


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def fit_scalers(X: Rows, fitted: Sequence[np.ndarray]) -> list[StandardScaler]:
    """Fit scikit-learn's scaler to the rows of each problem, in one pass over the codes, block by block."""
    scalers = [StandardScaler() for _ in fitted]
    masks = [np.isin(np.arange(X.shape[0]), rows) for rows in fitted]
    for block in Design(X).blocks:
        values = X[block]
        for scaler, mask in zip(scalers, masks, strict=True):
            if mask[block].any():
                scaler.partial_fit(values[mask[block]])
    return scalers


def column_budget(design: Design, memory: int | None) -> int:
    """Return how many columns fit into the memory for them: the scores four times, the coefficients eight times."""
    itemsize = design.X.dtype.itemsize
    if memory is None:
        memory = max(LEAST_STATE, int(STATE_SHARE * design.n * design.X.shape[1] * itemsize))
    return max(32, int(memory / itemsize / (4 * design.n + 8 * min(design.n, design.width))))


class _Tally(ABC):
    """Results of each fold at each C, which come in for some classes at a time."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int) -> None:
        self.labels, self.held = labels, [held for _, held in folds]
        self.iterations = np.zeros((n_Cs, len(folds)), int)
        self.converged = np.ones((n_Cs, len(folds)), bool)
        self.seconds = np.zeros(n_Cs)
        self.clock = time.perf_counter()

    def add(self, index: int, problems: range, loss: Loss, solution: Solution) -> None:
        """Take in the scores of some classes of some problems, for the C at `index`."""
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
    def accuracy(self) -> np.ndarray:
        """Return the accuracy of each fold at each C, (n_Cs, n_folds)."""

    def is_hopeless(self, tried: np.ndarray, solution: Solution) -> bool:
        """Return whether no C above those tried can be the best one; solution: of the last one, all its columns."""
        return False

    def result(self, Cs: np.ndarray, tried: np.ndarray) -> PathResult:
        """Return the results of the values that were tried; tried: their indices in Cs, ascending."""
        results = (self.accuracy(), self.iterations, self.converged, self.seconds)
        return PathResult(Cs[tried], *(values[tried] for values in results))


class _AccuracyTally(_Tally):
    """The share of held-out rows that are predicted correctly; only scores above `floor` make a prediction."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int, floor: float) -> None:
        super().__init__(labels, folds, n_Cs)
        self.highest = [np.full((n_Cs, len(held)), floor) for held in self.held]
        self.predicted = [np.zeros((n_Cs, len(held)), int) for held in self.held]
        self.fitted = [fitted for fitted, _ in folds]

    def count(self, index: int, problem: int, scores: np.ndarray, classes: np.ndarray) -> None:
        """Predict the class of the highest score so far."""
        highest, predicted = self.highest[problem][index], self.predicted[problem][index]
        top = scores.max(1)
        predicted[top > highest] = classes[scores.argmax(1)][top > highest]
        np.maximum(highest, top, out=highest)

    def is_hopeless(self, tried: np.ndarray, solution: Solution) -> bool:
        """Return whether the folds have learned their rows, and do clearly worse on the others than at a smaller C."""
        accuracy = self.accuracy()[tried]
        shares = [len(held) / len(fitted) for fitted, held in zip(self.fitted, self.held, strict=True)]
        best = accuracy.mean(1).argmax()
        return clearly_lower(accuracy[-1], accuracy[best], float(np.mean(shares))) and self.has_learned(solution)

    def has_learned(self, solution: Solution) -> bool:
        """Return whether every fold predicts nearly all the rows correctly that it was fitted to."""
        scores = solution.Z.reshape(len(solution.Z), len(self.fitted), -1)
        for fold, rows in enumerate(self.fitted):
            own = scores[rows, fold]
            predicted = own[:, 0] > 0 if own.shape[1] == 1 else own.argmax(1)
            if (predicted == self.labels[rows]).mean() < LEARNED:
                return False
        return True

    def accuracy(self) -> np.ndarray:
        """Return the share of correct predictions."""
        pairs = zip(self.predicted, self.held, strict=True)
        return np.array([(predicted == self.labels[held]).mean(1) for predicted, held in pairs]).T


def clearly_lower(accuracies: np.ndarray, others: np.ndarray, share: float) -> bool:
    """Return whether accuracies (n_folds,) are lower than others in every fold, and by more than chance explains.

    share: rows held out for each row fitted. The t-test of Nadeau and Bengio ("Inference for the generalization error",
    2003), whose variance allows for the rows that folds have in common; one-sided, at the level of 2.5%.
    """
    differences, n = others - accuracies, len(accuracies)
    if n < 2 or differences.min() <= 0:
        return False
    error = differences.std(ddof=1) * np.sqrt(1 / n + share)
    return bool(differences.mean() > stats.t.ppf(0.975, n - 1) * error)


class _PrecisionTally(_Tally):
    """The mean of the labels' average precisions, over the labels that a held-out row has."""

    def __init__(self, labels: np.ndarray, folds: Sequence[Fold], n_Cs: int) -> None:
        super().__init__(labels, folds, n_Cs)
        self.precision = np.full((n_Cs, len(folds), labels.shape[1]), np.nan)

    def count(self, index: int, problem: int, scores: np.ndarray, classes: np.ndarray) -> None:
        """Rank the held-out rows by the scores of each label."""
        truth = self.labels[self.held[problem]]
        for column, label in enumerate(classes):
            if truth[:, label].any():
                precision = average_precision_score(truth[:, label], scores[:, column])
                self.precision[index, problem, label] = precision

    def accuracy(self) -> np.ndarray:
        """Return the mean average precision."""
        return np.nanmean(self.precision, axis=2)
