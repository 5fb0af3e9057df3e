"""Which images, which labels, which split: the manifest of a dataset, and what it can be made from."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from pipeline import errors
from pipeline.data.manifest import ListedImage


def settle_given_splits(listed: Sequence[ListedImage]) -> list[ListedImage]:
    """Let val be the test split where a source has no other; leave the splits open where it has train alone."""
    given = {image.split for image in listed}
    renamed: dict[str | None, str | None] = {"val": "test"} if given == {"train", "val"} else {}
    if given == {"train"}:
        renamed = {"train": None}
    return [replace(image, split=renamed.get(image.split, image.split)) for image in listed]


def assign_splits(
    listed: Sequence[ListedImage], digests: Sequence[str], shares: dict[str, float], seed: int, group_by: str = ""
) -> list[ListedImage]:
    """Give each image without a split one, by class: `shares` of each to test and val, the rest to train.

    Copies of the same bytes stay together, so that a split made here never leaks, and so do images with the same
    value in the column `group_by`. Each class keeps at least one image (one group) for training, and gives at least
    one to each split asked for where it has enough.
    """
    rng = np.random.default_rng(seed)
    units = _indivisible_units(listed, digests, group_by)
    chosen: dict[str, str] = {}
    for label in sorted({image.label for image in listed}):
        unique = sorted({u for image, u in zip(listed, units, strict=True) if image.label == label} - chosen.keys())
        shuffled = [unique[i] for i in rng.permutation(len(unique))]
        for split, share in shares.items():
            count = min(max(round(share * len(unique)), 1), len(shuffled) - 1) if share else 0
            taken, shuffled = shuffled[: max(count, 0)], shuffled[max(count, 0) :]
            chosen |= dict.fromkeys(taken, split)
        chosen |= dict.fromkeys(shuffled, "train")
    return [
        image if image.split else replace(image, split=chosen[unit]) for image, unit in zip(listed, units, strict=True)
    ]


def _indivisible_units(listed: Sequence[ListedImage], digests: Sequence[str], group_by: str) -> list[str]:
    """Return for each image what it must not be parted from: its digest, or the first digest of its group.

    A copy that occurs in two groups ties them together.
    """
    if not group_by:
        return list(digests)
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for image, digest in zip(listed, digests, strict=True):
        one, other = sorted((root(f"group {image.columns[group_by]}"), root(f"image {digest}")))
        parents[other] = one
    return [root(f"image {digest}") for digest in digests]


def find_leaks(listed: Sequence[ListedImage], digests: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return (digest, split, label, path) of each file whose bytes occur in several splits, copies side by side."""
    splits: dict[str, set[str]] = {}
    for image, digest in zip(listed, digests, strict=True):
        splits.setdefault(digest, set()).add(image.split or "")
    rows = [(d, i.split or "", i.label, str(i.path)) for i, d in zip(listed, digests, strict=True)]
    return sorted(row for row in rows if len(splits[row[0]]) > 1)


Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""Rows to fit and rows held out, a pair a fold."""


def make_folds(y: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> Folds:
    """Return folds that have each their share of every class.

    y: (n,) labels, or (n, n_labels) of 0 and 1, where an image counts by its rarest label; groups: (n,) of any values
    that compare, rows of the same one stand in the same fold. Where a group has one label, as the views of an image
    have, the groups of each label are dealt out evenly.
    """
    strata = y if y.ndim == 1 else rarest_label(y)
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


def number_groups(groups: Iterable[Hashable]) -> np.ndarray:
    """Return the number (n,) int64 of each row's group, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def rarest_label(y: np.ndarray) -> np.ndarray:
    """Return the label (n,) of each row that fewest rows have, the number of labels where it has none; y: (n, k)."""
    counts = y.sum(0)
    order = np.argsort(counts, kind="stable")
    return np.where(y.any(1), order[y[:, order].argmax(1)], y.shape[1])


def validate_trainable(y: np.ndarray, classes: Sequence[str], folds: int, groups: np.ndarray | None = None) -> None:
    """Refuse training labels that cannot be cross-validated, saying why."""
    if folds < 2:
        raise errors.PipelineError(f"--folds {folds} does not cross-validate. Take 2 or more.")
    if not len(y):
        raise errors.PipelineError("The codes have no training images. Prepare the dataset with a train split.")
    counts = np.bincount(y, minlength=len(classes)) if y.ndim == 1 else y.sum(0)
    present = np.flatnonzero(counts)
    if y.ndim == 2:
        _validate_multi_label(counts, len(y), classes)
    elif len(present) == 1:
        raise errors.PipelineError(f"The training split has one class only, {classes[y[0]]!r}. A classifier needs two.")
    fewest = present[counts[present].argmin()]
    if counts[fewest] < folds:
        raise errors.PipelineError(
            f"The class {classes[fewest]!r} has {counts[fewest]} training images, fewer than the {folds} folds. "
            f"Add images, or take --folds {max(2, counts[fewest])}."
        )
    if groups is not None:
        _validate_groups(y, classes, folds, groups)


def _validate_multi_label(counts: np.ndarray, n: int, classes: Sequence[str]) -> None:
    """Refuse labels that no image has, or all of them."""
    for number in np.flatnonzero((counts == 0) | (counts == n))[:1]:
        which = "No training image has" if counts[number] == 0 else "Every training image has"
        raise errors.PipelineError(
            f"{which} the label {classes[number]!r}: nothing tells it. Take it out of the dataset."
        )


def _validate_groups(y: np.ndarray, classes: Sequence[str], folds: int, groups: np.ndarray) -> None:
    """Refuse classes that lie in fewer groups than there are folds: a fold would have none of them to learn from."""
    for number, name in enumerate(classes):
        found = len(np.unique(groups[y == number if y.ndim == 1 else y[:, number] > 0]))
        if 0 < found < folds:
            raise errors.PipelineError(
                f"The training images of class {name!r} lie in {found} group{'s' * (found > 1)}, fewer than the "
                f"{folds} folds. Add some of other groups, "
                + (f"or take --folds {found}." if found > 1 else "or take the class out.")
            )


def validate_folds(splits: Folds, y: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse folds that hold nothing out, or lack a class to learn from, as groups of unlike sizes may have it."""
    for fold, (fitted, held) in enumerate(splits):
        every, here = (set(np.unique(rows if y.ndim == 1 else np.nonzero(rows)[1])) for rows in (y, y[fitted]))
        if lacking := sorted(every - here):
            raise errors.PipelineError(
                f"Fold {fold + 1} would have no image of class {classes[lacking[0]]!r} to learn from: its groups are "
                "too large. Take fewer --folds, or another --seed."
            )
        if not len(held):
            raise errors.PipelineError(
                f"Fold {fold + 1} would hold out no image: there are too few groups. Take fewer --folds."
            )
