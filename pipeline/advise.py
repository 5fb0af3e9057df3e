"""Recommend a layer for a dataset, and whether to fine-tune: every layer is measured on the training images.

Example: python -m pipeline.advise --dataset photos --curve 1 2 4 8
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("advise")

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import errors, params
from pipeline.analysis import source_weights
from pipeline.analysis.gain import Gain
from pipeline.analysis.grouping import CodesRows, Grouping, find_image_units
from pipeline.analysis.layer_measures import CurvePoint, LayerMeasures, Method, trace_curve
from pipeline.analysis.recommendation import DatasetFacts, TrainingImages, Tried, count_training_images, recommend
from pipeline.analysis.source_distance import measure_source_distance, source_layer
from pipeline.analysis.source_view import ClassView, commonest_source_classes
from pipeline.classifiers import catalogue, cv_table
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes.reader import Codes
from pipeline.config import NEAR_DUPLICATES, Advise
from pipeline.data import digits
from pipeline.data.manifest import Manifest
from pipeline.data.sampling import choose_images, training_images
from pipeline.data.splits import validate_trainable
from pipeline.extraction import memory
from pipeline.extraction.sample import Kind, SampleCodes
from pipeline.images import parallel
from pipeline.images.transforms import Framing, Transform
from pipeline.networks import backbones, layer_nodes, source_classes
from pipeline.networks.backbones import Backbone
from pipeline.networks.frozen import FrozenNetwork, choose_device, relu_layers
from pipeline.networks.source_classes import SourceHead
from pipeline.paths import Experiment
from pipeline.progress import track
from pipeline.reporting.advice_files import table_of_measures, write_advice, write_no_advice

logger = logging.getLogger(__name__)


RELUS = {"post": ("post",), "pre": ("pre",), "both": ("post", "pre")}
"""Where codes are taken, by the value of --relu: the first are measured, the curve shows all."""

OF_SOURCE = Kind()
"""The codes that are compared with the source's, and the scores of the network's own classes: of one view."""

LINEAR = ("svm", "softmax", "ridge")
"""The models that can become the head of a network."""

MAX_NUMBERS = 1 << 28
"""The most numbers that the codes of a layer may have, 1 GB: a layer with more is left out, unless it is asked for."""


def draw_sample(settings: Advise, manifest: Manifest) -> tuple[Manifest, TrainingImages]:
    """Return the images to measure on, and how many training images there are in all."""
    column = "" if settings.group_by == NEAR_DUPLICATES else settings.group_by
    training = training_images(manifest, settings.folds, column, settings.drop_small_classes)
    sample = choose_images(training, settings.images, settings.seed, column, max(2, settings.folds))
    validate_curve(settings.curve, sample.labels)
    return sample, count_training_images(training)


def find_layers(
    backbone: Backbone, asked: Sequence[str] | None, transform: Transform, pool: str, widest: int
) -> list[str]:
    """Return the layers to measure, from the input on: those asked for, or all named ones that suit the settings.

    transform, pool, widest: as in `layer_nodes.unsuitable_layers`, whose layers and reasons are logged.
    """
    layers = list(layer_nodes.find_nodes(backbone, asked or layer_nodes.named_layers(backbone)))
    reasons = {} if asked else layer_nodes.unsuitable_layers(backbone, layers, transform, pool, widest)
    for layer, reason in reasons.items():
        logger.warning("Left out: layer %s. %s", layer, reason)
    return layer_nodes.sort_layers(backbone, [layer for layer in layers if layer not in reasons])


def find_head(backbone: Backbone, weights: str, transform: Transform) -> SourceHead | None:
    """Return the network's own head; None where it has none, or cannot run up to it at the images' size."""
    head = source_classes.find_head(backbone, weights)
    if head and layer_nodes.unsuitable_layers(backbone, [head.node], transform, "avg", MAX_NUMBERS):
        return None
    return head


def reason_against(manifest: Manifest, backbone: str, layers: Sequence[str]) -> str:
    """Return why there is no advice on a dataset and a backbone of which these layers can be measured; "" if there is.

    It is nothing that the user did wrong, so it ends no run of all stages.
    """
    if manifest.labels.ndim == 2:
        return "The images have several labels each, and layers are measured on images of one label."
    if not layers:
        return f"No layer of {backbone} with a friendly name suits these settings. Name graph nodes with --layer."
    return ""


def validate_curve(counts: Sequence[int], labels: np.ndarray) -> None:
    """Refuse numbers of images per class that leave a class without images to score on; labels: (n,) int64."""
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    if counts and not 1 <= min(counts) <= max(counts) < smallest:
        raise errors.PipelineError(
            f"--curve {' '.join(map(str, counts))}: the smallest class has {smallest} of the training images that are "
            f"measured on, so take numbers from 1 to {smallest - 1}; the other images are scored."
        )


def read_grids(models: Sequence[str]) -> dict[str, cv_table.Grid]:
    """Return the grid of each model, as params.yaml or the program has it; refuse what is no grid of that model."""
    grids = {model: params.grid_of(model) for model in models}
    for model, grid in grids.items():
        catalogue.validate_grid(model, grid)
    return grids


def layers_before_relu(backbone: Backbone, layers: Sequence[str]) -> list[str]:
    """Return the layers that end in a plain ReLU, before which codes can be taken; refuse to go on without any."""
    found = relu_layers(backbone, layers)
    if not found:
        raise errors.PipelineError(
            f"No layer of {backbone.name} ends in a ReLU that stands alone, so there are no codes before it: "
            f"{', '.join(layers)} end otherwise. Leave --relu out, or name graph nodes that are ReLUs with --layer."
        )
    if rest := [layer for layer in layers if layer not in found]:
        logger.info("Codes before the ReLU: of %s; none of %s.", ", ".join(found), ", ".join(rest))
    return found


def kinds_of_codes(
    backbone: Backbone, layers: Sequence[str], relu: str, views: str, curve: bool
) -> dict[Kind, list[str]]:
    """Return the layers of each kind of codes: first the kind that is measured, then one that the curve shows."""
    wanted = RELUS[relu] if curve else RELUS[relu][:1]
    return {
        Kind(where, views): layers_before_relu(backbone, layers) if where == "pre" else list(layers) for where in wanted
    }


def measure_layers(
    codes: SampleCodes, kind: Kind, layers: Sequence[str], units: np.ndarray, method: Method
) -> list[LayerMeasures]:
    """Measure the codes of layers; units: (n,) int64 of the images, as `find_units` numbers them."""
    first = codes.read(kind, layers[0])
    validate_trainable(first.labels, first.classes, method.folds, units)
    bar = track(layers, "measuring", len(layers), "layer")
    return [method.measure(layer, TrainingData.of_codes(codes.read(kind, layer), units)) for layer in bar]


def describe_predictions(
    codes: SampleCodes, facts: DatasetFacts, head: SourceHead | None
) -> tuple[DatasetFacts, list[ClassView]]:
    """Return facts with the network's own predictions added, and the classes it sees in each of the dataset's.

    head: of the network, if it has one; without names of its classes the latter is empty.
    """
    if head is None:
        return facts, []
    scores = codes.read(OF_SOURCE, head.node)
    facts = facts.with_predictions(scores.values, scores.labels)
    if not head.names:
        return facts, []
    return facts, commonest_source_classes(scores.values, scores.labels, scores.classes, head.names)


def describe_source_weights(codes: SampleCodes, head: SourceHead | None) -> tuple[str, ...]:
    """Return a sentence on the source classes that the dataset's images look most like; () where no head knows any."""
    if head is None or not head.names:
        return ()
    shares = source_weights.mean_probabilities(codes.read(OF_SOURCE, head.node).values, temperature=1.0)
    return (source_weights.describe(source_weights.SourceWeights(head.names, None, shares)),)


def trace_curves(
    codes: SampleCodes,
    layers: Mapping[Kind, Sequence[str]],
    measured: Sequence[LayerMeasures],
    units: np.ndarray,
    counts: Sequence[int],
    method: Method,
) -> list[CurvePoint]:
    """Return the few-shot curves of the layers of each kind, each with the setting that is best for the layer."""
    points: list[CurvePoint] = []
    plan = method.plan(method.model)
    for kind, names in layers.items():
        for layer in (layer for layer in measured if layer.layer in names):
            read = codes.read(kind, layer.layer)
            points += trace_curve(read.spec, TrainingData.of_codes(read, units), layer.setting, plan, counts)
    return points


def build_network(
    settings: Advise, framing: Framing, head: SourceHead | None, kind: Kind, layers: Sequence[str]
) -> FrozenNetwork:
    """Return the network that gives the codes of a kind, as `extract` would build it; head: of the network."""
    pools = {layer: "avg" if head and layer == head.node else settings.pool for layer in layers}
    seen = replace(framing, views=kind.views)
    network = FrozenNetwork(settings.backbone, layers, settings.weights, pools, seen, kind.relu)
    network = network.to(choose_device(settings.device))
    return network.at(settings.fixed_precision, settings.dtype, settings.fixed_decoder)


def validate_trial(settings: Advise, backbone: Backbone, transform: Transform) -> None:
    """Refuse, before anything is computed, to try fine-tuning with settings that it cannot start from."""
    if not settings.try_finetuning:
        return
    from pipeline.finetuning.model import TUNED_ON

    model, (normalisation, *_) = settings.models[0], params.grid_of(settings.models[0])
    if model not in LINEAR or normalisation not in ("l2", "standard"):
        raise errors.PipelineError(
            "--try-finetuning starts from the first of --models, with the first normalisation of its grid, here "
            f"{model} with {normalisation}. Name one of {', '.join(LINEAR)} first, with l2 or standard first."
        )
    native = replace(backbones.transform_of(backbone, settings.weights), max_value=transform.max_value)
    if settings.relu != "post" or transform != native:
        raise errors.PipelineError(
            f"{TUNED_ON}. Leave --try-finetuning out, or --size, --resize, --crop, --views and --relu (they may stand "
            "in params.yaml, in the section of extract)."
        )


def try_finetuning(
    settings: Advise, sample: Manifest, codes: Codes[np.ndarray], units: np.ndarray, setting: cv_table.Setting
) -> Tried | str | None:
    """Return what a short run of fine-tuning gives from the codes of a layer, or why it could not be tried.

    None if it was not asked for.

    sample: holds the images of the codes; units: (n,) int64 of these; setting: of the first model, best for the layer.
    """
    if not settings.try_finetuning:
        return None
    from pipeline.finetuning import trial
    from pipeline.finetuning.runtime import RuntimeConfig, choose_step_precision
    from pipeline.networks.frozen import choose_device

    device = choose_device(settings.device)
    runtime = RuntimeConfig(device, parallel.default_threads(), choose_step_precision("auto", device))
    data = trial.part_images(sample, codes, units, settings.seed)
    known = settings.models[0], setting["normalisation"], setting["parameters"]
    try:
        ran = trial.Trial(codes, data, *known, 60 * settings.try_minutes, settings.seed, runtime).run()
    except trial.TrialImpossibleError as error:
        return str(error)
    return Tried(Gain.of(ran.before, ran.after, ran.units), ran.n_train, ran.epochs, ran.seconds)


def run(settings: Advise) -> None:
    """Advise on what the settings name, or say why there is no advice."""
    memory.keep_freed()
    address, backbone = Experiment(settings.dataset, settings.backbone), backbones.get(settings.backbone)
    method = Method(read_grids(settings.models), settings.folds, settings.seed, settings.large)
    manifest, out = digits.open_prepared(address.data, **params.split_settings()), settings.out or address.advice
    framing = Framing.sized(**settings.framing(manifest.max_value))
    transform = framing.of(backbones.transform_of(backbone, settings.weights, framing.test_size))
    layers = find_layers(backbone, settings.layer, transform, settings.pool, MAX_NUMBERS // settings.images)
    validate_trial(settings, backbone, transform)
    if reason := reason_against(manifest, settings.backbone, layers):
        write_no_advice(out, reason)
        print(f"No advice: {reason}\n\n{out}: advice.json")
        return
    sample, training = draw_sample(settings, manifest)
    kinds = kinds_of_codes(backbone, layers, settings.relu, settings.views, bool(settings.curve))
    head, source = find_head(backbone, settings.weights, transform), source_layer(settings.backbone, transform)
    of_source = [name for name in (head and head.node, source) if name]
    codes = SampleCodes(Path("features", address.name, ".advice", settings.backbone))
    passes = {**kinds, OF_SOURCE: [*kinds.get(OF_SOURCE, []), *of_source]}
    codes.write(sample, passes, partial(build_network, settings, framing, head))
    kind, layers = next(iter(kinds.items()))
    images = CodesRows.of_splits(codes.path(kind, layers[0]), "train")
    units = find_image_units(images, address.data, Grouping(settings.group_by, settings.near_distance))
    measured = measure_layers(codes, kind, layers, units, method)
    best = max(measured, key=lambda layer: layer.accuracy)
    models = method.accuracies(TrainingData.of_codes(codes.read(kind, best.layer), units))
    distance = measure_source_distance(codes.read(OF_SOURCE, source)) if source else None
    facts, seen = describe_predictions(codes, DatasetFacts.of(units, training, distance), head)
    tried = try_finetuning(settings, sample, codes.read(kind, best.layer), units, best.setting)
    advice = recommend(measured, facts, models, method.large, tried)
    advice = replace(advice, measures=(*advice.measures, *describe_source_weights(codes, head)))
    points = trace_curves(codes, kinds, measured, units, settings.curve, method) if settings.curve else []
    write_advice(out, measured, facts, advice, points, seen, tried)
    print(table_of_measures(measured, advice.layer))
    print("\n".join(["", *advice.sentences, "", *advice.measures]))
    print(f"\n{out}: layers.csv, layers.png, {'curve.csv, ' if points else ''}advice.json")
