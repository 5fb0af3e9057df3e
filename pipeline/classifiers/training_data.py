"""What classifiers learn from: codes with labels and weights, and the units that folds may not part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.pipeline import Pipeline

from pipeline.classifiers import scoring
from pipeline.codes import reader
from pipeline.codes.spec import Rows
from pipeline.data.splits import Folds, make_folds

READ_BYTES = 1 << 26
"""Bytes of codes that are read at a time, of those on disk."""


@dataclass(frozen=True)
class TrainingData:
    """Codes to learn from, a row per view of an image.

    X: (n, d) float32; y: (n,) int64 labels, or (n, n_labels) of 0 and 1; units: (n,) int64, as `splits.find_units`
    numbers them, rows of the same unit always stay together; images: (n,) int64, the image of each row, None where each
    image has one view; weights: (n,) float64 > 0, how often each row counts in a fit, None for once; auxiliary: (n,)
    bool, rows of another dataset, which take part in every fit and are never held out, None where there are none.
    """

    X: Rows
    y: np.ndarray
    units: np.ndarray
    images: np.ndarray | None = None
    weights: np.ndarray | None = None
    auxiliary: np.ndarray | None = None

    @classmethod
    def of_codes(
        cls, codes: reader.Codes[np.ndarray], units: np.ndarray, weights: np.ndarray | None = None
    ) -> TrainingData:
        """Return codes in memory with a row per view of an image; units, weights: (n,) of the images."""
        X, y, images = reader.flatten_views(codes)
        return cls(X, y, _of_rows(units, images), images, None if weights is None else _of_rows(weights, images))

    @classmethod
    def of_independent(cls, X: Rows, y: np.ndarray) -> TrainingData:
        """Return rows that are all images of their own, without relatives."""
        return cls(X, y, np.arange(len(y)))

    def subset(self, rows: np.ndarray) -> TrainingData:
        """Return some of the rows, (m,) int64, in memory."""
        images, weights, auxiliary = (
            None if column is None else column[rows] for column in (self.images, self.weights, self.auxiliary)
        )
        return TrainingData(take_rows(self.X, rows), self.y[rows], self.units[rows], images, weights, auxiliary)

    def sample(self, images: int, least: int, seed: int) -> TrainingData:
        """Return rows of about so many independent images, whole units, in memory; all rows if there are no more.

        The classes have the same shares as in all rows, but each has at least `least` units, if it has so many.
        """
        units, firsts = np.unique(self.units, return_index=True)
        if images >= len(units):
            return self
        labels = self.y[firsts] if self.y.ndim == 1 else np.zeros(len(units), np.int64)
        rng, chosen = np.random.default_rng(seed), []
        for label in np.unique(labels):
            of_class = rng.permutation(units[labels == label])
            chosen.append(of_class[: max(least, round(images / len(units) * len(of_class)))])
        return self.subset(np.flatnonzero(np.isin(self.units, np.concatenate(chosen))))

    def folds(self, count: int, seed: int) -> Folds:
        """Return stratified folds that part no unit, and hold out no row of another dataset."""
        if self.auxiliary is None:
            return make_folds(self.y, count, seed, self.units)
        own, others = np.flatnonzero(~self.auxiliary), np.flatnonzero(self.auxiliary)
        parted = make_folds(self.y[own], count, seed, self.units[own])
        return [(np.concatenate([own[fitted], others]), own[held]) for fitted, held in parted]

    def joined(self, other: TrainingData) -> TrainingData:
        """Return these rows and then others, which have images of their own."""
        images = weights = None
        if self.images is not None and other.images is not None:
            images = np.concatenate([self.images, other.images + self.images.max(initial=-1) + 1])
        if self.weights is not None or other.weights is not None:
            weights = np.concatenate([self.full_weights(), other.full_weights()])
        X, y = np.concatenate([self.X[:], other.X[:]]), np.concatenate([self.y, other.y])
        return replace(self, X=X, y=y, units=np.concatenate([self.units, other.units]), images=images, weights=weights)

    def full_weights(self) -> np.ndarray:
        """Return how often each row counts, (n,) float64."""
        return np.ones(len(self.y)) if self.weights is None else self.weights

    def predict_images(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the predicted label, the label and the unit of each image, (n_images,) int64 each.

        Of several views of an image, which must lie next to each other, the margins are averaged, as in `evaluate`.
        """
        images = np.arange(len(self.y)) if self.images is None else self.images
        rows = np.sort(np.unique(images, return_index=True)[1])
        margins = scoring.margins_of(pipeline, self.X[:], len(rows))
        return pipeline.classes_[margins.argmax(1)], self.y[rows], self.units[rows]


def take_rows(X: Rows, rows: np.ndarray) -> np.ndarray:
    """Return some rows of codes, in memory; rows: (m,) int64, increasing where the codes are on disk."""
    if isinstance(X, np.ndarray):
        return X[rows]
    taken, step = np.empty((len(rows), X.shape[1]), np.float32), max(1, READ_BYTES // (4 * X.shape[1]))
    for start in range(0, X.shape[0], step):
        first, last = np.searchsorted(rows, (start, start + step))
        if first < last:
            taken[first:last] = X[start : start + step][rows[first:last] - start]
    return taken


def _of_rows(of_images: np.ndarray, images: np.ndarray | None) -> np.ndarray:
    """Return a value per row from a value per image; images: as in `TrainingData`."""
    return of_images if images is None else of_images[images]
