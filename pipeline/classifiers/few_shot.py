"""Few images a class: how accurate a classifier is that learns from 1, 2, 4, … of them, over several draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from pipeline import errors
from pipeline.classifiers import search
from pipeline.data.splits import draw_distinct, make_folds

HOLD_OUT_PARTS = 4
"""Of this many parts of the training images one is held out in each draw, to be scored on."""


@dataclass(frozen=True)
class Draw:
    """What was learnt from `shots` images of each class.

    accuracy: share right of the n_scored images held out; balanced: mean of the classes' shares; normalise,
    parameters: the setting chosen.
    """

    shots: int
    draw: int
    n_scored: int
    accuracy: float
    balanced: float
    normalise: str
    parameters: dict[str, Any]


def learning_curve(
    X: np.ndarray,
    y: np.ndarray,
    model: str,
    grid: search.Grid,
    shots: Sequence[int],
    draws: int,
    folds: int,
    seed: int,
    groups: np.ndarray,
) -> list[Draw]:
    """Draw images of each class and learn from them alone, again and again.

    All of it happens within the training split, whose labels y (n,) are: each draw holds out a quarter (groups stay
    whole) and takes the first of the rest in a random order, so that fewer images are among the more, and all numbers
    of them are scored on the same. The setting is cross-validated on the images drawn; where these are of one group in
    some class, and nothing can be held out, it is the middle of the grid.

    groups: (n,) the units of `find_units`; one image of each is drawn before the second of any.
    """
    found = []
    for draw in range(draws):
        rest, held = make_folds(y, HOLD_OUT_PARTS, seed + draw, groups)[0]
        order = draw_distinct(rest, groups, np.random.default_rng([seed, draw]))
        for count in shots:
            by_class = [order[y[order] == label][:count] for label in np.unique(y)]
            _validate_drawn(by_class, count)
            rows = np.concatenate(by_class)
            trained = train_on_few(X[rows], y[rows], model, grid, folds, seed, groups[rows])
            predicted = trained.pipeline.predict(X[held])
            accuracy, balanced = (predicted == y[held]).mean(), balanced_accuracy_score(y[held], predicted)
            setting = trained.chosen["normalise"], trained.chosen["parameters"]
            found.append(Draw(count, draw, len(held), float(accuracy), float(balanced), *setting))
    return found


def train_on_few(
    X: np.ndarray, y: np.ndarray, model: str, grid: search.Grid, folds: int, seed: int, groups: np.ndarray
) -> search.SearchResult:
    """Train on the few images drawn; where no fold can be held out, with the middle setting of the grid."""
    folds = min(folds, *(len(np.unique(groups[y == label])) for label in np.unique(y)))
    if folds > 1:
        return search.train(X, y, model, grid, make_folds(y, folds, seed, groups))
    ((normalise, values),) = middle_setting(grid).items()
    parameters = {name: value for name, (value,) in values.items()}
    pipeline, converged = search.refit(X, y, model, normalise, parameters)
    return search.SearchResult(pipeline, converged, {"normalise": normalise, "parameters": parameters}, [], [])


def middle_setting(grid: search.Grid) -> dict[str, dict[str, list[Any]]]:
    """Return the grid of the first normalisation's middle values alone."""
    normalise, values = next(iter(grid.items()))
    return {normalise: {name: [each[len(each) // 2]] for name, each in values.items()}}


def validate_shots(y: np.ndarray, classes: Sequence[str], shots: Sequence[int], draws: int) -> None:
    """Refuse numbers of images that some class does not have beside those held out."""
    if min(shots) < 1 or draws < 2:
        raise errors.PipelineError("--shots must be 1 or more each, and --draws 2 or more, for a deviation.")
    counts = np.bincount(y, minlength=len(classes))
    scarce = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    if (left := counts[scarce] - -(-counts[scarce] // HOLD_OUT_PARTS)) < max(shots):
        raise errors.PipelineError(
            f"The class {classes[scarce]!r} has {counts[scarce]} training images; with a quarter held out {left} are "
            f"left, fewer than --shots {max(shots)}. Take fewer."
        )


def _validate_drawn(by_class: Sequence[np.ndarray], count: int) -> None:
    """Refuse a draw that leaves a class fewer than `count` rows, as groups of different sizes may do."""
    if (left := min(len(rows) for rows in by_class)) < count:
        raise errors.PipelineError(
            f"A class has {left} training images outside the groups held out, fewer than --shots {count}. Take fewer."
        )


def summarise(found: Sequence[Draw]) -> list[dict[str, Any]]:
    """Return a row for each number of images: mean and deviation of its draws' accuracies, plain and balanced."""
    rows = []
    for shots in sorted({each.shots for each in found}):
        draws = [each for each in found if each.shots == shots]
        plain, balanced = ([getattr(each, name) for each in draws] for name in ("accuracy", "balanced"))
        rows.append(
            {
                "shots": shots,
                "accuracy": float(np.mean(plain)),
                "deviation": float(np.std(plain, ddof=1)),
                "balanced": float(np.mean(balanced)),
                "balanced_deviation": float(np.std(balanced, ddof=1)),
                "draws": len(draws),
                "n_scored": draws[0].n_scored,
            }
        )
    return rows
