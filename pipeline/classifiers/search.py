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
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline import errors
from pipeline.classifiers import scoring, solvers
from pipeline.classifiers.preprocessing import SignedRoot, signed_root_rows
from pipeline.data.splits import Folds, make_folds

PATH_MODELS = {"svm": 2_000, "softmax": 2_000}
"""The models whose whole path of C is solved at once, and the iterations allowed for it."""

CLASSIFIERS: dict[str, Callable[..., BaseEstimator]] = {
    "svm": partial(solvers.LinearSVM, max_iter=PATH_MODELS["svm"]),
    "softmax": partial(solvers.Softmax, max_iter=PATH_MODELS["softmax"]),
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

Grid = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclass(frozen=True)
class FoldResult:
    """One setting on one fold. accuracy: share of the held-out images that are right; seconds: of the fit."""

    normalise: str
    parameters: dict[str, Any]
    fold: int
    accuracy: float
    seconds: float
    converged: bool


@dataclass(frozen=True)
class SearchResult:
    """A fitted pipeline (normalisation, classifier), whether it converged, and the CV table with its chosen row.

    widened: what was added to the grid, since the best setting lay at its edge.
    """

    pipeline: Pipeline
    converged: bool
    chosen: dict[str, Any]
    table: list[dict[str, Any]]
    widened: list[dict[str, Any]]


def train(
    X: Any,
    y: np.ndarray,
    model: str,
    grid: Grid,
    splits: Folds,
    *,
    rule: str = "best",
    widen: int = 0,
    memory: int | None = None,
) -> SearchResult:
    """Choose normalisation and hyper-parameters by cross-validation, then fit on everything.

    X: (n, d) float32 codes, or rows on disk for the models of `PATHS`; y: (n,) int64 labels of the training split
    only, or (n, n_labels) of 0 and 1 for the SVM; grid: {normalisation: {parameter: values}}; splits: as
    `partitions.split` draws them; rule: of `RULES`; widen: how often, at most, the grid grows beyond an edge where the
    best setting lies; memory: bytes for the state of the search. Of equally good settings the first wins.
    """
    look = partial(cross_validate, X, y, model, splits=splits, memory=memory)
    table, widened = cv_table(look(grid=grid)), []
    for _ in range(widen):
        further = extend_grid(table)
        if not further:
            break
        table += cv_table(look(grid=further))
        widened.append(further)
    chosen = RULES[rule](table)
    pipeline, converged = refit(X, y, model, chosen["normalise"], chosen["parameters"])
    return SearchResult(pipeline, converged, chosen, table, widened)


def cross_validate(
    X: Any, y: np.ndarray, model: str, grid: Grid, splits: Folds, memory: int | None = None
) -> list[FoldResult]:
    """Cross-validate every setting of the grid on the same folds; the arguments are those of `train`."""
    trials: list[FoldResult] = []
    for normalise, values in grid.items():
        if uses_path_solver(model, values):
            trials += _search_path(X, y, splits, model, normalise, values["C"], memory)
        else:
            trials += _search_folds(X, y, splits, model, normalise, values)
    return trials


def uses_path_solver(model: str, values: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the settings are solved side by side, by a solver that takes rows on disk."""
    return model in PATH_MODELS and set(values) == {"C"}


def for_path_solver(X: Any, normalise: str) -> tuple[Any, str]:
    """Return codes and the normalisation that the solvers know, which do the rest as they go."""
    return (signed_root_rows(X), "l2") if normalise == "sqrt" else (X, normalise)


def _search_path(
    X: Any, y: np.ndarray, splits: Folds, model: str, normalise: str, Cs: Sequence[float], memory: int | None
) -> list[FoldResult]:
    """Solve all folds, classes and values of C side by side."""
    rows, how = for_path_solver(X, normalise)
    found = solvers.search_path(rows, y, splits, Cs, model, normalise=how, max_iter=PATH_MODELS[model], memory=memory)
    return [
        FoldResult(
            normalise,
            {"C": C},
            fold,
            accuracy=float(found.accuracy[place, fold]),
            seconds=float(found.seconds[place]) / len(splits),
            converged=bool(found.converged[place, fold]),
        )
        for place, C in enumerate(Cs)
        for fold in range(len(splits))
    ]


def _search_folds(
    X: np.ndarray, y: np.ndarray, splits: Folds, model: str, normalise: str, values: Mapping[str, Sequence[Any]]
) -> list[FoldResult]:
    """Fit each setting on each fold; the folds run in parallel, one process a core."""
    jobs = [
        joblib.delayed(_fit_fold)(X, y, rows, fold, CLASSIFIERS[model], normalise, grid_points(values))
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
) -> list[FoldResult]:
    """Fit all settings of one normalisation on one fold, whose codes are normalised once."""
    fitted, held = rows
    scaler = NORMALISATIONS[normalise]().fit(X[fitted])
    codes, held_codes = scaler.transform(X[fitted]), scaler.transform(X[held])
    trials = []
    for parameters in settings:
        start = time.perf_counter()
        classifier = build(**parameters)
        converged = converges(partial(classifier.fit, codes, y[fitted]))
        accuracy = float((classifier.predict(held_codes) == y[held]).mean())
        trials.append(FoldResult(normalise, parameters, fold, accuracy, time.perf_counter() - start, converged))
    return trials


def refit(X: Any, y: np.ndarray, model: str, normalise: str, parameters: Mapping[str, Any]) -> tuple[Pipeline, bool]:
    """Return the pipeline of one setting, fitted to all rows, and whether it converged.

    The solvers of `PATHS` normalise as they go: no copy of the codes is made, and rows on disk stay there.
    """
    classifier, every = CLASSIFIERS[model](**parameters), [np.arange(len(y))]
    if model not in PATH_MODELS:
        pipeline = Pipeline([("normalise", NORMALISATIONS[normalise]()), ("classify", classifier)])
        return pipeline, converges(partial(pipeline.fit, X, y))
    rows, how = for_path_solver(X, normalise)
    converged = converges(partial(classifier.fit_design, solvers.normalised_design(rows, every, how), y))
    scaler = solvers.fit_scalers(X, every)[0] if normalise == "standard" else NORMALISATIONS[normalise]().fit(X[:1])
    return Pipeline([("normalise", scaler), ("classify", classifier)]), converged


def calibrate(trained: SearchResult, X: Any, y: np.ndarray, splits: Folds, memory: int | None = None) -> float:
    """Give a trained SVM probabilities, fitted to margins of rows held out; return the temperature they are taken at.

    The arguments are those that it was trained with.
    """
    rows, how = for_path_solver(X, trained.chosen["normalise"])
    C = trained.chosen["parameters"]["C"]
    margins = solvers.held_out_scores(
        rows, y, splits, C, "svm", normalise=how, max_iter=PATH_MODELS["svm"], memory=memory
    )
    return trained.pipeline[-1].calibrate(margins[:, 0] if margins.shape[1] == 1 else margins, y).temperature_


def nested_cv(
    X: np.ndarray,
    y: np.ndarray,
    model: str,
    grid: Grid,
    folds: int,
    seed: int,
    groups: np.ndarray | None = None,
    **choice: Any,
) -> dict[str, Any]:
    """Return what the whole procedure, the choice of the setting included, reaches on rows that it never saw.

    Each fold is held out in turn, and `train` sees the others alone, whose own folds choose the setting. The accuracy
    is over all rows, with its 95% interval; choice: as in `train`.
    """
    right, settings = [], []
    for fitted, held in make_folds(y, folds, seed, groups):
        inner = None if groups is None else groups[fitted]
        trained = train(X[fitted], y[fitted], model, grid, make_folds(y[fitted], folds, seed, inner), **choice)
        right.append(trained.pipeline.predict(X[held]) == y[held])
        settings.append({name: trained.chosen[name] for name in ("normalise", "parameters")})
    total = np.concatenate(right)
    low, high = scoring.wilson_interval(int(total.sum()), len(total))
    return {
        "accuracy": float(total.mean()),
        "low": low,
        "high": high,
        "n": len(total),
        "folds": [float(each.mean()) for each in right],
        "settings": settings,
    }


def converges(fit: Callable[[], Any]) -> bool:
    """Fit, and return whether the solver converged; its warning is kept for the summary, any other is passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    late = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    for warning in caught:
        if warning not in late:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return not late


def cv_table(trials: Sequence[FoldResult]) -> list[dict[str, Any]]:
    """Return a row for each setting, in the grid's order: the mean and deviation of its accuracy over folds."""
    settings: dict[str, list[FoldResult]] = {}
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


def validate_grid(model: str, grid: Any) -> None:
    """Refuse a model that is unknown, or a grid that is not {normalisation: {parameter: values that it takes}}."""
    if model not in CLASSIFIERS:
        raise errors.unknown("model", model, CLASSIFIERS)
    if not isinstance(grid, Mapping) or not grid:
        raise errors.PipelineError(
            "The grid must read {normalisation: {parameter: [values]}}, like {l2: {C: [0.1, 1, 10]}}."
        )
    for name, values in grid.items():
        if name not in NORMALISATIONS:
            raise errors.unknown("normalisation", str(name), NORMALISATIONS)
        if not isinstance(values, Mapping) or not all(isinstance(v, list) and v for v in values.values()):
            raise errors.PipelineError(
                f"The grid of {name} must read {{parameter: [values]}}, like {{C: [0.1, 1, 10]}}."
            )
        for point in grid_points(values):
            _validate_point(model, point)


def _validate_point(model: str, point: dict[str, Any]) -> None:
    known = CLASSIFIERS[model]().get_params()
    for parameter in point:
        if parameter not in known:
            raise errors.unknown("parameter", parameter, known, where=model)
    try:
        CLASSIFIERS[model](**point).fit([[0.0], [1.0]], [0, 1])  # scikit-learn checks values when it fits
    except ValueError as error:
        setting = ", ".join(f"{name}={value}" for name, value in point.items())
        raise errors.PipelineError(f"{model} does not take {setting} ({error}). Change the grid.") from error


def grid_points(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the parameters' values."""
    return [dict(zip(values, point, strict=True)) for point in product(*values.values())]


def best_row(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the highest accuracy, the first of several."""
    return max(table, key=lambda row: row["accuracy"])


def simplest_near_best(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the most regularised row within one standard error of the best one, of the same normalisation.

    The rule of Breiman, Friedman, Olshen and Stone ("Classification and Regression Trees", 1984).
    """
    top = best_row(table)
    enough = top["accuracy"] - top["deviation"] / len(top["folds"]) ** 0.5
    near = [row for row in table if row["normalise"] == top["normalise"] and row["accuracy"] >= enough]
    return min(near, key=lambda row: [REGULARISING.get(name, 0) * value for name, value in row["parameters"].items()])


RULES: dict[str, Callable[[Sequence[dict[str, Any]]], dict[str, Any]]] = {
    "best": best_row,
    "one-standard-error": simplest_near_best,
}
"""How a row of the CV table is chosen."""

REGULARISING = {"C": 1, "alpha": -1, "n_neighbors": -1}
"""The parameters that regularise: 1 where less of it is simpler, -1 where more is."""

EXTENDABLE = ("C", "alpha")
"""The parameters whose grid may grow, each on a scale from 0 to infinity."""


def extend_grid(table: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Return the grid's next value beyond the edge where the best row lies, or {} where it lies at none."""
    top = best_row(table)
    for name in at_edge(table):
        if name in EXTENDABLE:
            values = _values(table, top["normalise"], name)
            last, inner = (values[-1], values[-2]) if top["parameters"][name] == values[-1] else (values[0], values[1])
            fixed = {other: [value] for other, value in top["parameters"].items()}
            return {top["normalise"]: fixed | {name: [float(f"{last * last / inner:.6g}")]}}
    return {}


def at_edge(table: Sequence[dict[str, Any]]) -> list[str]:
    """Return the hyper-parameters whose value in the best row is the smallest or largest of several."""
    top = best_row(table)
    ranges = {name: _values(table, top["normalise"], name) for name in top["parameters"]}
    return [n for n, v in top["parameters"].items() if len(ranges[n]) > 1 and v in (ranges[n][0], ranges[n][-1])]


def _values(table: Sequence[dict[str, Any]], normalise: str, name: str) -> list[Any]:
    return sorted({row["parameters"][name] for row in table if row["normalise"] == normalise})
