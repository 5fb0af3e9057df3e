"""The search for the setting of a classifier of CNN codes, by cross-validation."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline

from pipeline.classifiers import cv_table, scoring, solvers
from pipeline.classifiers.catalogue import CLASSIFIERS, NORMALISATIONS, PATH_MODELS
from pipeline.classifiers.cv_table import CVRow, FoldResult, Grid, NestedResult, Setting
from pipeline.classifiers.preprocessing import signed_root_rows
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes.spec import Rows
from pipeline.data.splits import Folds
from pipeline.progress import track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchPlan:
    """How a setting is chosen.

    model: a name of `CLASSIFIERS`; folds, seed: of the cross-validation; rule: a name of `cv_table.RULES`; extend_grid:
    how often, at most, the grid is extended beyond an edge where the best setting lies; images: the number of
    independent images on which it is chosen, 0 for all.
    """

    model: str
    grid: Grid
    folds: int
    seed: int
    rule: str = "best"
    extend_grid: int = 0
    images: int = 0


@dataclass(frozen=True)
class SearchResult:
    """A fitted pipeline (normalisation, classifier), whether it converged, and the CV table with its chosen row.

    extended_grid: the grids that were added because the best setting lay at an edge; n_searched: number of independent
    images that the table is of.
    """

    pipeline: Pipeline
    converged: bool
    chosen: CVRow
    table: list[CVRow]
    extended_grid: Sequence[Grid]
    n_searched: int


def train(data: TrainingData, plan: SearchPlan, memory: int | None = None) -> SearchResult:
    """Choose normalisation and hyper-parameters by cross-validation, then fit on all rows.

    data: of the training split only, in memory, or on disk for the models of `PATH_MODELS`; multi-label for the SVM
    only; memory: bytes for the state of the search. Of equally good settings the first wins.
    """
    searched = data.sample(plan.images, plan.folds, plan.seed) if plan.images else data
    splits = searched.folds(plan.folds, plan.seed)
    grid = feasible_grid(plan.grid, min(len(fitted) for fitted, _ in splits))
    search = partial(cross_validate, searched, plan.model, splits=splits, memory=memory)
    table, extensions = cv_table.tabulate(search(grid=grid)), []
    for _ in range(plan.extend_grid):
        extension = cv_table.extend_grid(table)
        if not extension:
            break
        table += cv_table.tabulate(search(grid=extension))
        extensions.append(extension)
    chosen = cv_table.RULES[plan.rule](table)
    pipeline, converged = refit(data, plan.model, chosen["normalisation"], chosen["parameters"], memory)
    return SearchResult(pipeline, converged, chosen, table, extensions, len(np.unique(searched.units)))


def feasible_grid(grid: Grid, n_rows: int) -> Grid:
    """Return a grid without numbers of neighbours above `n_rows`, the rows of the smallest fold; log what is cut."""
    feasible = {}
    for normalisation, values in grid.items():
        numbers = values.get("n_neighbors", [])
        if cut := [number for number in numbers if number > n_rows]:
            logger.info("n_neighbors %s are left out: a fold has %d images to learn from.", cut, n_rows)
            values = {**values, "n_neighbors": [number for number in numbers if number <= n_rows] or [n_rows]}
        feasible[normalisation] = values
    return feasible


def cross_validate(
    data: TrainingData, model: str, grid: Grid, splits: Folds, memory: int | None = None
) -> list[FoldResult]:
    """Cross-validate every setting of the grid on the same folds; weights count in the fits, each held-out row once.

    splits: as `TrainingData.folds` returns them; memory: as in `train`.
    """
    results: list[FoldResult] = []
    for normalisation, values in track(grid.items(), f"searching {model}", len(grid), "normalisation"):
        if uses_path_solver(model, values):
            rows, solver = path_solver(data.X, model, normalisation, memory)
            results += _search_path(replace(data, X=rows), splits, solver, normalisation, values["C"])
        else:
            results += _search_folds(data, splits, CLASSIFIERS[model], normalisation, values)
    return results


def uses_path_solver(model: str, values: Mapping[str, Sequence[Any]]) -> bool:
    """Whether all settings are solved together, by a solver that takes rows on disk."""
    return model in PATH_MODELS and set(values) == {"C"}


def path_solver(X: Rows, model: str, normalisation: str, memory: int | None) -> tuple[Rows, solvers.PathSolver]:
    """Return codes and a solver that normalises them further, so that both together normalise X as asked for."""
    rows, rest = _partly_normalised(X, normalisation)
    return rows, solvers.PathSolver(model, rest, max_iter=PATH_MODELS[model], memory=memory)


def _partly_normalised(X: Rows, normalisation: str) -> tuple[Rows, str]:
    """Return codes, and the rest of their normalisation, which the solvers apply block by block."""
    return (signed_root_rows(X), "l2") if normalisation == "sqrt" else (X, normalisation)


def _search_path(
    data: TrainingData, splits: Folds, solver: solvers.PathSolver, normalisation: str, Cs: Sequence[float]
) -> list[FoldResult]:
    """Solve all folds, classes and values of C together."""
    path = solver.cross_validate(data.X, data.y, splits, Cs, data.weights)
    if left_out := sorted(set(Cs) - set(path.Cs.tolist())):
        logger.info(
            "%s: C above %g was not tried (%s): the folds had learned their images, and did worse on the others.",
            normalisation,
            path.Cs.max(),
            ", ".join(f"{C:g}" for C in left_out),
        )
    columns = zip(path.Cs.tolist(), path.accuracy.tolist(), path.converged.tolist(), path.seconds.tolist(), strict=True)
    return [
        FoldResult(normalisation, {"C": C}, accuracy, seconds / len(splits), converged)
        for C, accuracies, convergence, seconds in columns
        for accuracy, converged in zip(accuracies, convergence, strict=True)
    ]


def _search_folds(
    data: TrainingData,
    splits: Folds,
    build: Callable[..., BaseEstimator],
    normalisation: str,
    values: Mapping[str, Sequence[Any]],
) -> list[FoldResult]:
    """Fit each setting on each fold; the folds run in parallel, one process per core."""
    points, data = list(ParameterGrid(values)), replace(data, X=data.X[:])
    jobs = [joblib.delayed(_fit_fold)(data, rows, build, normalisation, points) for rows in splits]
    return [result for results in joblib.Parallel(n_jobs=-1)(jobs) for result in results]


def _fit_fold(
    data: TrainingData,
    rows: tuple[np.ndarray, np.ndarray],
    build: Callable[..., BaseEstimator],
    normalisation: str,
    points: Sequence[dict[str, Any]],
) -> list[FoldResult]:
    """Fit all settings of one normalisation on one fold, whose codes are normalised once."""
    fitted, held = (data.subset(part) for part in rows)
    scaler = NORMALISATIONS[normalisation]().fit(fitted.X)
    codes, held_codes = scaler.transform(fitted.X), scaler.transform(held.X)
    weights = {} if fitted.weights is None else {"sample_weight": fitted.weights}
    results = []
    for parameters in points:
        start = time.perf_counter()
        classifier = build(**parameters)
        converged = converges(partial(classifier.fit, codes, fitted.y, **weights))
        accuracy = float((classifier.predict(held_codes) == held.y).mean())
        results.append(FoldResult(normalisation, parameters, accuracy, time.perf_counter() - start, converged))
    return results


def refit(
    data: TrainingData, model: str, normalisation: str, parameters: Mapping[str, Any], memory: int | None = None
) -> tuple[Pipeline, bool]:
    """Return the pipeline of one setting, fitted on all rows, and whether it converged.

    Weights are for the models of `takes_weights`; they count in the classifier, not in the normalisation. The solvers
    of `PATH_MODELS` apply the normalisation block by block: the codes are not copied, and rows on disk are never in
    memory together, where `memory` bytes do not hold them.
    """
    classifier, all_rows = CLASSIFIERS[model](**parameters), [np.arange(len(data.y))]
    if model not in PATH_MODELS:
        pipeline = Pipeline([("normalise", NORMALISATIONS[normalisation]()), ("classify", classifier)])
        weights = {} if data.weights is None else {"classify__sample_weight": data.weights}
        return pipeline, converges(partial(pipeline.fit, data.X, data.y, **weights))
    rows, rest = _partly_normalised(data.X, normalisation)
    design = solvers.normalised_design(rows, all_rows, rest)
    converged = converges(partial(classifier.fit_design, design, data.y, data.weights, memory))
    standard = normalisation == "standard"
    scaler = solvers.fit_scalers(data.X, all_rows)[0] if standard else NORMALISATIONS[normalisation]().fit(data.X[:1])
    return Pipeline([("normalise", scaler), ("classify", classifier)]), converged


def calibrate(trained: SearchResult, data: TrainingData, plan: SearchPlan, memory: int | None = None) -> float:
    """Give a trained SVM probabilities, fitted to the margins of held-out rows; return their temperature.

    The arguments are those with which it was trained. scikit-learn's CalibratedClassifierCV(method="temperature") would
    train an SVM per fold once more, where the path solver has all folds at once; its file would need two private types
    of scikit-learn that skops does not trust, and it hides the coefficients that `export` and `finetune` read.
    """
    svm: solvers.LinearSVM = trained.pipeline[-1]
    margins = held_out_margins(data, plan, cv_table.setting_of(trained.chosen), memory)
    held = np.arange(len(data.y)) if data.auxiliary is None else np.flatnonzero(~data.auxiliary)
    return svm.calibrate(margins[held], data.y[held]).temperature_


def held_out_margins(data: TrainingData, plan: SearchPlan, setting: Setting, memory: int | None = None) -> np.ndarray:
    """Return the margins of each row by the fold that held it out, NaN where none did, for the models of `PATH_MODELS`.

    They are (n,) of two classes, and (n, n_classes) of more, as scikit-learn's classifiers give them.
    """
    rows, solver = path_solver(data.X, plan.model, setting["normalisation"], memory)
    splits, C = data.folds(plan.folds, plan.seed), setting["parameters"]["C"]
    scores = solver.held_out_scores(rows, data.y, splits, C, data.weights)
    return scores[:, 0] if scores.shape[1] == 1 else scores


def held_out_probabilities(data: TrainingData, plan: SearchPlan) -> np.ndarray:
    """Return the probabilities (n, n_classes) of each row by a softmax that was trained on the folds without it.

    The setting of the grid is the one of the highest cross-validated accuracy. Classes are those that occur, in order.
    """
    splits = data.folds(plan.folds, plan.seed)
    chosen = cv_table.best_row(cv_table.tabulate(cross_validate(data, "softmax", plan.grid, splits)))
    margins = held_out_margins(data, replace(plan, model="softmax"), cv_table.setting_of(chosen))
    probabilities: np.ndarray = np.exp(solvers.log_probabilities(margins.astype(np.float64), 1.0))
    return probabilities


def nested_cv(data: TrainingData, plan: SearchPlan) -> NestedResult:
    """Return what the whole procedure, the choice of the setting included, reaches on rows that it never saw.

    Each fold is held out once, and `train` sees the other folds alone; folds of their rows choose the setting.
    """
    correct, units, settings = [], [], []
    for fitted, held in data.folds(plan.folds, plan.seed):
        trained = train(data.subset(fitted), plan)
        predicted, labels, of_images = data.subset(held).predict_images(trained.pipeline)
        correct.append(predicted == labels)
        units.append(of_images)
        settings.append(cv_table.setting_of(trained.chosen))
    accuracy = float(np.concatenate(correct).mean())
    low, high, n = scoring.interval(accuracy, np.concatenate(units))
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": n,
        "images": sum(map(len, correct)),
        "folds": [float(fold.mean()) for fold in correct],
        "settings": settings,
    }


def converges(fit: Callable[[], object]) -> bool:
    """Call `fit`, and return whether the solver converged; warnings of any other kind are passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return len(others) == len(caught)
