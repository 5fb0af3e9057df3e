"""Train a linear classifier on CNN codes, its setting chosen by cross-validation on the training split.

Example: python -m pipeline.classify --layer fc7 --model svm --grid '{l2: {C: [0.1, 1, 10]}}'
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("classify")

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np

from pipeline import errors, params
from pipeline.analysis import class_shares, training_images
from pipeline.analysis.gain import Gain
from pipeline.analysis.grouping import Grouping
from pipeline.classifiers import (
    adaptation,
    catalogue,
    cv_table,
    few_shot,
    label_shift,
    options,
    persistence,
    scoring,
    search,
    semi_supervised,
)
from pipeline.classifiers.cv_table import Grid
from pipeline.classifiers.few_shot import FewShotRow
from pipeline.classifiers.persistence import ClassifierFacts, SavedClassifier, UnlabelledFacts
from pipeline.classifiers.search import SearchPlan, SearchResult
from pipeline.classifiers.semi_supervised import Unlabelled
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.codes.belonging import training_digest
from pipeline.config import Classify
from pipeline.data import class_maps
from pipeline.data.image_weights import read_weights
from pipeline.data.manifest import read_depths, read_manifest
from pipeline.data.splits import no_unlabelled_images, validate_folds, validate_trainable
from pipeline.paths import Experiment, resolve_task
from pipeline.reporting import curves, training_text


def run(settings: Classify) -> None:
    """Train what the settings name."""
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    path, file = settings.out or address.classifier, settings.codes or address.codes
    if settings.adapt in label_shift.METHODS:
        print(correct_for_shares(settings, address, file, path))
        return
    plan = plan_of(settings)
    half = options.parse_bytes(settings.memory) // 2 if settings.memory else None
    with reader.open_codes(file, expected_spec(settings), "train", half) as codes:
        plan = validate_options(settings, plan, codes)
        grouping = Grouping(settings.group_by, settings.near_distance)
        units, unlabelled = training_images.read_units(file, address.data, grouping, settings.unlabelled)
        images = labelled_images(settings, address, codes, units)
        data = images.to_rows()
        if settings.shots:
            few_shot.validate_shots(images.codes.labels, codes.classes, settings.shots, settings.draws)
            print(write_few_shots(path, few_shot_rows(data, plan, settings.shots, settings.draws, unlabelled)))
            return
        if unlabelled and not unlabelled.n_images:
            raise no_unlabelled_images()
        validate_folds(data.folds(plan.folds, plan.seed), data.y, codes.classes)
        memory = half if options.in_blocks(codes) else None
        if settings.source and settings.adapt:
            source = training_images.read_source(source_of(settings, address), address, file, codes)
            trained, facts = train_with_source(data, source, settings.source, plan, settings)
        else:
            trained, facts = train_classifier(data, plan, settings.calibrate, settings.nested, memory)
        if unlabelled:
            trained, facts["unlabelled"] = learn_further(trained, data, plan, unlabelled)
        facts |= dataset_facts(address, codes, images.units, grouping)
        if settings.weight_by:
            facts["weight_by"] = settings.weight_by
        curves.write_cv(path.with_suffix(".csv"), trained.table, trained.chosen, facts["measure"])
        persistence.save(path, SavedClassifier(trained.pipeline, codes.spec, codes.classes), facts)
        print(training_text.summary(path, trained, facts, data.X.shape[1]))


def validate_options(settings: Classify, plan: SearchPlan, codes: reader.Codes) -> SearchPlan:
    """Return the plan with the grid that fits all options; refuse options that do not go together."""
    calibrate, nested, shots = settings.calibrate, settings.nested, settings.shots
    options.validate_combination(plan, codes, calibrate=calibrate, nested=nested, shots=shots)
    options.validate_weights(plan.model, asked=bool(settings.weight_by))
    others = bool(shots or settings.unlabelled or settings.search_images)
    options.validate_adaptation(settings.source, settings.adapt, codes, others=others)
    if settings.unlabelled:
        options.validate_unlabelled(plan.model, codes, others=bool(calibrate or nested or settings.search_images))
    if settings.source_map:
        plan = replace(plan, grid=given_grid(settings.source_map, plan.model, codes))
    return replace(plan, grid=adaptation.grid_for(settings.adapt, plan.model, plan.grid)) if settings.adapt else plan


def labelled_images(
    settings: Classify, address: Experiment, codes: reader.Codes, units: np.ndarray
) -> training_images.LabelledImages:
    """Return the training images that count, with their weights; refuse those from which nothing can be learned."""
    weights = None
    if settings.weight_by:
        weights = read_weights(read_manifest(address.data), settings.weight_by, codes.paths)
    images = training_images.LabelledImages(codes, units, weights).without_weightless()
    if settings.drop_small_classes:
        images = images.without_small_classes(settings.folds)
    images.validate_different()
    folds = few_shot.HOLD_OUT_PARTS if settings.shots else settings.folds
    validate_trainable(images.codes.labels, codes.classes, folds, images.units)
    return images


def plan_of(settings: Classify) -> SearchPlan:
    """Return how a setting is to be chosen; refuse a grid that the model does not take."""
    grid = cast(Grid, settings.grid or params.grid_of(settings.model))  # its names are literals in the settings
    catalogue.validate_grid(settings.model, grid)
    choice = (settings.rule, settings.extend_grid, settings.search_images)
    return SearchPlan(settings.model, grid, settings.folds, settings.seed, *choice)


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
    if trained.n_searched < len(np.unique(data.units)):
        facts["n_searched"] = trained.n_searched
    if calibrate:
        facts["temperature"] = search.calibrate(trained, data, plan, memory)
    if nested:
        facts["nested"] = search.nested_cv(data, plan)
    return trained, facts


def train_with_source(
    data: TrainingData, source: training_images.LabelledImages, name: str, plan: SearchPlan, settings: Classify
) -> tuple[SearchResult, ClassifierFacts]:
    """Search and train with a source's images as well; only images of the dataset itself are held out.

    What the source brings is the difference to the same search without it, in the same folds. name: of the source.
    """
    method = str(settings.adapt)
    adapted = adaptation.METHODS[method](data, source.to_rows())
    alone = search.train(data, plan)
    trained, facts = train_classifier(adapted.data, plan, settings.calibrate, settings.nested)
    before, units = adaptation.correct_of_folds(data, plan, cv_table.setting_of(alone.chosen))
    after, _ = adaptation.correct_of_folds(adapted.data, plan, cv_table.setting_of(trained.chosen))
    facts["constant_features"] = training_images.count_constant_features(data.X)
    facts["adapted"] = {
        "source": name,
        "method": method,
        "images": len(source.units),
        "effective": adapted.weighing.effective if adapted.weighing else None,
        "separation": adapted.weighing.separation if adapted.weighing else None,
        "gain": asdict(Gain.of(before, after, units)),
    }
    return replace(trained, pipeline=adapted.finish(trained.pipeline)), facts


def correct_for_shares(settings: Classify, address: Experiment, file: Path, path: Path) -> str:
    """Correct the source's classifier for the shares of classes among the dataset's images; say what these are."""
    if not settings.source:
        raise errors.PipelineError(f"--adapt {settings.adapt} corrects a classifier of another dataset: name --source.")
    source = source_of(settings, address)
    shift = class_shares.correct_classifier(source, address, file, path, str(settings.adapt))
    return training_text.shift_summary(path, shift, source.classifier)


def source_of(settings: Classify, address: Experiment) -> Experiment:
    """Return the same experiment with the source dataset; refuse the dataset itself, by whatever name."""
    source = replace(address, dataset=resolve_task(settings.source))
    if source.codes.resolve() == address.codes.resolve():
        raise errors.PipelineError(f"--source {settings.source} is the dataset itself. Name another one.", "source")
    return source


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
        "constant_features": training_images.count_constant_features(data.X),
        "extended_grid": trained.extended_grid,
        "cv": trained.table,
    }


def dataset_facts(address: Experiment, codes: reader.Codes, units: np.ndarray, grouping: Grouping) -> ClassifierFacts:
    """Return what the metadata says of the images; units: (n,) int64 of the training images that are learned from."""
    facts: ClassifierFacts = {
        "dataset": address.name,
        "dataset_digest": training_digest(codes),
        "n_train": len(units),
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


def given_grid(path: Path, model: str, codes: reader.Codes) -> Grid:
    """Return the grid of a classifier that knows from a CSV file what the network's own classes stand for."""
    from pipeline.networks.source_classes import require_head  # takes seconds to import, and is seldom needed

    if model != catalogue.SOURCE_MAP:
        raise errors.PipelineError(f"--source-map is for --model {catalogue.SOURCE_MAP}, not {model}. Leave it out.")
    names = require_head(codes.spec.backbone, codes.spec.weights).names
    return {"probabilities": {"given": [class_maps.read_pairs(path, names, codes.classes)]}}
