"""Some training images of a dataset, to measure on: the same share of each class, copies last."""

from __future__ import annotations

import logging

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.splits import draw_distinct, find_units, nothing_to_learn_from

logger = logging.getLogger(__name__)


def choose_images(manifest: Manifest, most: int, seed: int, column: str = "", least: int = 2) -> Manifest:
    """Return at most about `most` training images: the same share of each class, but at least `least` images of each.

    Copies of an image that was drawn come last, and so do images of its group by a column of the manifest. Raise
    PipelineError if the dataset has no training images.
    """
    rng = np.random.default_rng(seed)
    training = np.flatnonzero(manifest.splits.isin(["train"]))
    share = min(1.0, most / max(len(training), 1))
    chosen: list[int] = []
    units = units_of(manifest, column)
    for label in np.unique(manifest.labels[training]):
        rows = draw_distinct(training[manifest.labels[training] == label], units, rng)
        chosen += rows[: max(least, round(share * len(rows)))].tolist()
    if not chosen:
        raise nothing_to_learn_from("The dataset has")
    return manifest.take(np.array(sorted(chosen), np.int64))


def units_of(manifest: Manifest, column: str) -> np.ndarray:
    """Return the units (n,) int64 of a dataset's images, as `find_units` numbers them; column: to group by, or ""."""
    return find_units(manifest.contents, *([manifest.groups(column)] if column else []))


def training_images(manifest: Manifest, folds: int, column: str, drop_small: bool) -> Manifest:
    """Return the training images, without classes that have fewer units than folds if these are to be dropped."""
    training = manifest.take(np.flatnonzero(manifest.splits.isin(["train"])))
    if not drop_small:
        return training
    units, kept = units_of(training, column), np.ones(len(training.labels), bool)
    for number in np.unique(training.labels).tolist():
        count = len(np.unique(units[training.labels == number]))
        if count < folds:
            logger.warning("Left out: class %r, with %d training images or groups.", manifest.classes[number], count)
            kept &= training.labels != number
    return training.take(np.flatnonzero(kept))
