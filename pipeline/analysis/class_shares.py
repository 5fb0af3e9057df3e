"""Correct the classifier of a source dataset for the shares of its classes among a target's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import errors
from pipeline.analysis.grouping import Grouping
from pipeline.analysis.training_images import LabelledImages, read_units
from pipeline.classifiers import catalogue, cv_table, label_shift, persistence, scoring, search
from pipeline.classifiers.persistence import ClassifierFacts, SavedClassifier, ShiftFacts
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.codes.belonging import training_digest, validate_dataset
from pipeline.data.manifest import UNLABELLED
from pipeline.paths import Experiment

OF_ONE_SEARCH = ("chosen", "cv", "nested", "temperature", "extended_grid")
"""Facts of the source's classifier that do not hold for the corrected one."""

OTHER_SHARES = ("weight_by", "adapted", "unlabelled", "label_shift")
"""Facts of classifiers whose training counted classes otherwise than their images do."""


def correct_classifier(source: Experiment, target: Experiment, file: Path, path: Path, method: str) -> ShiftFacts:
    """Write the source's classifier, corrected for the target's shares of the classes, to `path`; return these.

    The shares are estimated on the target's training images and those without a label; no label of the target is
    looked at, and no test image. file: the target's codes; method: a name of `label_shift.METHODS`.
    """
    with errors.fixes_for(source.name):
        saved, facts = persistence.load(source.classifier), persistence.read_metadata(source.classifier).facts
    validate_plain(source.classifier, facts)
    validate_dataset(file, target.data)
    new, n_images, classes = read_new(file, saved, target.name)
    known = [saved.classes[number] for number in saved.pipeline.classes_]
    validate_within(classes, known, source.name, target.name)
    held_out, labels = held_out_margins(source, saved, facts)
    margins = label_shift.full_margins(saved.pipeline.decision_function(new.X))
    margins = scoring.mean_of_views(margins, n_images)
    evidence = label_shift.Evidence(held_out, labels, margins, label_shift.temperature_of(held_out, labels))
    shares = np.maximum(label_shift.METHODS[method](evidence), 0.5 / n_images)  # it may be rarer than can be seen
    kept = np.array([classes.index(name) if name in classes else -1 for name in known])
    pipeline = label_shift.correct(saved.pipeline, shares / evidence.prior, evidence.temperature, kept)
    pairs = np.stack([evidence.prior, shares], 1).tolist()
    shift: ShiftFacts = {
        "dataset": target.name,
        "method": method,
        "images": n_images,
        "shares": dict(zip(known, pairs, strict=True)),
    }
    of_source = {name: value for name, value in facts.items() if name not in OF_ONE_SEARCH}
    persistence.save(path, SavedClassifier(pipeline, saved.spec, classes), of_source | {"label_shift": shift})
    return shift


def validate_plain(path: Path, facts: ClassifierFacts) -> None:
    """Refuse classifiers whose margins do not tell probabilities under the shares of their training images."""
    parameters = facts["chosen"]["parameters"] if "chosen" in facts else {}
    otherwise = [name for name in OTHER_SHARES if name in facts]
    if facts.get("model") not in catalogue.PATH_MODELS or set(parameters) != {"C"} or otherwise:
        raise errors.PipelineError(
            f"{path} cannot be corrected for other shares of its classes: that takes an svm or softmax of classify, "
            "over values of C alone, whose training images all counted once. Train such a one."
        )


def validate_within(classes: Sequence[str], known: Sequence[str], source: str, target: str) -> None:
    """Refuse classes of the target that the source's classifier does not know, and fewer than two."""
    if unknown := [name for name in classes if name not in known]:
        raise errors.PipelineError(
            f"The classifier of {source} does not know the class {unknown[0]!r} of {target}, so its share cannot be "
            "told. Take a source with all classes, or train on labels of your own."
        )
    if len(classes) < 2:
        raise errors.PipelineError(f"{target} has one class, {classes[0]!r}: there is nothing to classify.")


def read_new(file: Path, saved: SavedClassifier, name: str) -> tuple[TrainingData, int, tuple[str, ...]]:
    """Return a target's images that are not held out for validation or tests, their number, and the target's classes.

    Without any labels, these are the classes of the classifier. Copies count as often as they occur: they are part of
    the shares.
    """
    parts = [reader.read_layers(file, saved.spec.to_dict(), split) for split in ("train", UNLABELLED)]
    if parts[0].labels.ndim == 2:
        raise errors.PipelineError("--adapt is for one label per image, and these have several. Leave it out.")
    one, other = (TrainingData.of_codes(part, np.arange(len(part.labels))) for part in parts)
    n_images = sum(len(part.labels) for part in parts)
    if not n_images:
        raise errors.PipelineError(f"{name} has no images but those held out for tests. Add some, even without labels.")
    return one.joined(other), n_images, parts[0].classes or saved.classes


def held_out_margins(
    source: Experiment, saved: SavedClassifier, facts: ClassifierFacts
) -> tuple[np.ndarray, np.ndarray]:
    """Return the margins (n, k) of the source's training images by folds that did not see them, and labels (n,).

    The folds are those by which the classifier was chosen; labels are places in its `classes_`.
    """
    with errors.fixes_for(source.name):
        validate_dataset(source.codes, source.data)
        codes = reader.read_layers(source.codes, saved.spec.to_dict(), "train")
    if training_digest(codes) != facts["dataset_digest"]:
        raise errors.PipelineError(
            f"{source.classifier} was trained on other images than {source.name} has now. Train it again.",
            fix=[errors.Fix("classify", {"dataset": source.name})],
        )
    units, _ = read_units(source.codes, source.data, Grouping(facts["group_by"], facts["near_distance"]), None)
    trained = np.flatnonzero(np.isin(codes.labels, saved.pipeline.classes_))
    data = LabelledImages(codes, units).take(trained).to_rows()
    plan = SearchPlan(facts["model"], {}, facts["folds"], facts["seed"])
    margins = label_shift.full_margins(search.held_out_margins(data, plan, cv_table.setting_of(facts["chosen"])))
    labels = np.searchsorted(saved.pipeline.classes_, codes.labels[trained])
    return scoring.mean_of_views(margins, len(labels)), labels
