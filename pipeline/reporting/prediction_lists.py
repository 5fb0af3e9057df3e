"""The test images of an experiment that are worth a look: mistakes, uncertain predictions, confusions."""

from __future__ import annotations

import numpy as np

from pipeline.analysis import predictions
from pipeline.reporting.experiments import ExperimentResult
from pipeline.reporting.image_lists import LISTED, SHOWN, Gallery, add_nearest, priority_at
from pipeline.reporting.page_data import Card, CodeMap, ConfusionCell, ImageList
from pipeline.reporting.thumbnails import Album, Priority

MAX_MATRIX_CLASSES = 200
"""With more classes than these the cells of a matrix are too small, and the largest ones are listed instead."""

LISTED_CELLS = 200
"""Number of cells of the confusion matrix that are listed then."""

CELL_IMAGES = 12
"""Number of images shown for a cell of the confusion matrix."""

MAX_CELL_IMAGES = 4000
"""Number of images shown for all cells together."""


def most_confident_mistakes(experiment: ExperimentResult, album: Album) -> ImageList:
    """Return the wrong predictions, those of the highest confidence first."""
    wrong = np.flatnonzero(~experiment.predictions.correct)
    order = wrong[np.argsort(-experiment.confidence[wrong], kind="stable")]
    return _list_predictions(experiment, album, order[:LISTED], len(wrong))


def least_certain(experiment: ExperimentResult, album: Album) -> ImageList:
    """Return the predictions of the lowest confidence."""
    order = np.argsort(experiment.confidence, kind="stable")[:SHOWN]
    return _list_predictions(experiment, album, order, len(order))


def _list_predictions(experiment: ExperimentResult, album: Album, images: np.ndarray, found: int) -> ImageList:
    """Return the list of some test images, which are given by their places among the predictions.

    The first are shown with their nearest training images, if there are codes.
    """
    outcomes = experiment.predictions
    cards: list[Card] = [
        {
            "images": [_add_test_image(experiment, album, image, priority_at(number))],
            "predicted": int(outcomes.predicted[image]),
            "confidence": round(float(experiment.confidence[image]), 4),
        }
        for number, image in enumerate(images.tolist())
    ]
    if experiment.index is not None:
        gallery = Gallery(experiment.data, experiment.index, album)
        add_nearest(cards, gallery, experiment.test_rows[images[:SHOWN]])
    return {"cards": cards, "found": found, "checked": len(outcomes.paths), "total": len(outcomes.paths)}


def _add_test_image(experiment: ExperimentResult, album: Album, image: int, priority: Priority) -> int:
    outcomes = experiment.predictions
    return album.add(experiment.data, outcomes.paths[image], int(outcomes.labels[image]), "test", priority)


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
        number = album.number(experiment.data, outcomes.paths[image])
        if number is not None and number in on_map:
            mistakes[number] = int(outcomes.predicted[image])
    return mistakes
