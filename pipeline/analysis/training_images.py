"""The images that a classifier learns from: with labels, units and weights; without labels; and of another dataset."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import errors
from pipeline.analysis.grouping import CodesRows, Grouping, find_contents, find_image_units, occur, read_known
from pipeline.classifiers import options
from pipeline.classifiers.semi_supervised import Unlabelled
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.codes.spec import Rows
from pipeline.data.manifest import PARTS, UNLABELLED
from pipeline.paths import Experiment
from pipeline.texts import Texts

logger = logging.getLogger(__name__)

BLOCK = 1024
"""Number of rows that are looked at together for constant features."""


@dataclass(frozen=True)
class LabelledImages:
    """The training images of a dataset; units: (n,) int64 of them; weights: (n,), how often each counts, or None."""

    codes: reader.Codes
    units: np.ndarray
    weights: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> LabelledImages:
        """Return some of the images, (m,) int64, in memory."""
        weights = None if self.weights is None else self.weights[rows]
        return LabelledImages(self.codes.take(rows), self.units[rows], weights)

    def without_weightless(self) -> LabelledImages:
        """Return the images that count; log how many do not."""
        if self.weights is None or self.weights.all():
            return self
        if options.in_blocks(self.codes):
            raise errors.PipelineError("Weights of 0 and --memory do not go together. Leave one of them out.")
        rows = np.flatnonzero(self.weights)
        left_out = errors.counted(len(self.units) - len(rows), "training image")
        logger.info("%s left out, with the weight 0.", left_out)
        return self.take(rows)

    def without_small_classes(self, folds: int) -> LabelledImages:
        """Return the images of the classes that have as many units as folds; log the names of the others."""
        codes = self.codes
        if options.in_blocks(codes) or codes.labels.ndim == 2:
            raise errors.PipelineError(
                "--drop-small-classes is for one label per image, without --memory. Leave one out."
            )
        counts = {number: len(np.unique(self.units[codes.labels == number])) for number in np.unique(codes.labels)}
        small = [number for number, count in counts.items() if count < folds]
        for number in small:
            logger.warning(
                "Left out: class %r, with %d training images or groups.", codes.classes[number], counts[number]
            )
        return self.take(np.flatnonzero(~np.isin(codes.labels, small)))

    def validate_different(self) -> None:
        """Refuse codes that are all the same: nothing can be learned from them."""
        n = len(self.codes.labels)
        if n > 1 and count_constant_features(self.codes.values) == self.codes.values.shape[1]:
            raise errors.PipelineError(
                f"All {n} training images have the same code in layer {self.codes.spec.layer}, so nothing can be "
                "learned. Look at the images (they may be nearly black), or take another layer, --weights or --pool."
            )

    def to_rows(self) -> TrainingData:
        """Return the codes with a row per view of an image."""
        if options.in_blocks(self.codes):
            return TrainingData(self.codes.values, self.codes.labels, self.units, None, self.weights)
        return TrainingData.of_codes(self.codes, self.units, self.weights)


def count_constant_features(X: Rows) -> int:
    """Return how many columns of codes (n, d) have one value in all rows."""
    low = high = X[:1].min(0)
    for start in range(0, X.shape[0], BLOCK):
        rows = X[start : start + BLOCK]
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
    return int((low == high).sum())


def read_units(file: Path, data: Path, grouping: Grouping, method: str | None) -> tuple[np.ndarray, Unlabelled | None]:
    """Return the unit (n,) int64 of each training image, and the images without a label if a method is named.

    Codes that do not belong to the prepared dataset are refused.

    Those that are copies of test or val images, or of their groups, are left out, since their scores would be too high.
    """
    index = validate_dataset(file, data)
    images = CodesRows.of_splits(file, *(PARTS if method else ("train",)), index=index)
    units = find_image_units(images, data, grouping)
    if method is None:
        return units, None
    splits = images.index.splits.take(images.rows)
    offered = TrainingData.of_codes(reader.read_layers(file, {}, UNLABELLED), units[splits.isin([UNLABELLED])])
    unlabelled = Unlabelled(method, offered)
    kept = unlabelled.without(units[splits.isin(("test", "val"))])
    if left_out := unlabelled.n_images - kept.n_images:
        images_text = errors.counted(left_out, "image")
        logger.info("%s without a label left out: copies of test or val images, or of their groups.", images_text)
    return units[splits.isin(["train"])], kept


def read_source(source: Experiment, target: Experiment, file: Path, codes: reader.Codes) -> LabelledImages:
    """Return the training images of a source dataset, labelled by the target's classes.

    file, codes: of the target's images, of the same network and layer. Images of classes that the target lacks are left
    out, and so are copies of the target's images of any split. Raises PipelineError if the source lacks a class.
    """
    with errors.fixes_for(source.name):
        validate_dataset(source.codes, source.data)
        found = reader.read_layers(source.codes, codes.spec.to_dict(), "train")
    if found.labels.ndim == 2 or codes.labels.ndim == 2:
        raise errors.PipelineError("--source is for one label per image, in both datasets. Leave it out.")
    trained = [codes.classes[number] for number in np.unique(codes.labels)]
    known = {found.classes[number] for number in np.unique(found.labels)}
    if missing := [name for name in trained if name not in known]:
        raise errors.PipelineError(
            f"The source {source.name} has no training images of the class {missing[0]!r}, which {target.name} has. "
            "Take a source with all its classes."
        )
    numbers = np.array([trained_number(codes, name) for name in found.classes])
    own = contents_of(CodesRows.of_splits(file, *PARTS), target.data)
    contents = contents_of(CodesRows.of_splits(source.codes, "train"), source.data)
    copies = occur(contents, own)
    others = numbers[found.labels] < 0
    for rows, why in ((others, "of other classes"), (copies & ~others, "that the target has as well")):
        if rows.any():
            logger.info("%s of the source left out: %s.", errors.counted(rows.sum(), "image"), why)
    kept = found.take(np.flatnonzero(~others & ~copies))
    if len(kept.labels) < 2:
        raise errors.PipelineError(
            f"Of the source {source.name}, {errors.counted(len(kept.labels), 'training image')} of other bytes than "
            f"{target.name}'s are left to learn from. Take another dataset."
        )
    labelled = reader.Codes(
        kept.values, numbers[kept.labels], kept.paths, kept.splits, kept.digests, codes.classes, kept.spec
    )
    return LabelledImages(labelled, np.arange(len(kept.labels)))


def trained_number(codes: reader.Codes, name: str) -> int:
    """Return the number of a class that has training images, -1 of any other."""
    number = codes.classes.index(name) if name in codes.classes else -1
    return number if number in codes.labels else -1


def contents_of(images: CodesRows, data: Path) -> Texts:
    """Return what tells each image from those that are no copies of it."""
    return find_contents(images, read_known(data, Grouping()))
