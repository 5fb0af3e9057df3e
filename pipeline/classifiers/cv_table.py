"""The table of a cross-validated search: a row per setting, and the rules that choose one of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

Grid = Mapping[str, Mapping[str, Sequence[Any]]]
"""{normalisation: {parameter: values}}; the values are those that the scikit-learn estimator takes."""


class Setting(TypedDict):
    """A normalisation of the codes, and hyper-parameters of the classifier by name."""

    normalisation: str
    parameters: dict[str, Any]


class CVRow(Setting):
    """A setting and what it reached.

    accuracy, standard_deviation: mean and standard deviation over the folds of the measure, which is the accuracy, or
    the mean average precision of multi-label images, in [0, 1]; folds: the measure on each fold; seconds: the time of
    all fits; converged: number of folds whose fit converged.
    """

    accuracy: float
    standard_deviation: float
    folds: list[float]
    seconds: float
    converged: int


class NestedResult(TypedDict):
    """What nested cross-validation estimates.

    accuracy: over all images, with its 95% interval low…high; n: number of independent units among the images, as in
    `scoring.Interval`; folds: accuracy of each outer fold; settings: the setting that was chosen without each fold.
    """

    accuracy: float
    low: float
    high: float
    n: int
    images: int
    folds: list[float]
    settings: list[Setting]


@dataclass(frozen=True)
class FoldResult:
    """What one setting reached on one fold.

    accuracy: share of the held-out images that are predicted correctly, or mean average precision of multi-label
    images; seconds: time of the fit.
    """

    normalisation: str
    parameters: dict[str, Any]
    accuracy: float
    seconds: float
    converged: bool


def tabulate(results: Sequence[FoldResult]) -> list[CVRow]:
    """Return a row per setting, in the order of the grid."""
    settings: dict[str, list[FoldResult]] = {}
    for result in results:
        settings.setdefault(json.dumps([result.normalisation, result.parameters]), []).append(result)
    return [_row(folds) for folds in settings.values()]


def _row(folds: Sequence[FoldResult]) -> CVRow:
    """Return the row of the setting of these fold results."""
    accuracies = [fold.accuracy for fold in folds]
    return {
        "normalisation": folds[0].normalisation,
        "parameters": folds[0].parameters,
        "accuracy": float(np.mean(accuracies)),
        "standard_deviation": float(np.std(accuracies, ddof=1)),
        "folds": accuracies,
        "seconds": round(sum(fold.seconds for fold in folds), 3),
        "converged": sum(fold.converged for fold in folds),
    }


def setting_of(row: CVRow) -> Setting:
    """Return the setting of a row alone."""
    return {"normalisation": row["normalisation"], "parameters": row["parameters"]}


def best_row(table: Sequence[CVRow]) -> CVRow:
    """Return the row of the highest accuracy, the first if several are equal."""
    return max(table, key=lambda row: row["accuracy"])


def simplest_near_best(table: Sequence[CVRow]) -> CVRow:
    """Return the most regularised row within one standard error of the best row, of the same normalisation.

    The rule of Breiman, Friedman, Olshen and Stone ("Classification and Regression Trees", 1984).
    """
    best = best_row(table)
    lowest = best["accuracy"] - best["standard_deviation"] / len(best["folds"]) ** 0.5
    near = [row for row in table if row["normalisation"] == best["normalisation"] and row["accuracy"] >= lowest]
    return min(near, key=lambda row: [SIMPLER.get(name, 0) * value for name, value in row["parameters"].items()])


RULES: dict[str, Callable[[Sequence[CVRow]], CVRow]] = {
    "best": best_row,
    "one-standard-error": simplest_near_best,
}
"""The ways to choose a row of the table."""

SIMPLER = {"C": 1, "alpha": -1, "n_neighbors": -1}
"""The parameters that regularise: 1 where a smaller value is simpler, -1 where a larger value is."""

EXTENDABLE = ("C", "alpha")
"""The parameters whose grid can be extended: their scale goes from 0 to infinity."""


def extend_grid(table: Sequence[CVRow]) -> dict[str, dict[str, list[Any]]]:
    """Return the grid's next value beyond the edge where the best row lies, or {} where it lies at no edge."""
    best = best_row(table)
    for name in at_edge(table):
        if name in EXTENDABLE:
            values = _values(table, best["normalisation"], name)
            last, inner = (values[-1], values[-2]) if best["parameters"][name] == values[-1] else (values[0], values[1])
            fixed = {other: [value] for other, value in best["parameters"].items()}
            return {best["normalisation"]: fixed | {name: [float(f"{last * last / inner:.6g}")]}}
    return {}


def at_edge(table: Sequence[CVRow]) -> list[str]:
    """Return the hyper-parameters whose value in the best row is the smallest or the largest of several."""
    best = best_row(table)
    ranges = {name: _values(table, best["normalisation"], name) for name in best["parameters"]}
    return [n for n, v in best["parameters"].items() if len(ranges[n]) > 1 and v in (ranges[n][0], ranges[n][-1])]


def _values(table: Sequence[CVRow], normalisation: str, name: str) -> list[Any]:
    """Return the values of a parameter that were tried with a normalisation, ascending."""
    return sorted({row["parameters"][name] for row in table if row["normalisation"] == normalisation})
