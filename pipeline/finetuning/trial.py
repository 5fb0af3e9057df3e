"""A short run of fine-tuning against the frozen codes, within a time limit, to see whether a long one is worth it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.classifiers import persistence, search
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes.reader import Codes
from pipeline.data.manifest import Manifest
from pipeline.errors import counted
from pipeline.finetuning import recipes
from pipeline.finetuning.head import Head
from pipeline.finetuning.initialization import TrainValSplit, split_train_val
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.trainer import LossDiverged, Trainer
from pipeline.texts import Texts

logger = logging.getLogger(__name__)

EPOCHS = 5
RECIPE = recipes.choose("modern", {"epochs": EPOCHS, "patience": 0})
HELD_OUT = 0.3
"""Share of each class that both the frozen codes and the tuned network are scored on."""

EVALUATION_COST = 1 / 3
"""Time that the evaluation of an image takes, as a share of a training step's."""

UNIT = "unit"
"""The column of a manifest that holds the units of the images."""


@dataclass(frozen=True)
class Outcome:
    """Which held-out images are predicted correctly before and after the run, (n,) bool, and their units (n,) int64.

    n_train: number of images that both learned from; epochs: those that the time limit allowed.
    """

    before: np.ndarray
    after: np.ndarray
    units: np.ndarray
    n_train: int
    epochs: int
    seconds: float


class TrialImpossibleError(Exception):
    """No trial is possible in the time, or with a network whose loss diverges; the message says which."""


@dataclass(frozen=True)
class Trial:
    """What is tried.

    codes: frozen, of one layer, in memory; data: the images that they are of, parted; model, normalisation, parameters:
    of the classifier of codes, from which the run starts; seconds: how long all of it may take.
    """

    codes: Codes[np.ndarray]
    data: TrainValSplit
    model: str
    normalisation: str
    parameters: dict[str, Any]
    seconds: float
    seed: int
    runtime: RuntimeConfig

    def run(self) -> Outcome:
        """Train for a few epochs and compare; log beforehand what is done. Raise TrialImpossibleError without time."""
        begun = time.monotonic()
        data = self.affordable(self.time_training())
        trainer = Trainer(self.network(data.train), RECIPE, data, self.seed, self.runtime)
        try:
            for row in trainer.run():
                late = time.monotonic() - begun + row["seconds"] > self.seconds
                if row["epoch"] and late:
                    break
        except LossDiverged as error:
            raise TrialImpossibleError(str(error)) from error
        first, *_, last = trainer.progress.outcomes
        seconds = time.monotonic() - begun
        return Outcome(first.numpy(), last.numpy(), data.val_units(), len(data.train), row["epoch"], seconds)

    def network(self, rows: np.ndarray) -> TunableNetwork:
        """Return the network under a classifier of the frozen codes of some images; rows: (n,) int64 of them."""
        data = TrainingData.of_independent(self.codes.values[rows], self.data.manifest.labels[rows])
        pipeline, _ = search.refit(data, self.model, self.normalisation, self.parameters)
        spec = self.codes.spec
        classifier = persistence.SavedClassifier(pipeline, spec, self.data.manifest.classes)
        return TunableNetwork(spec, Head.from_classifier(classifier, RECIPE.dropout), "all").to(self.runtime.device)

    def time_training(self) -> float:
        """Return the seconds that training takes per image, by a second batch after one that warms up."""
        rows = thin_out(self.data.train, self.data.manifest.labels, RECIPE.batch_size, self.seed)
        trainer = Trainer(self.network(rows), RECIPE, replace(self.data, train=rows), self.seed, self.runtime)
        for epoch in (1, 2):
            trainer.progress.epoch, trainer.progress.step, begun = epoch, 0, time.monotonic()
            images = trainer.train_epoch()
        return (time.monotonic() - begun) / images

    def affordable(self, seconds_per_image: float) -> TrainValSplit:
        """Return the images, with as many to train on as the time allows; log how many, and how long that takes."""
        evaluated = EVALUATION_COST * len(self.data.val) * (EPOCHS + 1)
        most = int((self.seconds / seconds_per_image - evaluated) / EPOCHS) - 2 * RECIPE.batch_size // EPOCHS
        n_classes = len(self.data.manifest.classes)
        if most < 2 * n_classes:
            raise TrialImpossibleError(
                f"in {self.seconds / 60:g} minutes, at {seconds_per_image:.2g} s per image, {EPOCHS} epochs see fewer "
                "than 2 images of each class; allow more with --try-minutes"
            )
        train = thin_out(self.data.train, self.data.manifest.labels, most, self.seed)
        minutes = seconds_per_image * (EPOCHS * len(train) + evaluated) / 60
        logger.info(
            "Trying fine-tuning: %d epochs over %s, %s held out, about %.1f minutes, %g at most (--try-minutes).",
            EPOCHS,
            counted(len(train), "training image"),
            counted(len(self.data.val), "image"),
            minutes,
            self.seconds / 60,
        )
        return replace(self.data, train=train)


def part_images(sample: Manifest, codes: Codes[np.ndarray], units: np.ndarray, seed: int) -> TrainValSplit:
    """Part the images that codes are of into those to learn from and those to be scored; no unit is parted.

    units: (n,) int64 of the images, as `find_units` numbers them. Classes without an image are left out.
    """
    present, labels = np.unique(codes.labels, return_inverse=True)
    manifest = replace(
        sample.take(sample.rows_of(codes.paths)),
        labels=labels.astype(np.int64),
        classes=tuple(sample.classes[number] for number in present),
        metadata={UNIT: Texts.of(map(str, units))},
    )
    return split_train_val(manifest, HELD_OUT, seed, UNIT)


def thin_out(rows: np.ndarray, labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return about `most` of the rows (n,) int64, the same share of each class but at least one; labels: of any row."""
    rng, share = np.random.default_rng(seed), most / len(rows)
    if share >= 1:
        return rows
    shuffled = [rng.permutation(rows[labels[rows] == label]) for label in np.unique(labels[rows])]
    return np.sort(np.concatenate([of_class[: max(1, round(share * len(of_class)))] for of_class in shuffled]))
