"""Suggest which images without a label to label next, in a CSV file to fill in for `prepare --corrections`.

Example: python -m pipeline.suggest --dataset flowers --backbone efficientnet_lite0 --layer avgpool --count 20
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("suggest")

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from pipeline import errors, files
from pipeline.analysis import neighbors, suggestion
from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.config import Suggest
from pipeline.data import corrections
from pipeline.data.manifest import UNLABELLED, read_max_value
from pipeline.data.splits import no_unlabelled_images
from pipeline.paths import Experiment, require_one_layer
from pipeline.reporting.contact_sheet import MOST_ROWS, SheetImage, draw_sheet

MOST_COMPARED = 20_000
"""Number of images among which typical ones are looked for; of more a random sample is taken, the same in each run."""

COLUMNS = 5
"""Number of images side by side on the contact sheet."""


@dataclass(frozen=True)
class Suggestion:
    """A line of the CSV file; action, to: as in `data.corrections`, where `to` is what the classifier predicts."""

    path: str
    action: str = ""
    to: str = ""


def least_certain(index: reader.CodesIndex, classifier: persistence.SavedClassifier, by: str) -> list[Suggestion]:
    """Return the images without a label, those first of which the classifier is least sure; by: margin or entropy."""
    if by == "entropy" and not hasattr(classifier.pipeline, "predict_proba"):
        raise errors.PipelineError(
            "--by entropy needs probabilities, which this classifier does not give. Take --by margin, or a softmax."
        )
    rows, sure, predicted = unlabelled_rows(index), [], []
    for _, values in reader.blocks(index.path, rows):
        margins = persistence.margins(classifier, values)
        probabilities = persistence.probabilities(classifier, values) if by == "entropy" else None
        sure += (
            suggestion.gap_to_second(margins) if probabilities is None else suggestion.certainty(probabilities)
        ).tolist()
        predicted += margins.argmax(1).tolist()
    order = np.argsort(sure, kind="stable")
    return [Suggestion(index.paths[rows[place]], to=classifier.classes[predicted[place]]) for place in order]


def typical(index: reader.CodesIndex, count: int) -> list[Suggestion]:
    """Return images without a label that are typical of those that are unlike the labelled training images."""
    rng, rows = np.random.default_rng(0), np.flatnonzero(index.splits.isin(("train", UNLABELLED)))
    if len(rows) > MOST_COMPARED:
        rows = np.sort(rng.choice(rows, MOST_COMPARED, replace=False))
    labelled = ~index.splits.take(rows).isin([UNLABELLED])
    places = suggestion.typical_images(neighbors.reduce(index.path, rows), labelled, min(count, int((~labelled).sum())))
    return [Suggestion(index.paths[rows[place]]) for place in places]


def unlabelled_rows(index: reader.CodesIndex) -> np.ndarray:
    """Return the rows (n,) int64 of the images without a label; refuse codes that have none."""
    rows = np.flatnonzero(index.splits.isin([UNLABELLED]))
    if not len(rows):
        raise no_unlabelled_images()
    return rows


def sheet_rows(suggestions: Sequence[Suggestion], data: Path) -> list[list[SheetImage]]:
    """Return the rows of a contact sheet, in the order of the CSV file; data: the dataset's folder."""
    white = read_max_value(data)
    images = [SheetImage(data / one.path, Path(one.path).name, one.to, white) for one in suggestions]
    return [images[start : start + COLUMNS] for start in range(0, len(images), COLUMNS)]


def run(settings: Suggest) -> None:
    """Suggest images of the dataset that the settings name."""
    require_one_layer(settings.layer)
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    path = settings.out or address.reports / f"{settings.layer}-suggestions.csv"
    corrections.validate_overwritable(path)
    index = reader.read_index(address.codes, {"backbone": settings.backbone, "layer": settings.layer})
    validate_dataset(address.codes, address.data, index)
    available = len(unlabelled_rows(index))
    if settings.by == "coverage":
        suggestions = typical(index, settings.count)
    else:
        classifier = persistence.load(address.classifier)
        index = reader.read_index(address.codes, classifier.spec.to_dict())
        suggestions = least_certain(index, classifier, settings.by)[: settings.count]
    files.write_csv(path, [field.name for field in fields(Suggestion)], [astuple(one) for one in suggestions])
    draw_sheet(sheet := path.with_suffix(".png"), sheet_rows(suggestions, address.data))
    print(f"{path}, {sheet}: {len(suggestions):,} of {errors.counted(available, 'image')} without a label")
    if len(suggestions) > MOST_ROWS * COLUMNS:
        print(f"The contact sheet shows the first {MOST_ROWS * COLUMNS}")
    print(corrections.next_step(address.data, path, "Write relabel into the column action and the class into to"))
