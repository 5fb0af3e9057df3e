"""The test images of an experiment that are worth a look: mistakes, uncertain predictions, confusions."""

from __future__ import annotations

import numpy as np

from pipeline.analysis import predictions
from pipeline.reporting.experiments import ExperimentResult
from pipeline.reporting.image_lists import SHOWN, Gallery
from pipeline.reporting.page_data import CodeMap, ConfusionCell, ListedImage, Neighbour
from pipeline.reporting.thumbnails import Album, Priority

MAX_MATRIX_CLASSES = 200
"""With more classes than these the cells of a matrix are too small, and the largest ones are listed instead."""

LISTED_CELLS = 200
"""Number of cells of the confusion matrix that are listed then."""

CELL_IMAGES = 12
"""Number of images shown for a cell of the confusion matrix."""

MAX_CELL_IMAGES = 4000
"""Number of images shown for all cells together."""


def most_confident_mistakes(experiment: ExperimentResult, album: Album) -> list[ListedImage]:
    """Return the wrong predictions of highest confidence, with their nearest training images."""
    wrong = np.flatnonzero(~experiment.predictions.correct)
    order = np.argsort(-experiment.confidence[wrong], kind="stable")
    return _listed_predictions(experiment, album, wrong[order][:SHOWN])


def least_certain(experiment: ExperimentResult, album: Album) -> list[ListedImage]:
    """Return the predictions of lowest confidence, with their nearest training images."""
    return _listed_predictions(experiment, album, np.argsort(experiment.confidence, kind="stable")[:SHOWN])


def _listed_predictions(experiment: ExperimentResult, album: Album, images: np.ndarray) -> list[ListedImage]:
    """Return the list of some test images, which are given by their places among the predictions."""
    nearest: list[list[Neighbour]] = [[] for _ in images]
    if experiment.index is not None:
        gallery = Gallery(experiment.address.data, experiment.index, album)
        nearest = gallery.nearest(experiment.test_rows[images])
    return [
        {
            "image": _add_test_image(experiment, album, image, Priority.LIST),
            "predicted": int(experiment.predictions.predicted[image]),
            "confidence": round(float(experiment.confidence[image]), 4),
            "nearest": neighbours,
        }
        for image, neighbours in zip(images.tolist(), nearest, strict=True)
    ]


def _add_test_image(experiment: ExperimentResult, album: Album, image: int, priority: Priority) -> int:
    outcomes = experiment.predictions
    return album.add(experiment.address.data, outcomes.paths[image], int(outcomes.labels[image]), "test", priority)


def confusion_cells(experiment: ExperimentResult, album: Album) -> list[ConfusionCell]:
    """Return the cells of the confusion matrix that are shown, mistakes before correct predictions.

    The images of a mistake are those of the highest confidence, the images of a correct prediction those of the lowest.
    """
    cells = predictions.confusions(experiment.predictions)
    mistakes = [cell for cell in cells if cell.label != cell.predicted]
    if len(experiment.predictions.classes) > MAX_MATRIX_CLASSES:
        cells = mistakes[:LISTED_CELLS]
    else:
        cells = mistakes + [cell for cell in cells if cell.label == cell.predicted]
    left, shown = MAX_CELL_IMAGES, []
    for cell in cells:
        correct = cell.label == cell.predicted
        confidence, priority = experiment.confidence[cell.images], Priority.CORRECT if correct else Priority.CONFUSION
        order = np.argsort(confidence if correct else -confidence, kind="stable")
        images = cell.images[order][: min(CELL_IMAGES, left)].tolist()
        left -= len(images)
        numbers = [_add_test_image(experiment, album, image, priority) for image in images]
        shown.append(ConfusionCell(cell.label, cell.predicted, len(cell.images), numbers))
    return shown


def mistakes_on_map(experiment: ExperimentResult, album: Album, code_map: CodeMap | None) -> dict[int, int]:
    """Return {image number: predicted class} of the images on the map that are predicted wrongly."""
    on_map = {point.image for point in code_map["points"]} if code_map else set()
    outcomes, mistakes = experiment.predictions, {}
    for image in np.flatnonzero(~outcomes.correct).tolist():
        number = album.number(experiment.address.data, outcomes.paths[image])
        if number is not None and number in on_map:
            mistakes[number] = int(outcomes.predicted[image])
    return mistakes
