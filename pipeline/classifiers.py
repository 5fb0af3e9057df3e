"""The classifiers of CNN codes: a registry of scikit-learn estimators, and the search for their setting."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline import errors, solvers
from pipeline.errors import PipelineError
from pipeline.normalisers import SignedRoot, signed_root

PATHS = {"svm": 2_000, "softmax": 2_000}
"""The models whose whole path of C is solved at once, and the iterations allowed for it."""

CLASSIFIERS: dict[str, Callable[..., BaseEstimator]] = {
    "svm": partial(solvers.LinearSVM, max_iter=PATHS["svm"]),
    "softmax": partial(solvers.Softmax, max_iter=PATHS["softmax"]),
    "knn": partial(KNeighborsClassifier, metric="cosine"),
    "ridge": RidgeClassifier,
}
"""The linear classifiers by name; the grids of their hyper-parameters stand in params.yaml under the same names."""

NORMALISATIONS: dict[str, Callable[[], BaseEstimator]] = {
    "l2": Normalizer,
    "standard": StandardScaler,
    "sqrt": SignedRoot,
}
"""What is done to the codes first: each row to length 1 (Razavian et al., "CNN features off-the-shelf", 2014), each
column to mean 0 and variance 1, or the signed square root of each number before the rows' length."""

Splits = Sequence[tuple[np.ndarray, np.ndarray]]
Grid = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclass(frozen=True)
class Trial:
    """One setting on one fold. accuracy: share of the held-out images that are right; seconds: of the fit."""

    normalise: str
    parameters: dict[str, Any]
    fold: int
    accuracy: float
    seconds: float
    converged: bool


@dataclass(frozen=True)
class Trained:
    """A fitted pipeline (normalisation, classifier), whether it converged, and the CV table with its chosen row."""

    pipeline: Pipeline
    converged: bool
    chosen: dict[str, Any]
    table: list[dict[str, Any]]


def train(
    X: np.ndarray, y: np.ndarray, model: str, grid: Grid, folds: int, seed: int, groups: np.ndarray | None = None
) -> Trained:
    """Choose normalisation and hyper-parameters by stratified cross-validation, then fit on everything.

    X: (n, d) float32 codes; y: (n,) int64 labels, of the training split only; grid: {normalisation: {parameter:
    values}}; groups: as in `search`. Of equally good settings the first of the grid wins.
    """
    table = cv_table(search(X, y, model, grid, folds, seed, groups))
    chosen = max(table, key=lambda row: row["accuracy"])
    scaler, classifier = NORMALISATIONS[chosen["normalise"]](), CLASSIFIERS[model](**chosen["parameters"])
    pipeline = Pipeline([("normalise", scaler), ("classify", classifier)])
    return Trained(pipeline, fit(pipeline, X, y), chosen, table)


def demand_learnable(y: np.ndarray, classes: Sequence[str], folds: int) -> None:
    """Refuse training labels that cannot be cross-validated, saying why."""
    counts = np.bincount(y, minlength=len(classes))
    present = counts[counts > 0]
    if folds < 2:
        raise PipelineError(f"--folds {folds} does not cross-validate. Take 2 or more.")
    if not len(present):
        raise PipelineError("The codes have no training images. Prepare the dataset with a train split.")
    if len(present) == 1:
        raise PipelineError(f"The training split has one class only, {classes[y[0]]!r}. A classifier needs two.")
    if present.min() < folds:
        raise PipelineError(
            f"The class {classes[int(np.flatnonzero(counts == present.min())[0])]!r} has {present.min()} training "
            f"images, fewer than the {folds} folds. Add images, or take --folds {max(2, present.min())}."
        )


def search(
    X: np.ndarray, y: np.ndarray, model: str, grid: Grid, folds: int, seed: int, groups: np.ndarray | None = None
) -> list[Trial]:
    """Cross-validate every setting of the grid on the same folds.

    groups: (n,) of rows that stand in the same fold, the views of an image; a group has one label.
    """
    splits = split(y, folds, seed, groups)
    trials: list[Trial] = []
    for normalise, values in grid.items():
        along_path = model in PATHS and set(values) == {"C"}
        search_one = _search_path if along_path else _search_folds
        trials += search_one(X, y, splits, model, normalise, values)
    return trials


def split(y: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> Splits:
    """Return the rows to fit and those held out, by fold, each with its share of every class; groups stay whole."""
    if groups is None:
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y))
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(first, y[first])
    return [(np.flatnonzero(np.isin(group, a)), np.flatnonzero(np.isin(group, b))) for a, b in parts]


def _search_path(
    X: np.ndarray, y: np.ndarray, splits: Splits, model: str, normalise: str, values: Mapping[str, Sequence[Any]]
) -> list[Trial]:
    """Solve all folds, classes and values of C side by side."""
    name = normalise
    if normalise == "sqrt":
        X, normalise = signed_root(X), "l2"
    found = solvers.search(X, y, splits, values["C"], model, normalise=normalise, max_iter=PATHS[model])
    return [
        Trial(
            name,
            {"C": C},
            fold,
            accuracy=float(found.accuracy[place, fold]),
            seconds=float(found.seconds[place]) / len(splits),
            converged=bool(found.converged[place, fold]),
        )
        for place, C in enumerate(values["C"])
        for fold in range(len(splits))
    ]


def _search_folds(
    X: np.ndarray, y: np.ndarray, splits: Splits, model: str, normalise: str, values: Mapping[str, Sequence[Any]]
) -> list[Trial]:
    """Fit each setting on each fold; the folds run in parallel, one process a core."""
    jobs = [
        joblib.delayed(_fit_fold)(X, y, rows, fold, CLASSIFIERS[model], normalise, points(values))
        for fold, rows in enumerate(splits)
    ]
    return [trial for trials in joblib.Parallel(n_jobs=-1)(jobs) for trial in trials]


def _fit_fold(
    X: np.ndarray,
    y: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    fold: int,
    build: Callable[..., BaseEstimator],
    normalise: str,
    settings: Sequence[dict[str, Any]],
) -> list[Trial]:
    """Fit all settings of one normalisation on one fold, whose codes are normalised once."""
    fitted, held = rows
    scaler = NORMALISATIONS[normalise]().fit(X[fitted])
    codes, held_codes = scaler.transform(X[fitted]), scaler.transform(X[held])
    trials = []
    for parameters in settings:
        start = time.perf_counter()
        classifier = build(**parameters)
        converged = fit(classifier, codes, y[fitted])
        accuracy = float((classifier.predict(held_codes) == y[held]).mean())
        trials.append(Trial(normalise, parameters, fold, accuracy, time.perf_counter() - start, converged))
    return trials


def fit(classifier: BaseEstimator, X: np.ndarray, y: np.ndarray) -> bool:
    """Fit, and return whether the solver converged; its warning is kept for the summary, any other is passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(X, y)
    late = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in late:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return not late


def cv_table(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return a row for each setting, in the grid's order: the mean and deviation of its accuracy over folds."""
    settings: dict[str, list[Trial]] = {}
    for trial in trials:
        settings.setdefault(json.dumps([trial.normalise, trial.parameters]), []).append(trial)
    return [
        {
            "normalise": folds[0].normalise,
            "parameters": folds[0].parameters,
            "accuracy": float(np.mean([trial.accuracy for trial in folds])),
            "deviation": float(np.std([trial.accuracy for trial in folds], ddof=1)),
            "folds": [trial.accuracy for trial in folds],
            "seconds": round(sum(trial.seconds for trial in folds), 3),
            "converged": sum(trial.converged for trial in folds),
        }
        for folds in settings.values()
    ]


def demand_grid(model: str, grid: Any) -> None:
    """Refuse a model that is unknown, or a grid that is not {normalisation: {parameter: values that it takes}}."""
    if model not in CLASSIFIERS:
        raise errors.unknown("model", model, CLASSIFIERS)
    if not isinstance(grid, Mapping) or not grid:
        raise PipelineError("The grid must read {normalisation: {parameter: [values]}}, like {l2: {C: [0.1, 1, 10]}}.")
    for name, values in grid.items():
        if name not in NORMALISATIONS:
            raise errors.unknown("normalisation", str(name), NORMALISATIONS)
        if not isinstance(values, Mapping) or not all(isinstance(v, list) and v for v in values.values()):
            raise PipelineError(f"The grid of {name} must read {{parameter: [values]}}, like {{C: [0.1, 1, 10]}}.")
        for point in points(values):
            _demand_point(model, point)


def _demand_point(model: str, point: dict[str, Any]) -> None:
    known = CLASSIFIERS[model]().get_params()
    for parameter in point:
        if parameter not in known:
            raise errors.unknown("parameter", parameter, known, where=model)
    try:
        CLASSIFIERS[model](**point).fit([[0.0], [1.0]], [0, 1])  # scikit-learn checks values when it fits
    except ValueError as error:
        setting = ", ".join(f"{name}={value}" for name, value in point.items())
        raise PipelineError(f"{model} does not take {setting} ({error}). Change the grid.") from error


def points(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the parameters' values."""
    return [dict(zip(values, point, strict=True)) for point in product(*values.values())]


def at_edge(trained: Trained) -> list[str]:
    """Return the hyper-parameters whose chosen value is the smallest or largest of several."""
    rows = [row["parameters"] for row in trained.table if row["normalise"] == trained.chosen["normalise"]]
    ranges = {name: sorted({row[name] for row in rows}) for name in trained.chosen["parameters"]}
    return [
        n for n, v in trained.chosen["parameters"].items() if len(ranges[n]) > 1 and v in (ranges[n][0], ranges[n][-1])
    ]
