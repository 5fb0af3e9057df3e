"""Train a linear classifier on CNN codes, its setting chosen by cross-validation on the training split.

Example: python -m pipeline.classify --layer fc7 --model svm --grid '{l2: {C: [0.1, 1, 10]}}'
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("classify")

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np

from pipeline import errors, params
from pipeline.analysis.gain import Gain
from pipeline.analysis.grouping import CodesRows, Grouping, find_image_units
from pipeline.classifiers import catalogue, cv_table, few_shot, options, persistence, scoring, search, semi_supervised
from pipeline.classifiers.cv_table import Grid
from pipeline.classifiers.few_shot import FewShotRow
from pipeline.classifiers.persistence import ClassifierFacts, SavedClassifier, UnlabelledFacts
from pipeline.classifiers.search import SearchPlan, SearchResult
from pipeline.classifiers.semi_supervised import Unlabelled
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.codes.belonging import training_digest, validate_dataset
from pipeline.codes.spec import Rows
from pipeline.config import Classify
from pipeline.data import class_maps
from pipeline.data.manifest import PARTS, UNLABELLED, read_depths
from pipeline.data.splits import no_unlabelled_images, validate_folds, validate_trainable
from pipeline.paths import Experiment
from pipeline.reporting import curves, training_text

logger = logging.getLogger(__name__)

BLOCK = 1024
"""Number of rows that are looked at together for constant features."""


def run(settings: Classify) -> None:
    """Train what the settings name."""
    plan = plan_of(settings)
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    expected = expected_spec(settings)
    half = options.parse_bytes(settings.memory) // 2 if settings.memory else None
    path, shots = settings.out or address.classifier, settings.shots
    file = settings.codes or address.codes
    with reader.open_codes(file, expected, "train", half) as codes:
        validate_dataset(file, address.data)
        options.validate_combination(plan, codes, calibrate=settings.calibrate, nested=settings.nested, shots=shots)
        if settings.source_map:
            plan = replace(plan, grid=given_grid(settings.source_map, plan.model, codes))
        grouping = Grouping(settings.group_by, settings.near_distance)
        if settings.unlabelled:
            options.validate_unlabelled(plan.model, codes, others=settings.calibrate or settings.nested)
        units, unlabelled = read_units(file, address.data, grouping, settings.unlabelled)
        if settings.drop_small_classes:
            codes, units = without_small_classes(codes, units, settings.folds)
        validate_different(codes)
        folds = few_shot.HOLD_OUT_PARTS if shots else settings.folds
        validate_trainable(codes.labels, codes.classes, folds, units)
        data = training_data(codes, units)
        if shots:
            few_shot.validate_shots(codes.labels, codes.classes, shots, settings.draws)
            print(write_few_shots(path, few_shot_rows(data, plan, shots, settings.draws, unlabelled)))
            return
        if unlabelled and not unlabelled.n_images:
            raise no_unlabelled_images()
        validate_folds(data.folds(plan.folds, plan.seed), data.y, codes.classes)
        memory = half if options.in_blocks(codes) else None
        trained, facts = train_classifier(data, plan, settings.calibrate, settings.nested, memory)
        if unlabelled:
            trained, facts["unlabelled"] = learn_further(trained, data, plan, unlabelled)
        facts |= dataset_facts(address, codes, units, grouping)
        curves.write_cv(path.with_suffix(".csv"), trained.table, trained.chosen, facts["measure"])
        persistence.save(path, SavedClassifier(trained.pipeline, codes.spec, codes.classes), facts)
        print(training_text.summary(path, trained, facts, data.X.shape[1]))


def plan_of(settings: Classify) -> SearchPlan:
    """Return how a setting is to be chosen; refuse a grid that the model does not take."""
    grid = cast(Grid, settings.grid or params.grid_of(settings.model))  # its names are literals in the settings
    catalogue.validate_grid(settings.model, grid)
    return SearchPlan(settings.model, grid, settings.folds, settings.seed, settings.rule, settings.extend_grid)


def expected_spec(settings: Classify) -> dict[str, object]:
    """Return what the settings say of the codes' spec; --pool auto leaves the pooling open."""
    pool = "" if settings.pool == "auto" else settings.pool
    asked = {"backbone": settings.backbone, "layer": settings.layer, "weights": settings.weights, "pool": pool}
    return {name: value for name, value in asked.items() if value}


def train_classifier(
    data: TrainingData, plan: SearchPlan, calibrate: bool = False, nested: bool = False, memory: int | None = None
) -> tuple[SearchResult, ClassifierFacts]:
    """Search and train; return the result, and what the classifier's metadata says of it.

    calibrate: give an SVM probabilities; nested: also estimate the accuracy with the choice of the setting inside;
    memory: bytes for the state of the search.
    """
    trained = search.train(data, plan, memory)
    facts = training_facts(data, plan, trained)
    if calibrate:
        facts["temperature"] = search.calibrate(trained, data, plan, memory)
    if nested:
        facts["nested"] = search.nested_cv(data, plan)
    return trained, facts


def learn_further(
    trained: SearchResult, data: TrainingData, plan: SearchPlan, unlabelled: Unlabelled
) -> tuple[SearchResult, UnlabelledFacts]:
    """Return the setting of a search fitted to unlabelled images as well, and what these bring in the same folds."""
    setting = cv_table.setting_of(trained.chosen)
    beside = semi_supervised.compare(data, unlabelled, plan, setting)
    pipeline, converged = semi_supervised.refit(data, unlabelled, plan.model, setting)
    gain = Gain.of(beside.alone, beside.together, beside.units)
    return replace(trained, pipeline=pipeline, converged=converged), {
        "method": unlabelled.method,
        "images": unlabelled.n_images,
        "accuracy": float(np.mean(beside.folds)),
        "standard_deviation": float(np.std(beside.folds, ddof=1)),
        "gain": asdict(gain),
    }


def training_facts(data: TrainingData, plan: SearchPlan, trained: SearchResult) -> ClassifierFacts:
    """Return what the metadata says of a search."""
    return {
        "model": plan.model,
        "chosen": trained.chosen,
        "converged": trained.converged,
        "folds": plan.folds,
        "seed": plan.seed,
        "rule": plan.rule,
        "measure": "accuracy" if data.y.ndim == 1 else "mean average precision",
        "constant_features": count_constant_features(data.X),
        "extended_grid": trained.extended_grid,
        "cv": trained.table,
    }


def dataset_facts(address: Experiment, codes: reader.Codes, units: np.ndarray, grouping: Grouping) -> ClassifierFacts:
    """Return what the metadata says of the images; units: (n,) int64 of the training images."""
    facts: ClassifierFacts = {
        "dataset": address.name,
        "dataset_digest": training_digest(codes),
        "n_train": len(codes.labels),
        "n_units": len(np.unique(units)),
        "group_by": grouping.by,
        "near_distance": grouping.near_distance,
    }
    if depths := read_depths(address.data):
        facts["depths"] = depths.to_dict()
    return facts


def few_shot_rows(
    data: TrainingData, plan: SearchPlan, shots: Sequence[int], draws: int, unlabelled: Unlabelled | None = None
) -> list[FewShotRow]:
    """Return the few-shot curve, over draws that hold out a quarter of the training images each."""
    splits = few_shot.hold_out_quarters(data, draws, plan.seed)
    return few_shot.summarise(few_shot.learning_curve(data, plan, sorted(set(shots)), splits, unlabelled))


def write_few_shots(classifier: Path, rows: Sequence[FewShotRow]) -> str:
    """Write the few-shot curve beside the classifier, and return it as text."""
    curves.write_few_shot_curve(path := curves.few_shot_path(classifier), rows)
    scored = scoring.images_text(rows[0]["n_scored"], rows[0]["images"], "held-out training image")
    return "\n".join([f"{path}: accuracy on {scored}, over {rows[0]['draws']} draws", *few_shot.lines_of(rows)])


def read_units(file: Path, data: Path, grouping: Grouping, method: str | None) -> tuple[np.ndarray, Unlabelled | None]:
    """Return the unit (n,) int64 of each training image, and the images without a label if a method is named.

    Those that are copies of test or val images, or of their groups, are left out, since their scores would be too high.
    """
    images = CodesRows.of_splits(file, *(PARTS if method else ("train",)))
    units = find_image_units(images, data, grouping)
    if method is None:
        return units, None
    splits = np.array(images.index.splits)[images.rows]
    offered = TrainingData.of_codes(reader.read_layers(file, {}, UNLABELLED), units[splits == UNLABELLED])
    unlabelled = Unlabelled(method, offered)
    kept = unlabelled.without(units[np.isin(splits, ("test", "val"))])
    if left_out := unlabelled.n_images - kept.n_images:
        images_text = errors.counted(left_out, "image")
        logger.info("%s without a label left out: copies of test or val images, or of their groups.", images_text)
    return units[splits == "train"], kept


def given_grid(path: Path, model: str, codes: reader.Codes) -> Grid:
    """Return the grid of a classifier that knows from a CSV file what the network's own classes stand for."""
    from pipeline.networks.source_classes import require_head  # takes seconds to import, and is seldom needed

    if model != catalogue.SOURCE_MAP:
        raise errors.PipelineError(f"--source-map is for --model {catalogue.SOURCE_MAP}, not {model}. Leave it out.")
    names = require_head(codes.spec.backbone, codes.spec.weights).names
    return {"probabilities": {"given": [class_maps.read_pairs(path, names, codes.classes)]}}


def without_small_classes(codes: reader.Codes, units: np.ndarray, folds: int) -> tuple[reader.Codes, np.ndarray]:
    """Return codes, and their units, without the classes that have fewer units than folds; log their names."""
    if options.in_blocks(codes) or codes.labels.ndim == 2:
        raise errors.PipelineError("--drop-small-classes is for one label per image, without --memory. Leave one out.")
    counts = {number: len(np.unique(units[codes.labels == number])) for number in np.unique(codes.labels).tolist()}
    small = [number for number, count in counts.items() if count < folds]
    for number in small:
        logger.warning("Left out: class %r, with %d training images or groups.", codes.classes[number], counts[number])
    rows = np.flatnonzero(~np.isin(codes.labels, small))
    return codes.take(rows), units[rows]


def validate_different(codes: reader.Codes) -> None:
    """Refuse codes that are all the same: nothing can be learned from them."""
    if len(codes.labels) > 1 and count_constant_features(codes.values) == codes.values.shape[1]:
        raise errors.PipelineError(
            f"All {len(codes.labels)} training images have the same code in layer {codes.spec.layer}, so nothing can "
            "be learned. Look at the images (they may be nearly black), or take another layer, --weights or --pool."
        )


def training_data(codes: reader.Codes, units: np.ndarray) -> TrainingData:
    """Return the codes with a row per view of an image; units: (n,) int64 of the images."""
    if options.in_blocks(codes):
        return TrainingData(codes.values, codes.labels, units)
    return TrainingData.of_codes(codes, units)


def count_constant_features(X: Rows) -> int:
    """Return how many columns of codes (n, d) have one value in all rows."""
    low = high = X[:1].min(0)
    for start in range(0, X.shape[0], BLOCK):
        rows = X[start : start + BLOCK]
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
    return int((low == high).sum())
