"""Every way to part the rows of a dataset, and what must stay together: copies, views and groups."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from pipeline.data.manifest import UNLABELLED, ListedImage
from pipeline.errors import Fix, PipelineError, counted
from pipeline.texts import Texts, number_values

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each fold the int64 numbers of the rows to fit, and of the rows held out."""

MAX_MIXED = 0.05
"""Up to this share of units with several labels, folds are dealt out by units, which takes milliseconds."""


def find_units(digests: Sequence[Hashable], *groups: Sequence[Hashable]) -> np.ndarray:
    """Return for each row the number (n,) int64 of the unit that it belongs to; the rows of a unit must never part.

    Rows are in the same unit if they have the same digest or the same value in one of the `groups`, and also if other
    rows connect them: an image that occurs in two groups joins both. Units are numbered by their first row.

    digests: n digests of the images' files, or of their contents; groups: for each grouping n values, such as those of
    a metadata column.
    """
    units, n = number_values(digests), len(digests)
    for values in groups:
        # The nodes of the graph are the units, from 0, and the groups, from n; each row is a link between two of them.
        graph = coo_array((np.ones(n), (units, n + number_values(values))), shape=(2 * n, 2 * n))
        _, components = connected_components(graph, directed=False)
        units = number_values(components[units].tolist())
    return units


def resolve_splits(images: Sequence[ListedImage]) -> list[ListedImage]:
    """Make val the test split if the source has train and val only; leave the splits open if it has train only."""
    splits = {image.split for image in images} - {UNLABELLED}
    renamed: dict[str | None, str | None] = {"val": "test"} if splits == {"train", "val"} else {}
    if splits == {"train"}:
        renamed = {"train": None}
    return [replace(image, split=renamed.get(image.split, image.split)) for image in images]


def assign_splits(
    images: Sequence[ListedImage], shares: Mapping[str, float], seed: int, group_by: str = ""
) -> list[ListedImage]:
    """Draw a split for each image without one, class by class: `shares` for test and val, the rest for train.

    Copies get the same split, and so do images with the same value in the metadata column `group_by`.
    Each class keeps at least one unit for training, and gives at least one to each split with a share, if it can.
    """
    rng = np.random.default_rng(seed)
    undecided = [image for image in images if image.split is None]
    units = _units_by_content(undecided, group_by)
    labels = np.array([image.label for image in undecided])
    chosen: dict[int, str] = {}
    for label in np.unique(labels):
        unique = [unit for unit in np.unique(units[labels == label]).tolist() if unit not in chosen]
        shuffled = [unique[place] for place in rng.permutation(len(unique))]
        for split, share in shares.items():
            count = min(max(round(share * len(unique)), 1), len(shuffled) - 1) if share else 0
            taken, shuffled = shuffled[: max(count, 0)], shuffled[max(count, 0) :]
            chosen |= dict.fromkeys(taken, split)
        chosen |= dict.fromkeys(shuffled, "train")
    drawn = iter(chosen[unit] for unit in units.tolist())
    return [image if image.split else replace(image, split=next(drawn)) for image in images]


def _units_by_content(images: Sequence[ListedImage], group_by: str) -> np.ndarray:
    """Return the units (n,) int64, numbered by content, so that draws do not depend on the order of the images."""
    order = np.argsort(
        np.array([image.content.encode("utf-8", "surrogateescape") for image in images], "S"), kind="stable"
    )
    ordered = [images[place] for place in order]
    groups = [[image.metadata[group_by] for image in ordered]] if group_by else []
    units = np.empty(len(images), np.int64)
    units[order] = find_units(Texts.of(image.content for image in ordered), *groups)
    return units


def find_leaks(images: Sequence[ListedImage]) -> list[ListedImage]:
    """Return the labelled images whose content occurs in several splits, copies next to each other."""
    labelled = [image for image in images if image.split != UNLABELLED]
    several = several_values(Texts.of(image.content for image in labelled), [image.split for image in labelled])
    leaks = [labelled[place] for place in np.flatnonzero(several)]
    return sorted(leaks, key=lambda image: (image.content, image.split or "", image.label, str(image.path)))


def several_values(contents: Texts, values: Sequence[Hashable]) -> np.ndarray:
    """Return which rows, (n,) bool, have a content that occurs with several values; values: n of them."""
    numbers = contents.numbers()
    pairs = np.unique(np.stack([numbers, number_values(values)]), axis=1)
    several: np.ndarray = np.bincount(pairs[0], minlength=len(numbers))[numbers] > 1
    return several


def make_folds(y: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> Folds:
    """Return folds that have each their share of every class.

    y: (n,) labels, or (n, n_labels) of 0 and 1, where an image counts by its rarest label; groups: (n,) the units of
    `find_units`, whose rows stay in one fold; None if every row is a unit.
    """
    strata = y if y.ndim == 1 else rarest_label(y)
    stratified = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # `validate_trainable` says it
        if groups is None:
            return list(stratified.split(strata, strata))
        _, first, units = np.unique(groups, return_index=True, return_inverse=True)
        mixed = np.unique(units[strata != strata[first][units]])
        if len(mixed) <= MAX_MIXED * len(first):
            parts = stratified.split(first, strata[first])
            return [(np.flatnonzero(np.isin(units, a)), np.flatnonzero(np.isin(units, b))) for a, b in parts]
        return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(strata, strata, units))


def rarest_label(y: np.ndarray) -> np.ndarray:
    """Return for each row the label (n,) that the fewest rows have, or n_labels for a row without labels.

    y: (n, n_labels) of 0 and 1.
    """
    counts = y.sum(0)
    order = np.argsort(counts, kind="stable")
    return np.where(y.any(1), order[y[:, order].argmax(1)], y.shape[1])


def draw_distinct(rows: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `rows` in random order, one row of each unit before the second row of any.

    rows: (m,) int64 row numbers; groups: (n,) the units of `find_units`, for all rows.
    """
    shuffled = rng.permutation(rows)
    seen: dict[int, int] = {}
    repeats = []
    for unit in groups[shuffled].tolist():
        repeats.append(seen.get(unit, 0))
        seen[unit] = repeats[-1] + 1
    return shuffled[np.argsort(repeats, kind="stable")]


def nothing_to_learn_from(what: str) -> PipelineError:
    """Return the error for what has no labels to train on; what: "The codes have"."""
    return PipelineError(
        f"{what} no training images with a label. Prepare a dataset that has some; of images without labels the report "
        "shows clusters, duplicates and outliers.",
        fix=[Fix("report", {"backbone": ""})],
    )


def no_unlabelled_images() -> PipelineError:
    """Return the error for a dataset of which all images have labels, where some without are needed."""
    return PipelineError(
        "All images have labels. Add some without: pipeline.prepare --unlabelled FOLDER, and extract again."
    )


def validate_trainable(y: np.ndarray, classes: Sequence[str], folds: int, groups: np.ndarray | None = None) -> None:
    """Refuse training labels that cannot be cross-validated; the arguments are those of `make_folds`."""
    if folds < 2:
        raise PipelineError(f"--folds {folds} is too few for cross-validation. Take 2 or more.")
    if not len(y):
        raise nothing_to_learn_from("The codes have")
    counts = np.bincount(y, minlength=len(classes)) if y.ndim == 1 else y.sum(0)
    present = np.flatnonzero(counts)
    if y.ndim == 2:
        _validate_multi_label(counts, len(y), classes)
    elif len(present) == 1:
        raise PipelineError(f"The training split has one class only, {classes[y[0]]!r}. A classifier needs two.")
    fewest = present[counts[present].argmin()]
    if counts[fewest] < folds:
        raise PipelineError(
            f"The class {classes[fewest]!r} has {counted(counts[fewest], 'training image')}, fewer than the "
            f"{folds} folds. Add images, {_way_out(counts[fewest], y.ndim == 2)}."
        )
    if groups is not None:
        _validate_groups(y, classes, folds, groups)


def _way_out(count: int, multi_label: bool) -> str:
    """Say what to do, besides adding images, with a class that has `count` images or groups, fewer than folds."""
    few = f"take --folds {count}, " if count > 1 else ""
    if multi_label:
        return f"{few}or take the class out of the dataset"
    return f"{few}or take the class out of the dataset (pipeline.classify does it with --drop-small-classes)"


def _validate_multi_label(counts: np.ndarray, n: int, classes: Sequence[str]) -> None:
    """Refuse a label that no image has, or that all images have; counts: (n_labels,) images per label."""
    for number in np.flatnonzero((counts == 0) | (counts == n))[:1]:
        which = "No training image has" if counts[number] == 0 else "Every training image has"
        raise PipelineError(
            f"{which} the label {classes[number]!r}, so it cannot be learned. Take it out of the dataset."
        )


def _validate_groups(y: np.ndarray, classes: Sequence[str], folds: int, groups: np.ndarray) -> None:
    """Refuse a class that lies in fewer units than there are folds: some fold would have no image of it to fit."""
    for number, name in enumerate(classes):
        count = len(np.unique(groups[y == number if y.ndim == 1 else y[:, number] > 0]))
        if 0 < count < folds:
            raise PipelineError(
                f"The training images of class {name!r} lie in {counted(count, 'group')}, fewer than the {folds} "
                "folds. Copies of a file, and equal values of --group-by, stay in one fold: add images of other "
                f"groups, {_way_out(count, y.ndim == 2)}."
            )


def validate_folds(splits: Folds, y: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse folds that hold nothing out, or that lack a class to fit; both happen if units differ much in size."""
    for fold, (fitted, held_out) in enumerate(splits):
        labels, fitted_labels = (
            set(np.unique(rows if y.ndim == 1 else np.nonzero(rows)[1])) for rows in (y, y[fitted])
        )
        if missing := sorted(labels - fitted_labels):
            raise PipelineError(
                f"Fold {fold + 1} would have no image of class {classes[missing[0]]!r} to learn from: its groups are "
                "too large. Take fewer --folds, or another --seed."
            )
        if not len(held_out):
            raise PipelineError(
                f"Fold {fold + 1} would hold out no image: there are too few groups. Take fewer --folds."
            )
