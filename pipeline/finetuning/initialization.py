"""What fine-tuning starts from: images to train on and to decide by, a network, and a head on its codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.base import clone

from pipeline import errors
from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.codes.spec import CodesSpec
from pipeline.data.manifest import Manifest
from pipeline.data.splits import assign_splits
from pipeline.finetuning.head import Head
from pipeline.networks.frozen import FrozenNetwork, rebuild_network


@dataclass(frozen=True)
class TrainValSplit:
    """The images of a run: (n,) int64 rows of a manifest to train on, and to decide by which weights are best.

    carved: whether the latter were taken from the training split, which a classifier of codes has seen.
    """

    manifest: Manifest
    train: np.ndarray
    val: np.ndarray
    carved: bool = False


@dataclass(frozen=True)
class InitialState:
    """The network that gave the codes of `spec`, from where its weights are now, and a head on them."""

    spec: CodesSpec
    head: Head
    origin: str = ""


def split_train_val(manifest: Manifest, share: float, seed: int, group_by: str = "") -> TrainValSplit:
    """Return the images to train on and to decide by: the val split, or a share of each class of the training split.

    Copies of the same bytes stay on the same side, and so do images with the same value in the metadata column
    `group_by`.
    """
    splits = np.array(manifest.splits)
    train, val = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "val")
    carved = not len(val)
    if group_by:
        _validate_groups(manifest, group_by, train, val)
    if carved and 0 < share < 1:
        drawn = assign_splits(manifest.listed(train), {"val": share}, seed, group_by)
        drawn_splits = np.array([image.split for image in drawn])
        train, val = train[drawn_splits == "train"], train[drawn_splits == "val"]
    validate_split(manifest, train, val)
    return TrainValSplit(manifest, train, val, carved)


def _validate_groups(manifest: Manifest, group_by: str, train: np.ndarray, val: np.ndarray) -> None:
    """Refuse a column with gaps, and a val split of the dataset that shares groups with the training split."""
    if shared := set(manifest.take(train).groups(group_by)) & set(manifest.take(val).groups(group_by)):
        raise errors.PipelineError(
            f"The train and val splits of {manifest.root} share {len(shared)} groups of {group_by!r}, the first is "
            f"{min(shared)!r}. Prepare the dataset with --group-by {group_by}."
        )


def validate_split(manifest: Manifest, train: np.ndarray, val: np.ndarray) -> None:
    """Refuse a dataset without images to train on or to decide by, in any of its classes."""
    if not len(train):
        raise errors.PipelineError("The dataset has no training images. Prepare it with a train split.")
    if not len(val):
        raise errors.PipelineError(
            "There is no validation data to choose the best weights by. Take --val 0.15, or prepare a val split."
        )
    for name, rows in (("validation", val), ("training", train)):
        counts = np.bincount(manifest.labels[rows], minlength=len(manifest.classes))
        if not counts.all():
            raise errors.PipelineError(
                f"The class {manifest.classes[int(counts.argmin())]!r} has no {name} image. "
                "Add images of it, or prepare the dataset with a larger val split."
            )


def from_classifier(path: Path, codes_path: Path, data: TrainValSplit, dropout: float, origin: str) -> InitialState:
    """Start from a classifier of codes as it was trained; or trained again without the images that are to decide.

    It has seen those if they were taken from the training split, and would seem better on them than it is.
    """
    classifier = persistence.load(path)
    if classifier.classes != data.manifest.classes:
        raise errors.PipelineError(
            f"The classifier {path} knows other classes than the dataset: {', '.join(classifier.classes[:3])}, … "
            "Train it on this dataset first."
        )
    rebuild_network(classifier.spec, origin)  # refuses other weights than those of the codes
    head = Head.of(classifier, dropout)
    if data.carved:
        kept = {data.manifest.paths[row] for row in data.train}
        head = Head.of(retrain_without(classifier, codes_path, kept), dropout)
    return InitialState(classifier.spec, head, origin)


def retrain_without(
    classifier: persistence.SavedClassifier, codes_path: Path, kept: set[str]
) -> persistence.SavedClassifier:
    """Return the classifier with the same setting, trained on the codes of some images only."""
    training = reader.read(codes_path, classifier.spec.to_dict(), "train")
    rows = np.array([path in kept for path in training.paths])
    return replace(classifier, pipeline=clone(classifier.pipeline).fit(training.values[rows], training.labels[rows]))


def from_random_head(
    backbone: str, layer: str, origin: str, pool: str, classes: int, dropout: float, seed: int
) -> InitialState:
    """Start with a random head on the codes of a layer."""
    network = FrozenNetwork(backbone, [layer], origin, pool)
    return InitialState(network.specs[layer], Head.random(network.widths[layer], classes, dropout, seed))
