"""What classifiers learn from: codes with labels, and the units that folds may not part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.pipeline import Pipeline

from pipeline.classifiers import scoring
from pipeline.codes import reader
from pipeline.codes.spec import Rows
from pipeline.data.splits import Folds, make_folds


@dataclass(frozen=True)
class TrainingData:
    """Codes to learn from, a row per view of an image.

    X: (n, d) float32; y: (n,) int64 labels, or (n, n_labels) of 0 and 1; units: (n,) int64, as `splits.find_units`
    numbers them, rows of the same unit always stay together; images: (n,) int64, the image of each row, None where each
    image has one view.
    """

    X: Rows
    y: np.ndarray
    units: np.ndarray
    images: np.ndarray | None = None

    @classmethod
    def of_codes(cls, codes: reader.Codes[np.ndarray], units: np.ndarray) -> TrainingData:
        """Return codes in memory with a row per view of an image; units: (n,) int64 of the images."""
        X, y, images = reader.flatten_views(codes)
        return cls(X, y, units if images is None else units[images], images)

    def subset(self, rows: np.ndarray) -> TrainingData:
        """Return some of the rows, (m,) int64, in memory."""
        images = None if self.images is None else self.images[rows]
        return TrainingData(self.X[:][rows], self.y[rows], self.units[rows], images)

    def folds(self, count: int, seed: int) -> Folds:
        """Return stratified folds that part no unit."""
        return make_folds(self.y, count, seed, self.units)

    def predict_images(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the predicted label, the label and the unit of each image, (n_images,) int64 each.

        Of several views of an image, which must lie next to each other, the margins are averaged, as in `evaluate`.
        """
        images = np.arange(len(self.y)) if self.images is None else self.images
        rows = np.sort(np.unique(images, return_index=True)[1])
        margins = scoring.margins_of(pipeline, self.X[:], len(rows))
        return pipeline.classes_[margins.argmax(1)], self.y[rows], self.units[rows]
