"""Which training images are held out together: stratified folds, with groups kept whole."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from pipeline.errors import PipelineError

Splits = Sequence[tuple[np.ndarray, np.ndarray]]
"""Rows to fit and rows held out, a pair a fold."""


def split(y: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> Splits:
    """Return folds that have each their share of every class.

    y: (n,) labels, or (n, n_labels) of 0 and 1, where an image counts by its rarest label; groups: (n,) of any values
    that compare, rows of the same one stand in the same fold. Where a group has one label, as the views of an image
    have, the groups of each label are dealt out evenly.
    """
    strata = y if y.ndim == 1 else rarest(y)
    deal = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # see `demand_learnable`
        if groups is None:
            return list(deal.split(strata, strata))
        _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
        if (strata == strata[first][numbers]).all():
            parts = deal.split(first, strata[first])
            return [(np.flatnonzero(np.isin(numbers, a)), np.flatnonzero(np.isin(numbers, b))) for a, b in parts]
        whole = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        return list(whole.split(strata, strata, numbers))


def numbered(groups: Iterable[Hashable]) -> np.ndarray:
    """Return the number (n,) int64 of each row's group, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def rarest(y: np.ndarray) -> np.ndarray:
    """Return the label (n,) of each row that fewest rows have, the number of labels where it has none; y: (n, k)."""
    counts = y.sum(0)
    order = np.argsort(counts, kind="stable")
    return np.where(y.any(1), order[y[:, order].argmax(1)], y.shape[1])


def demand_learnable(y: np.ndarray, classes: Sequence[str], folds: int, groups: np.ndarray | None = None) -> None:
    """Refuse training labels that cannot be cross-validated, saying why."""
    if folds < 2:
        raise PipelineError(f"--folds {folds} does not cross-validate. Take 2 or more.")
    if not len(y):
        raise PipelineError("The codes have no training images. Prepare the dataset with a train split.")
    counts = np.bincount(y, minlength=len(classes)) if y.ndim == 1 else y.sum(0)
    present = np.flatnonzero(counts)
    if y.ndim == 2:
        _demand_told(counts, len(y), classes)
    elif len(present) == 1:
        raise PipelineError(f"The training split has one class only, {classes[y[0]]!r}. A classifier needs two.")
    fewest = present[counts[present].argmin()]
    if counts[fewest] < folds:
        raise PipelineError(
            f"The class {classes[fewest]!r} has {counts[fewest]} training images, fewer than the {folds} folds. "
            f"Add images, or take --folds {max(2, counts[fewest])}."
        )
    if groups is not None:
        _demand_spread(y, classes, folds, groups)


def _demand_told(counts: np.ndarray, n: int, classes: Sequence[str]) -> None:
    """Refuse labels that no image has, or all of them."""
    for number in np.flatnonzero((counts == 0) | (counts == n))[:1]:
        which = "No training image has" if counts[number] == 0 else "Every training image has"
        raise PipelineError(f"{which} the label {classes[number]!r}: nothing tells it. Take it out of the dataset.")


def _demand_spread(y: np.ndarray, classes: Sequence[str], folds: int, groups: np.ndarray) -> None:
    """Refuse classes that lie in fewer groups than there are folds: a fold would have none of them to learn from."""
    for number, name in enumerate(classes):
        found = len(np.unique(groups[y == number if y.ndim == 1 else y[:, number] > 0]))
        if 0 < found < folds:
            raise PipelineError(
                f"The training images of class {name!r} lie in {found} group{'s' * (found > 1)}, fewer than the "
                f"{folds} folds. Add some of other groups, "
                + (f"or take --folds {found}." if found > 1 else "or take the class out.")
            )


def demand_whole(splits: Splits, y: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse folds that hold nothing out, or lack a class to learn from, as groups of unlike sizes may have it."""
    for fold, (fitted, held) in enumerate(splits):
        every, here = (set(np.unique(rows if y.ndim == 1 else np.nonzero(rows)[1])) for rows in (y, y[fitted]))
        if lacking := sorted(every - here):
            raise PipelineError(
                f"Fold {fold + 1} would have no image of class {classes[lacking[0]]!r} to learn from: its groups are "
                "too large. Take fewer --folds, or another --seed."
            )
        if not len(held):
            raise PipelineError(
                f"Fold {fold + 1} would hold out no image: there are too few groups. Take fewer --folds."
            )
