"""Recommend a layer for a dataset, and whether to fine-tune: every layer is measured on the training images."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.networks.backbones import Backbone
    from pipeline.networks.frozen import FrozenNetwork
    from pipeline.networks.source_classes import SourceHead

from pipeline import command_line, errors, params
from pipeline.analysis import recommendation, source_view
from pipeline.analysis.grouping import CodesRows, Grouping, find_image_units
from pipeline.analysis.layer_measures import CurvePoint, LayerMeasures, Method, trace_curve
from pipeline.analysis.source_distance import measure_source_distance, source_layer
from pipeline.classifiers import cv_table, search
from pipeline.classifiers.search import TrainingData
from pipeline.codes import reader
from pipeline.codes.writer import claim_folder
from pipeline.config import NEAR_DUPLICATES, Advise
from pipeline.data import sources
from pipeline.data.manifest import Manifest, require_single_label
from pipeline.data.splits import draw_distinct, find_units, validate_trainable
from pipeline.extraction import memory, runner
from pipeline.images import parallel
from pipeline.images.transforms import Framing
from pipeline.paths import Experiment
from pipeline.progress import track
from pipeline.reporting.advice_files import table_of_measures, write_advice

logger = logging.getLogger(__name__)

EXAMPLE = "python -m pipeline.advise --dataset photos --curve 1 2 4 8"
MAX_BAD = 0.1
"""Share of bad images above which no advice is given."""


def choose_images(manifest: Manifest, most: int, seed: int, column: str = "") -> Manifest:
    """Return at most about `most` training images: the same share of each class, but at least two images of each.

    Copies of an image that was drawn come last, and so do images of its group by a column of the manifest. Raise
    PipelineError if the dataset has no training images.
    """
    rng = np.random.default_rng(seed)
    training = np.flatnonzero(np.array(manifest.splits) == "train")
    share = min(1.0, most / max(len(training), 1))
    chosen: list[int] = []
    units = find_units(manifest.digests, *([manifest.groups(column)] if column else []))
    for label in np.unique(manifest.labels[training]):
        rows = draw_distinct(training[manifest.labels[training] == label], units, rng)
        chosen += rows[: max(2, round(share * len(rows)))].tolist()
    if not chosen:
        raise errors.PipelineError("The dataset has no training images with a label. Prepare one that has some.")
    return manifest.take(np.array(sorted(chosen), np.int64))


def validate_curve(counts: Sequence[int], labels: np.ndarray) -> None:
    """Refuse numbers of images per class that leave a class without images to score on; labels: (n,) int64."""
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    if counts and not 1 <= min(counts) <= max(counts) < smallest:
        raise errors.PipelineError(
            f"--curve {' '.join(map(str, counts))}: the smallest class has {smallest} of the training images that are "
            f"measured on, so take numbers from 1 to {smallest - 1}; the other images are scored."
        )


def write_codes(manifest: Manifest, network: FrozenNetwork, folder: Path) -> runner.Extraction:
    """Write the codes of all layers of a network in one pass."""
    runner.validate_disk_space(folder, 4 * len(manifest.paths), network.widths)
    done = runner.Extraction(manifest, 0, parallel.default_threads(), max_bad=MAX_BAD)
    with claim_folder(folder):
        runner.extract(done, network, folder)
    return done


def read_layer(folder: Path, layer: str) -> reader.Codes[np.ndarray]:
    """Read the codes of a layer."""
    return reader.read(folder / f"{layer}.h5", {"layer": layer})


def read_data(folder: Path, layer: str, units: np.ndarray) -> TrainingData:
    """Read the codes of a layer to learn from; units: (n,) int64 of the images, as `find_units` numbers them."""
    codes = read_layer(folder, layer)
    return TrainingData(codes.values, codes.labels, units)


def read_grids(models: Sequence[str]) -> dict[str, cv_table.Grid]:
    """Return the grid of each model, as params.yaml or the program has it; refuse what is no grid of that model."""
    grids = {model: params.grid_of(model) for model in models}
    for model, grid in grids.items():
        search.validate_grid(model, grid)
    return grids


def advise(
    folder: Path,
    layers: Sequence[str],
    units: np.ndarray,
    training: recommendation.TrainingImages,
    method: Method,
    head: str | None,
    source: str | None,
) -> tuple[list[LayerMeasures], recommendation.DatasetFacts, recommendation.Advice]:
    """Measure all layers and recommend one.

    folder: holds the codes of the layers; units: (n,) int64 of the images, as `find_units` numbers them; training: all
    that the dataset has to train on; head: the node of the network's logits, if it has one; source: the layer of
    `source_layer`, if there is one.
    """
    first = read_layer(folder, layers[0])
    validate_trainable(first.labels, first.classes, method.folds, units)
    bar = track(layers, "measuring", len(layers), "layer")
    measured = [method.measure(layer, read_data(folder, layer, units)) for layer in bar]
    logits = read_layer(folder, head).values if head else None
    distance = measure_source_distance(read_layer(folder, source)) if source else None
    facts = recommendation.describe_dataset(first.labels, units, training, logits, distance)
    best = max(measured, key=lambda layer: layer.accuracy)
    models = method.accuracies(read_data(folder, best.layer, units))
    return measured, facts, recommendation.recommend(measured, facts, models, method.large)


def layers_before_relu(backbone: Backbone, layers: Sequence[str]) -> list[str]:
    """Return the layers that end in a plain ReLU, before which codes can be taken; refuse to go on without any."""
    from pipeline.networks.frozen import relu_layers

    found = relu_layers(backbone, layers)
    if not found:
        raise errors.PipelineError(
            f"No layer of {backbone.name} ends in a ReLU that stands alone, so there are no codes before it: "
            f"{', '.join(layers)} end otherwise. Leave --relu out, or name graph nodes that are ReLUs with --layer."
        )
    if rest := [layer for layer in layers if layer not in found]:
        logger.info("Codes before the ReLU: of %s; none of %s.", ", ".join(found), ", ".join(rest))
    return found


def describe_source_view(folder: Path, head: SourceHead) -> list[source_view.ClassView]:
    """Return what the pretrained network sees in each class, by the scores of its own head."""
    scores = read_layer(folder, head.node)
    return source_view.commonest_source_classes(scores.values, scores.labels, scores.classes, head.names)


def trace_curves(
    folder: Path,
    measured: Sequence[LayerMeasures],
    units: np.ndarray,
    counts: Sequence[int],
    method: Method,
) -> list[CurvePoint]:
    """Return the few-shot curves of all layers, each with the setting that is best for the layer."""
    points: list[CurvePoint] = []
    for layer in measured:
        spec, data = read_layer(folder, layer.layer).spec, read_data(folder, layer.layer, units)
        points += trace_curve(spec, data, layer.setting, method.plan(method.model), counts)
    return points


def run(settings: Advise) -> None:
    """Advise on what the settings name."""
    memory.keep_freed()
    from pipeline.networks import backbones, layer_nodes, source_classes
    from pipeline.networks.frozen import FrozenNetwork, choose_device

    address, backbone = Experiment(settings.dataset, settings.backbone), backbones.get(settings.backbone)
    layers = layer_nodes.sort_layers(
        backbone, layer_nodes.find_nodes(backbone, settings.layer or layer_nodes.friendly_layers(backbone))
    )
    before_relu = layers_before_relu(backbone, layers) if settings.curve and settings.relu != "post" else []
    method = Method(read_grids(settings.models), settings.folds, settings.seed, settings.large)
    manifest = sources.open_prepared(address.data, **params.split_settings())
    require_single_label(manifest)
    column = "" if settings.group_by == NEAR_DUPLICATES else settings.group_by
    chosen, training = (
        choose_images(manifest, settings.images, settings.seed, column),
        recommendation.count_training_images(manifest),
    )
    device = choose_device(settings.device)
    validate_curve(settings.curve, chosen.labels)
    framing = Framing(max_value=chosen.max_value)
    build = partial(FrozenNetwork, settings.backbone, origin=settings.weights, pool=settings.pool, framing=framing)
    head = source_classes.find_head(backbone, settings.weights)
    extras = scores, source = head.node if head else None, source_layer(settings.backbone)
    folder = Path("features", address.name, ".advice", settings.backbone)
    write_codes(chosen, build(dict.fromkeys([*layers, *filter(None, extras)])).to(device), folder)
    images = CodesRows.of_splits(folder / f"{layers[-1]}.h5", "train")
    units = find_image_units(images, address.data, Grouping(settings.group_by, settings.near_distance))
    measured, facts, advice = advise(folder, layers, units, training, method, scores, source)
    points: list[CurvePoint] = []
    if settings.curve and settings.relu != "pre":
        points += trace_curves(folder, measured, units, settings.curve, method)
    if before_relu:
        before = folder.with_name(f"{settings.backbone}-pre")
        write_codes(chosen, build(before_relu, relu="pre").to(device), before)
        of_names = [layer for layer in measured if layer.layer in before_relu]
        points += trace_curves(before, of_names, units, settings.curve, method)
    seen = describe_source_view(folder, head) if head and head.names else []
    out = settings.out or address.advice
    write_advice(out, measured, facts, advice, points, seen)
    print(table_of_measures(measured, advice.layer))
    print("\n".join(["", *advice.sentences, "", *advice.measures]))
    print(f"\n{out}: layers.csv, layers.png, {'curve.csv, ' if points else ''}advice.json")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("advise", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
