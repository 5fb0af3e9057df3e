"""Score a trained classifier on the test split: metrics.json, tables and the confusion matrix.

Example: python -m pipeline.evaluate --layer fc7 --model svm
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("evaluate")

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import errors, files
from pipeline.analysis.grouping import CodesRows, Grouping, Related, find_image_units, find_related
from pipeline.classifiers import persistence, scoring
from pipeline.codes import reader
from pipeline.codes.belonging import training_digest, validate_dataset
from pipeline.config import NEAR_DISTANCE, NEAR_DUPLICATES, Evaluate
from pipeline.data.manifest import read_manifest
from pipeline.paths import FINETUNED, Experiment
from pipeline.reporting import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

MAX_NUMBERED = 30
"""Number of classes up to which the cells of a confusion matrix are numbered."""

LONGEST_NAME = 24
"""Letters of a class's name beyond which it is cut in the figure."""


def evaluate(
    classifier: persistence.SavedClassifier, test: reader.Codes, units: np.ndarray, related: Related
) -> tuple[scoring.Scores, np.ndarray]:
    """Return the scores on the test codes, and the (n, classes) margins from which they were computed.

    units: (n,) int64 of the images, as in `scoring.interval`; related: which of them have relatives among the training
    images; the metrics tell the score of those that have none too, if there are any.
    """
    margins = persistence.margins(classifier, test.values)
    score = scoring.score if test.labels.ndim == 1 else scoring.score_multi_label
    scores, rest = score(test.labels, margins, test.classes, units), related.none
    scores.metrics["related"] = int(related.any.sum())
    if related.unknown.any():
        scores.metrics["compared"] = int((~related.unknown).sum())
    if related.any.any() and (test.labels[rest].any() if test.labels.ndim == 2 else rest.any()):
        scores.metrics["unrelated"] = score(test.labels[rest], margins[rest], test.classes, units[rest]).metrics
    return scores, margins


def validate_test_images(classifier: persistence.SavedClassifier, test: reader.Codes) -> None:
    """Refuse to score without test images, or images of other classes than the classifier knows."""
    if not len(test.labels):
        raise errors.PipelineError("The dataset has no test images. Prepare it with a test split (--test 0.25).")
    if test.classes != classifier.classes:
        raise errors.PipelineError(
            f"The labels do not match: the classifier knows {len(classifier.classes)} classes "
            f"({', '.join(classifier.classes[:3])}, …), the codes have {len(test.classes)} "
            f"({', '.join(test.classes[:3])}, …). Train on these codes first."
        )


def write(folder: Path, scores: scoring.Scores, margins: np.ndarray, test: reader.Codes, units: np.ndarray) -> None:
    """Write predictions.csv, per_class.csv, confusion.csv, confusion.png and, last, metrics.json.

    margins: (n, classes) of the test images; units: (n,) int64 of them.
    """
    (write_single_label if test.labels.ndim == 1 else write_multi_label)(folder, scores, margins, test, units)
    files.write_csv(
        folder / "per_class.csv", list(scores.per_class[0]), [list(row.values()) for row in scores.per_class]
    )
    files.write_json(folder / "metrics.json", scores.metrics)


def write_multi_label(
    folder: Path, scores: scoring.Scores, margins: np.ndarray, test: reader.Codes, units: np.ndarray
) -> None:
    """Write the predictions and the confusion of multi-label images."""
    names = np.array(test.classes)
    predictions = [
        (path, ";".join(names[label > 0]), ";".join(names[row > 0]), round(float(row.max()), 6), unit)
        for path, label, row, unit in zip(test.paths, test.labels, margins, units.tolist(), strict=True)
    ]
    files.write_csv(folder / "predictions.csv", ("path", "labels", "predicted", "margin", "unit"), predictions)
    counts = [[name, *table.ravel()] for name, table in zip(names, scores.confusion, strict=True)]
    header = ("class", "neither", "wrongly predicted", "missed", "both")
    files.write_csv(folder / "confusion.csv", header, counts)
    draw_precisions(folder / "confusion.png", scores)


def draw_precisions(path: Path, scores: scoring.Scores) -> None:
    """Draw the average precision of each label, the best first."""
    rows = sorted(scores.per_class, key=lambda row: row["ap"])
    with figures.new_figure(path, 7, min(1.5 + 0.3 * len(rows), 40)) as figure:
        axes = figure.add_subplot()
        axes.barh([row["class"] for row in rows], [row["ap"] for row in rows])
        axes.set(xlim=(0, 1), xlabel="average precision", title=scoring.sentence(scores.metrics))


def write_single_label(
    folder: Path, scores: scoring.Scores, margins: np.ndarray, test: reader.Codes, units: np.ndarray
) -> None:
    """Write the predictions and the confusion of images with one label each."""
    names = test.classes
    predictions = [
        (path, names[label], names[row.argmax()], round(float(row.max()), 6), unit)
        for path, label, row, unit in zip(test.paths, test.labels, margins, units.tolist(), strict=True)
    ]
    files.write_csv(folder / "predictions.csv", ("path", "label", "predicted", "margin", "unit"), predictions)
    rows = [[name, *counts] for name, counts in zip(names, scores.confusion.tolist(), strict=True)]
    files.write_csv(folder / "confusion.csv", ("true \\ predicted", *names), rows)
    draw_confusion(folder / "confusion.png", scores, names)


def draw_confusion(path: Path, scores: scoring.Scores, names: Sequence[str]) -> None:
    """Draw the confusion matrix as shares of each true class, with the counts where there is room for them."""
    side = min(4 + 0.35 * len(names), 20)
    shares = scores.confusion / np.maximum(scores.confusion.sum(1, keepdims=True), 1)
    title = f"top-1 {scores.metrics['top1']:.3f}, {scores.metrics['images']} images"
    with figures.new_figure(path, side + 1, side) as figure:
        axes = figure.add_subplot()
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class", shrink=0.8)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        if len(names) <= MAX_NUMBERED:
            label_cells(axes, scores.confusion, shares, names)


def label_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> None:
    """Write the names of the classes beside a confusion matrix, and its counts into the cells."""
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    axes.set_xticks(range(len(names)), short, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), short, parse_math=False)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)


def training_note(facts: persistence.ClassifierFacts, dataset: str) -> str:
    """Say that a classifier was trained on another dataset than it is scored on; "" if it was not."""
    trained_on = facts.get("dataset", dataset)
    if trained_on == dataset:
        return ""
    return (
        f"The classifier was trained on the dataset {trained_on!r}: the score is right if none of its training images "
        f"are test images of {dataset!r}."
    )


def validate_training(path: Path, facts: persistence.ClassifierFacts, dataset: str, index: reader.CodesIndex) -> None:
    """Refuse a classifier that was trained on other images or labels of the same dataset than the codes have now."""
    if facts.get("dataset") != dataset or "dataset_digest" not in facts:
        return
    if facts["dataset_digest"] != training_digest(index):
        raise errors.PipelineError(
            f"{path} was trained on other training images or labels than {dataset} has now. Train it again.",
            fix=[errors.Fix("finetune" if is_fine_tuned(facts) else "classify", {"out": path})],
        )


def grouping_of(facts: persistence.ClassifierFacts, data: Path, near_distance: float | None) -> Grouping:
    """Return what joins test images to groups: what joined the training images, where that is known of this dataset.

    data: the prepared dataset's folder; near_distance: another value than that of the training, if not None.
    """
    by, distance = facts.get("group_by", ""), near_distance or facts.get("near_distance", NEAR_DISTANCE)
    if by == NEAR_DUPLICATES and is_fine_tuned(facts):
        by = ""
    if by not in ("", NEAR_DUPLICATES) and by not in read_manifest(data).metadata:
        logger.warning(
            "%s has no column %r, by which the training images were grouped: only copies count once", data, by
        )
        by = ""
    return Grouping(by, distance)


def is_fine_tuned(facts: persistence.ClassifierFacts) -> bool:
    """Return whether the network was trained on these classes: near-duplicates cannot be told from its codes.

    It moves the codes of a class together, whatever the images.
    """
    return facts.get("model") == FINETUNED


def conclusion(metrics: scoring.Metrics, related: Related, grouping: Grouping) -> str:
    """Return the score as text, and the score without the images that are related to training images."""
    score = scoring.sentence(metrics)
    if not metrics["related"]:
        if "compared" in metrics:
            score += f"\nA sample of {metrics['compared']} test images has no near-duplicates among training images."
        return score
    rest = scoring.sentence(metrics["unrelated"]) if "unrelated" in metrics else "there is no score"
    return f"{score}\n{related.sentence(grouping.by)}. Without them: {rest}"


def run(settings: Evaluate) -> None:
    """Evaluate what the settings name."""
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    path, file = settings.classifier or address.classifier, settings.codes or address.codes
    classifier = persistence.load(path)
    test = reader.read_layers(file, classifier.spec.to_dict(), "test")
    index = validate_dataset(file, address.data)
    facts = persistence.read_metadata(path).facts
    validate_training(path, facts, address.name, index)
    validate_test_images(classifier, test)
    grouping = grouping_of(facts, address.data, settings.near_distance)
    images = CodesRows.of_splits(file, "test", index=index)
    units = find_image_units(images, address.data, grouping)
    related = find_related(images, address.data, grouping, search=not is_fine_tuned(facts))
    scores, margins = evaluate(classifier, test, units, related)
    scores.metrics["validation"] = persistence.validation_of(facts)
    folder = settings.out or address.report
    write(folder, scores, margins, test, units)
    print(f"{folder}: {conclusion(scores.metrics, related, grouping)}")
    if note := training_note(facts, address.name):
        print(note)
