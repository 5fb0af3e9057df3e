"""The predictions of one experiment on its test images: confusions, calibration and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple, TypedDict

import numpy as np
from scipy.stats import binomtest

from pipeline import errors, files
from pipeline.classifiers import scoring

BINS = 15
"""Number of bins of the reliability diagram, of equal width."""

ALPHA = 0.05
"""Significance level of the paired tests."""


class ClassScores(NamedTuple):
    """Scores of one class; precision, recall and f1 are in [0, 1], support is the number of its test images."""

    precision: float
    recall: float
    f1: float
    support: int


class ReliabilityBin(TypedDict):
    """One bin of a reliability diagram: mean probability, accuracy with its 95% interval, and number of images."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


class Calibration(TypedDict):
    """A reliability diagram and its expected calibration error in [0, 1]."""

    ece: float
    bins: list[ReliabilityBin]


class Confusion(NamedTuple):
    """A cell of the confusion matrix: true class, predicted class, and the numbers (k,) int64 of its test images."""

    label: int
    predicted: int
    images: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """The predictions of one experiment, as `evaluate` wrote them.

    paths: n test images; labels, predicted: (n,) int64, indices into `classes`; margins: (n,) float, of the predicted
    class; per_class: the scores of each class.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    margins: np.ndarray
    classes: tuple[str, ...]
    per_class: list[ClassScores]

    @property
    def correct(self) -> np.ndarray:
        """Which predictions are correct, (n,) bool."""
        return self.labels == self.predicted


def read_predictions(folder: Path) -> Predictions:
    """Read predictions.csv and per_class.csv from an experiment's folder; raise PipelineError if they are damaged."""
    try:
        table, rows = files.read_csv(folder / "per_class.csv"), files.read_csv(folder / "predictions.csv")
        numbers = {row["class"]: number for number, row in enumerate(table)}
        return Predictions(
            tuple(row["path"] for row in rows),
            np.array([numbers[row["label"]] for row in rows], dtype=np.int64),
            np.array([numbers[row["predicted"]] for row in rows], dtype=np.int64),
            np.array([float(row["margin"]) for row in rows]),
            tuple(numbers),
            [
                ClassScores(float(row["precision"]), float(row["recall"]), float(row["f1"]), int(row["support"]))
                for row in table
            ],
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise errors.PipelineError(
            f"The scores in {folder} are incomplete or damaged ({error!r}). Evaluate again.",
            fix=[errors.Fix("evaluate")],
        ) from error


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value of the hypothesis that two classifiers are equally often correct on the same images.

    This is the exact form of McNemar's test (Psychometrika 12, 1947): of the images that only one of the two
    classifies correctly, each is equally likely to be either's.

    one, other: (n,) bool, which images each classifies correctly, in the same order.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


class PairedDifference(NamedTuple):
    """By how much the accuracy of one classifier is above another's on the same images, and the 95% interval of it."""

    difference: float
    low: float
    high: float


def paired_difference(one: np.ndarray, other: np.ndarray) -> PairedDifference:
    """Return the difference between two classifiers' accuracies on the same images.

    The interval is that of Agresti and Min (Statistics in Medicine 24, 2005): Wald's, after half an image was added to
    each cell of the table of correct and wrong predictions.

    one, other: (n,) bool, which images each classifies correctly, in the same order.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    n, discordant, centre = len(one) + 2, only_one + only_other + 1, (only_one - only_other) / (len(one) + 2)
    half = NormalDist().inv_cdf((1 + scoring.CONFIDENCE) / 2) * math.sqrt(discordant / n - centre**2) / math.sqrt(n)
    return PairedDifference((only_one - only_other) / len(one), centre - half, centre + half)


def significant(p_values: Sequence[float]) -> list[bool]:
    """Tell which of several tests are significant, at a level of 5% for all of them together (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    holds = np.asarray(p_values)[order] <= ALPHA / np.arange(len(order), 0, -1)
    result = np.zeros(len(order), bool)
    result[order] = np.logical_and.accumulate(holds)
    return result.tolist()


def calibration(probabilities: np.ndarray, correct: np.ndarray) -> Calibration:
    """Return the bins of the reliability diagram and the expected calibration error (Guo et al., ICML 2017).

    The error is the mean distance between accuracy and mean probability over the bins, weighted by their images.

    probabilities: (n,) in [0, 1], of the predicted class; correct: (n,) bool.
    """
    numbers = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins = [_reliability_bin(probabilities[numbers == k], correct[numbers == k]) for k in np.unique(numbers)]
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / max(len(correct), 1)
    return {"ece": float(error), "bins": bins}


def _reliability_bin(probabilities: np.ndarray, correct: np.ndarray) -> ReliabilityBin:
    hits, count = int(correct.sum()), len(correct)
    low, high = scoring.wilson_interval(hits, count)
    return {
        "confidence": float(probabilities.mean()),
        "accuracy": hits / count,
        "low": low,
        "high": high,
        "n": count,
    }


def confusions(outcomes: Predictions) -> list[Confusion]:
    """Return the cells of the confusion matrix that are not empty, the one with the most images first."""
    cells = outcomes.labels * len(outcomes.classes) + outcomes.predicted
    order = np.argsort(cells, kind="stable")
    keys, starts = np.unique(cells[order], return_index=True)
    images = np.split(order, starts[1:]) if len(keys) else []
    confused = [
        Confusion(*divmod(int(key), len(outcomes.classes)), rows) for key, rows in zip(keys, images, strict=True)
    ]
    return sorted(confused, key=lambda cell: -len(cell.images))
