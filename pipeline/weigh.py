"""Weigh the classes of a source dataset by how much a target looks like them, to pretrain on what will help.

Example: python -m pipeline.weigh --dataset flowers --backbone tinyvgg
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("weigh")

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import errors, files, params
from pipeline.analysis import source_weights
from pipeline.analysis.source_weights import SourceWeights, mean_probabilities
from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.config import Weigh
from pipeline.data import digits
from pipeline.data.manifest import UNLABELLED, Manifest, require_single_label
from pipeline.data.sampling import units_of
from pipeline.extraction.transformer import CNNCodes
from pipeline.networks import source_classes
from pipeline.networks.frozen import choose_device
from pipeline.paths import Experiment
from pipeline.reporting import figures

SHOWN = 10
"""How many of the heaviest and of the lightest classes are shown."""


def first_of_each(manifest: Manifest) -> np.ndarray:
    """Return the rows (n,) int64 of the training images, copies once; their labels do not matter.

    In a dataset without labels, all images are for that. Raises PipelineError if there are none.
    """
    rows = np.flatnonzero(manifest.splits.isin(["train"]))
    rows = rows if len(rows) else np.flatnonzero(manifest.splits.isin([UNLABELLED]))
    if not len(rows):
        raise errors.PipelineError(f"{manifest.root} has no training images. Prepare a dataset that has some.")
    firsts: np.ndarray = rows[np.unique(units_of(manifest.take(rows), ""), return_index=True)[1]]
    return firsts


def by_own_head(backbone: str, origin: str, target: Manifest, temperature: float, device: str) -> SourceWeights:
    """Weigh the classes that a network was pretrained on, by its own head; target: the images to weigh by."""
    head = source_classes.require_head(backbone, origin)
    codes = CNNCodes(backbone, head.node, weights=origin, range=target.max_value, device=device)
    return SourceWeights(head.names, None, mean_probabilities(codes.fit_transform(target.files()), temperature))


def by_classifier(
    classifier: Path, source: Manifest, codes: Path, target: Manifest, temperature: float
) -> SourceWeights:
    """Weigh the classes of a source dataset, by a classifier of its codes.

    target: the images to weigh by; codes: those of the target's dataset.
    """
    saved = persistence.load(classifier)
    if saved.classes != source.classes:
        raise errors.PipelineError(
            f"{classifier} has other classes than {source.root}, which it is to weigh. Train it again.",
            fix=[errors.Fix("classify", {"dataset": source.root.name})],
        )
    validate_dataset(codes, target.root)
    stored = reader.read_layers(codes, saved.spec.to_dict())
    rows = np.flatnonzero(target.paths.rows_of(stored.paths) >= 0)
    probabilities = persistence.probabilities(saved, stored.values[rows])
    if probabilities is None:
        raise errors.PipelineError(f"{classifier} gives no probabilities. Take --model softmax.")
    training = source.splits.isin(["train"])
    counts = np.bincount(source.labels[training], minlength=len(source.classes))
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities)
    return SourceWeights(saved.classes, counts, mean_probabilities(scores, temperature))


def draw(path: Path, weights: SourceWeights) -> None:
    """Draw the weights of the heaviest and of the lightest classes."""
    shown = source_weights.extremes(weights.heaviest(len(weights.classes)), SHOWN)
    names = [weights.classes[number] for number in shown]
    with figures.new_figure(path, 7, 1 + 0.25 * len(shown)) as figure:
        axes = figure.subplots()
        axes.barh(range(len(shown)), weights.values[shown])
        axes.axvline(1, color="grey", linestyle="--")
        axes.set_yticks(range(len(shown)), names, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("weight: share among the target's images over share among the source's")


def table(weights: SourceWeights) -> str:
    """Return the heaviest classes as a table of text."""
    lines = [f"{'class':<30} {'P_source':>9} {'P_target':>9} {'weight':>8}"]
    for number in weights.heaviest(SHOWN):
        shares = f"{weights.p_source[number]:>9.4f} {weights.p_target[number]:>9.4f}"
        lines.append(f"{weights.classes[number][:30]:<30} {shares} {weights.values[number]:>8.2f}")
    return "\n".join(lines)


def run(settings: Weigh) -> None:
    """Weigh what the settings name."""
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    manifest = digits.open_prepared(address.data, **params.split_settings())
    target = manifest.take(first_of_each(manifest))
    if settings.source:
        of_source = replace(address, dataset=settings.source)
        source = digits.open_prepared(of_source.data, **params.split_settings())
        require_single_label(source)
        weights = by_classifier(of_source.classifier, source, address.codes, target, settings.temperature)
        judge, source_name = f"the classifier {of_source.classifier}", of_source.name
    else:
        device = choose_device(settings.device)
        weights = by_own_head(settings.backbone, settings.weights, target, settings.temperature, device)
        judge, source_name = f"the head of {settings.backbone} ({settings.weights} weights)", ""
    out = settings.out or address.reports / "source_weights"
    source_weights.write(out / "weights.csv", weights)
    draw(out / "weights.png", weights)
    n_images = len(target.paths)
    facts = {"judge": judge, "source": source_name, "temperature": settings.temperature, "n_images": n_images}
    files.write_json(out / "weights.json", facts | {"effective_classes": weights.effective_classes})
    print(table(weights))
    print(
        f"{out / 'weights.csv'}: {errors.counted(len(weights.classes), 'class')} by {judge} on "
        f"{errors.counted(n_images, 'image')}, as many as {weights.effective_classes:.1f} equally weighted ones"
    )
