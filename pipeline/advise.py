"""Recommend a layer for a dataset, and whether to fine-tune: every layer is measured on the training images."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.networks.backbones import Backbone
    from pipeline.networks.frozen import FrozenNetwork
    from pipeline.networks.source_classes import SourceHead

from pipeline import command_line, errors, files, params
from pipeline.analysis import recommendation, source_view
from pipeline.analysis.grouping import CodesRows, Grouping, find_image_units
from pipeline.classifiers import cv_table, search
from pipeline.classifiers.search import SearchPlan, TrainingData
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
from pipeline.reporting import figures

logger = logging.getLogger(__name__)

EXAMPLE = "python -m pipeline.advise --dataset photos --curve 1 2 4 8"
MAX_BAD = 0.1
"""Share of bad images above which no advice is given."""


def choose_images(manifest: Manifest, most: int, seed: int, column: str = "") -> Manifest:
    """Return at most about `most` training images: the same share of each class, but at least two images of each.

    Copies of an image that was drawn come last, and so do images of its group by a column of the manifest.
    """
    rng = np.random.default_rng(seed)
    training = np.flatnonzero(np.array(manifest.splits) == "train")
    share = min(1.0, most / max(len(training), 1))
    chosen: list[int] = []
    units = find_units(manifest.digests, *([manifest.groups(column)] if column else []))
    for label in np.unique(manifest.labels[training]):
        rows = draw_distinct(training[manifest.labels[training] == label], units, rng)
        chosen += rows[: max(2, round(share * len(rows)))].tolist()
    return manifest.take(np.array(sorted(chosen), np.int64))


def choose_training_images(data: Path, most: int, seed: int, group_by: str) -> Manifest:
    """Return the training images of a prepared dataset to measure on, at most about `most`; refuse to go without."""
    manifest = sources.open_prepared(data, **params.split_settings())
    require_single_label(manifest)
    chosen = choose_images(manifest, most, seed, "" if group_by == NEAR_DUPLICATES else group_by)
    if not chosen.paths:
        raise errors.PipelineError("The dataset has no training images with a label. Prepare one that has some.")
    return chosen


def validate_curve(counts: Sequence[int], labels: np.ndarray) -> None:
    """Refuse numbers of images per class that leave a class without images to score on; labels: (n,) int64."""
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    if counts and not 1 <= min(counts) <= max(counts) < smallest:
        raise errors.PipelineError(
            f"--curve {' '.join(map(str, counts))}: the smallest class has {smallest} training images, so take "
            f"numbers from 1 to {smallest - 1}; the other images are scored."
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


def source_layer(backbone: str) -> str | None:
    """Return the layer whose codes of the backbone's source have a known mean and covariance; None if there is none."""
    from pipeline.networks import tinyvgg

    if backbone != "tinyvgg":
        return None
    with np.load(tinyvgg.SOURCE_STATISTICS) as source:
        return str(source["layer"])


def measure_source_distance(codes: reader.Codes) -> float | None:
    """Return the distance to the source of the codes of `source_layer`; None if the source's were made otherwise."""
    from pipeline.networks import tinyvgg

    spec, averaged = codes.spec, ("avg", "avg4", "flatten")  # all of them keep the mean of a map of 4×4
    framing = spec.transform.crop, spec.transform.fit
    if spec.weights != "default" or spec.pool not in averaged or framing != (tinyvgg.SIZE, "crop"):
        return None
    with np.load(tinyvgg.SOURCE_STATISTICS) as source:
        mean, cov = source["mean"], source["cov"]
    averages = codes.values.reshape(len(codes.values), len(mean), -1).mean(2)
    return recommendation.distance_to_source(averages, mean, cov)


@dataclass(frozen=True)
class Method:
    """How layers are measured.

    grids: {model: its grid}; the first model measures every layer, and all models measure the best layer; folds, seed:
    of the cross-validation; large: number of images in the smallest class from which a dataset counts as large.
    """

    grids: Mapping[str, cv_table.Grid]
    folds: int
    seed: int
    large: int

    @property
    def model(self) -> str:
        """The model that measures every layer."""
        return next(iter(self.grids))

    def plan(self, model: str) -> SearchPlan:
        """Return how the setting of a model is chosen."""
        return SearchPlan(model, self.grids[model], self.folds, self.seed)

    def measure(self, layer: str, data: TrainingData) -> recommendation.LayerMeasures:
        """Measure a layer with the first normalisation of the grid, which is enough to rank layers."""
        normalise, values = next(iter(self.grids[self.model].items()))
        return recommendation.measure_layer(layer, data, replace(self.plan(self.model), grid={normalise: values}))

    def accuracies(self, data: TrainingData) -> dict[str, float]:
        """Return the cross-validated accuracy of every model on a layer's codes."""
        return {name: recommendation.cross_validate(data, self.plan(name))[1] for name in self.grids}


def read_grids(models: Sequence[str]) -> dict[str, cv_table.Grid]:
    """Return the grid of each model, as params.yaml or the program has it; refuse what is no grid of that model."""
    grids = {model: params.grid_of(model) for model in models}
    for model, grid in grids.items():
        search.validate_grid(model, grid)
    return grids


def advise(
    folder: Path, layers: Sequence[str], units: np.ndarray, method: Method, head: str | None, source: str | None
) -> tuple[list[recommendation.LayerMeasures], recommendation.DatasetFacts, recommendation.Advice]:
    """Measure all layers and recommend one.

    folder: holds the codes of the layers; units: (n,) int64 of the images, as `find_units` numbers them; head: the node
    of the network's logits, if it has one; source: the layer of `source_layer`, if there is one.
    """
    first = read_layer(folder, layers[0])
    validate_trainable(first.labels, first.classes, method.folds, units)
    bar = track(layers, "measuring", len(layers), "layer")
    measured = [method.measure(layer, read_data(folder, layer, units)) for layer in bar]
    logits = read_layer(folder, head).values if head else None
    distance = measure_source_distance(read_layer(folder, source)) if source else None
    facts = recommendation.describe_dataset(first.labels, units, logits, distance)
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
    measured: Sequence[recommendation.LayerMeasures],
    units: np.ndarray,
    counts: Sequence[int],
    method: Method,
) -> list[recommendation.CurvePoint]:
    """Return the few-shot curves of all layers, each with the setting that is best for the layer."""
    points: list[recommendation.CurvePoint] = []
    for layer in measured:
        spec, data = read_layer(folder, layer.layer).spec, read_data(folder, layer.layer, units)
        points += recommendation.trace_curve(spec, data, layer.setting, method.plan(method.model), counts)
    return points


def write(
    folder: Path,
    measured: Sequence[recommendation.LayerMeasures],
    facts: recommendation.DatasetFacts,
    advice: recommendation.Advice,
    points: Sequence[recommendation.CurvePoint],
    seen: Sequence[source_view.ClassView],
) -> None:
    """Write layers.csv, layers.png, curve.csv, source_classes.csv and, last, advice.json."""
    rows = [asdict(layer) | {"setting": json.dumps(layer.setting)} for layer in measured]
    files.write_csv(folder / "layers.csv", list(rows[0]), [list(row.values()) for row in rows])
    draw(folder / "layers.png", measured)
    traced = [asdict(point) for point in points]
    if traced:
        files.write_csv(folder / "curve.csv", list(traced[0]), [list(row.values()) for row in traced])
    shares = [(view["label"], view["n"], *share) for view in seen for share in view["seen"]]
    if shares:
        files.write_csv(folder / "source_classes.csv", ["class", "n", "source_class", "share"], shares)
    content = {
        "advice": asdict(advice),
        "dataset": asdict(facts),
        "layers": [asdict(layer) for layer in measured],
        "curve": traced,
        "source_classes": seen,
    }
    files.write_json(folder / "advice.json", content)


def draw(path: Path, measured: Sequence[recommendation.LayerMeasures]) -> None:
    """Draw accuracy, LogME and H-score of each layer."""
    places = range(len(measured))
    accuracy = np.array([layer.accuracy for layer in measured])
    spans = np.abs(np.array([[layer.low, layer.high] for layer in measured]).T - accuracy)
    with figures.new_figure(path, max(5, 0.6 * len(measured) + 2), 7) as figure:
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        top.errorbar(places, accuracy, spans, marker="o", capsize=3)
        middle.plot(places, [layer.log_me for layer in measured], marker="o")
        bottom.plot(places, [layer.h_score for layer in measured], marker="o")
        for axes, name in ((top, "cross-validated accuracy"), (middle, "LogME"), (bottom, "H-score, shrunk")):
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
        bottom.set_xticks(places, [layer.layer for layer in measured], rotation=45, ha="right", parse_math=False)


def table(measured: Sequence[recommendation.LayerMeasures], best: str) -> str:
    """Return the measures as a table of text, the most accurate layer first; `best` is marked."""
    lines = [f"{'layer':<12} {'width':>6} {'accuracy':>8}  {'95% interval':<15} {'LogME':>8} {'H-score':>8}"]
    for layer in sorted(measured, key=lambda layer: -layer.accuracy):
        span = f"{layer.low:.4f}–{layer.high:.4f}"
        mark = "  ← taken" if layer.layer == best else ""
        measures = f"{layer.log_me:>8.4f} {layer.h_score:>8.4f}{mark}"
        lines.append(f"{layer.layer:<12} {layer.width:>6} {layer.accuracy:>8.4f}  {span:<15} {measures}")
    return "\n".join(lines)


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
    chosen = choose_training_images(address.data, settings.images, settings.seed, settings.group_by)
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
    measured, facts, advice = advise(folder, layers, units, method, scores, source)
    points: list[recommendation.CurvePoint] = []
    if settings.curve and settings.relu != "pre":
        points += trace_curves(folder, measured, units, settings.curve, method)
    if before_relu:
        before = folder.with_name(f"{settings.backbone}-pre")
        write_codes(chosen, build(before_relu, relu="pre").to(device), before)
        of_names = [layer for layer in measured if layer.layer in before_relu]
        points += trace_curves(before, of_names, units, settings.curve, method)
    seen = describe_source_view(folder, head) if head and head.names else []
    out = settings.out or address.advice
    write(out, measured, facts, advice, points, seen)
    print(table(measured, advice.layer))
    print("\n".join(["", *advice.sentences, "", *advice.measures]))
    print(f"\n{out}: layers.csv, layers.png, {'curve.csv, ' if points else ''}advice.json")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("advise", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
