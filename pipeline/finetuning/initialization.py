"""What fine-tuning starts from: training and validation images, a network, and a head on its codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from sklearn.base import clone

from pipeline import errors
from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.codes.spec import CodesSpec, spec_differences
from pipeline.config import NEAR_DUPLICATES
from pipeline.data.manifest import Manifest
from pipeline.data.splits import assign_splits, find_units, nothing_to_learn_from
from pipeline.finetuning.head import Head
from pipeline.finetuning.model import TUNED_ON, usual_spec
from pipeline.networks import backbones
from pipeline.networks.frozen import FrozenNetwork, rebuild_network
from pipeline.texts import Texts


def no_rows() -> np.ndarray:
    """Return (0,) int64 rows."""
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class TrainValSplit:
    """The images of a run: (n,) int64 rows of a manifest to train on, and to choose the best weights by.

    held_out: whether the latter were held out of the training split, on which a classifier of codes was trained;
    group_by: column of the manifest whose groups the two do not share, "" for none; reward: (n,) int64, the images held
    out of the training split by which weights of source classes are learned, if they are.
    """

    manifest: Manifest
    train: np.ndarray
    val: np.ndarray
    held_out: bool = False
    group_by: str = ""
    reward: np.ndarray = field(default_factory=no_rows)

    def train_labels(self) -> np.ndarray:
        """Return the labels (n_train,) int64 of the training images."""
        labels: np.ndarray = self.manifest.labels[self.train]
        return labels

    def val_units(self) -> np.ndarray:
        """Return the units (n_val,) int64 of the validation images, as in `scoring.interval`."""
        val = self.manifest.take(self.val)
        return find_units(val.contents, *([val.metadata[self.group_by]] if self.group_by else []))


@dataclass(frozen=True)
class InitialState:
    """The network that gave the codes of `spec`, and a head on them.

    origin: where the network's weights are now, if not where the spec says; trained: whether the head is a trained
    classifier of the codes, not a random one.
    """

    spec: CodesSpec
    head: Head
    origin: str = ""
    trained: bool = True


def split_train_val(manifest: Manifest, share: float, seed: int, group_by: str = "") -> TrainValSplit:
    """Return training and validation images: the val split, or else a share of each class of the training split.

    Copies stay on the same side, and so do images with the same value in the metadata column
    `group_by`.
    """
    train, val = (np.flatnonzero(manifest.splits.isin([split])) for split in ("train", "val"))
    held_out = not len(val)
    if group_by:
        _validate_groups(manifest, group_by, train, val)
    if held_out and 0 < share < 1:
        train, val = hold_out(manifest, train, share, seed, group_by)
    validate_split(manifest, train, val)
    return TrainValSplit(manifest, train, val, held_out, group_by)


def hold_out(
    manifest: Manifest, rows: np.ndarray, share: float, seed: int, group_by: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (n,) int64 that remain, and those held out: a share of each class; copies and groups stay."""
    drawn = assign_splits(manifest.listed(rows), {"val": share}, seed, group_by)
    splits = np.array([image.split for image in drawn])
    return rows[splits == "train"], rows[splits == "val"]


def hold_out_reward(data: TrainValSplit, share: float, seed: int) -> TrainValSplit:
    """Return the images with a share of each class of the training images held out for the reward.

    Raise PipelineError where a class is left without images in either part.
    """
    train, reward = data.train, no_rows()
    if share:
        train, reward = hold_out(data.manifest, data.train, share, seed, data.group_by)
    if not len(reward):
        raise errors.PipelineError(
            "There are no target images to measure the reward on, by which weights are learned. Take --reward-share "
            "0.2, and two training images of each class or more."
        )
    _validate_classes(data.manifest, {"reward": reward, "training": train})
    return replace(data, train=train, reward=reward)


def _validate_groups(manifest: Manifest, group_by: str, train: np.ndarray, val: np.ndarray) -> None:
    """Refuse a column with gaps, and a val split of the dataset that shares groups with the training split."""
    if shared := set(manifest.take(train).groups(group_by)) & set(manifest.take(val).groups(group_by)):
        raise errors.PipelineError(
            f"The train and val splits of {manifest.root} share {len(shared)} groups of {group_by!r}, the first is "
            f"{min(shared)!r}. {_way_to_part(group_by)}"
        )


def _way_to_part(group_by: str) -> str:
    """Say how train and val splits come about that share no group."""
    if group_by == NEAR_DUPLICATES:
        return "Prepare the dataset without a val split: a share of the training images (--val) then takes its place."
    return f"Prepare the dataset with --group-by {group_by}."


def validate_split(manifest: Manifest, train: np.ndarray, val: np.ndarray) -> None:
    """Raise PipelineError if there are no training or no validation images, in all or in one of the classes."""
    if not len(train):
        raise nothing_to_learn_from("The dataset has")
    if not len(val):
        raise errors.PipelineError(
            "There is no validation data to choose the best weights by. Take --val 0.15, or prepare a val split."
        )
    _validate_classes(manifest, {"validation": val, "training": train})


def _validate_classes(manifest: Manifest, parts: Mapping[str, np.ndarray]) -> None:
    """Refuse a class without an image in one of the parts, {name: rows (n,) int64}."""
    for name, rows in parts.items():
        counts = np.bincount(manifest.labels[rows], minlength=len(manifest.classes))
        if not counts.all():
            raise errors.PipelineError(
                f"The class {manifest.classes[int(counts.argmin())]!r} has no {name} image. "
                "Add images of it, or prepare the dataset with a larger val split."
            )


def from_classifier(path: Path, codes_path: Path, data: TrainValSplit, dropout: float, origin: str) -> InitialState:
    """Start from a trained classifier of codes.

    Where images were held out of the training split, it is trained again without them: on images of its own training
    its accuracy would be too high. Raise PipelineError if its codes are not those of the dataset.
    """
    classifier = persistence.load(path)
    if classifier.classes != data.manifest.classes:
        raise errors.PipelineError(
            f"The classifier {path} has other classes than the dataset: {', '.join(classifier.classes[:3])}, … "
            "Train it on this dataset first."
        )
    rebuild_network(classifier.spec, origin)  # raises PipelineError for other weights than those of the codes
    head = Head.from_classifier(classifier, dropout)
    if data.held_out or len(data.reward):
        validate_dataset(codes_path, data.manifest.root)
        kept = data.manifest.paths.take(data.train)
        head = Head.from_classifier(retrain_on(classifier, codes_path, kept), dropout)
    return InitialState(classifier.spec, head, origin)


def retrain_on(classifier: persistence.SavedClassifier, codes_path: Path, kept: Texts) -> persistence.SavedClassifier:
    """Return a classifier with the same setting, trained on the codes of the training images in `kept` only."""
    training = reader.read(codes_path, classifier.spec.to_dict(), "train")
    rows = kept.rows_of(training.paths) >= 0
    return replace(classifier, pipeline=clone(classifier.pipeline).fit(training.values[rows], training.labels[rows]))


def from_random_head(network: FrozenNetwork, n_classes: int, dropout: float, seed: int) -> InitialState:
    """Start from a random head on the codes of a network's only layer; refuse codes that fine-tuning cannot give."""
    (layer,) = network.specs
    spec = network.specs[layer]
    native = backbones.transform_of(backbones.get(spec.backbone), spec.weights)
    usual = usual_spec(spec, replace(native, max_value=spec.transform.max_value))
    if differences := spec_differences(spec, usual.to_dict()):
        raise errors.PipelineError(
            f"{TUNED_ON}, but `extract` in params.yaml asks for others: {'; '.join(differences)}. Take them out there."
        )
    return InitialState(spec, Head.random(network.widths[layer], n_classes, dropout, seed), trained=False)
