"""The predictions of one experiment on its test images: confusions, calibration and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
    class; units: (n,) int64, as in `scoring.interval`; per_class: the scores of each class.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    margins: np.ndarray
    units: np.ndarray
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
            np.array([int(row["unit"]) for row in rows], dtype=np.int64),
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


def mcnemar(one: np.ndarray, other: np.ndarray, units: np.ndarray) -> float:
    """Return the p-value of the hypothesis that two classifiers are equally often correct on the same images.

    This is the exact form of McNemar's test (Psychometrika 12, 1947): of the units of which one of the two classifies
    more images correctly, each is equally likely to be either's.

    one, other: (n,) bool, which images each classifies correctly, in the same order; units: (n,) int64 of the images,
    as in `scoring.interval`.
    """
    differences = scoring.sum_by_unit(one.astype(float) - other, units)
    only_one, only_other = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


class PairedDifference(NamedTuple):
    """By how much the accuracy of one classifier is above another's on the same images, and the 95% interval of it."""

    difference: float
    low: float
    high: float


def paired_difference(one: np.ndarray, other: np.ndarray, units: np.ndarray) -> PairedDifference:
    """Return the difference between two classifiers' accuracies on the same images.

    The interval is that of Agresti and Min (Statistics in Medicine 24, 2005): Wald's, after half an image was added to
    each cell of the table of correct and wrong predictions, for the effective number of images.

    one, other: (n,) bool, which images each classifies correctly, in the same order; units: (n,) int64 of the images,
    as in `scoring.interval`.
    """
    only_one, only_other, effective = (one & ~other).mean(), (other & ~one).mean(), scoring.effective_number(units)
    n, difference = effective + 2, float(only_one - only_other)
    discordant, centre = (effective * (only_one + only_other) + 1) / n, effective * difference / n
    half = scoring.QUANTILE * math.sqrt(discordant - centre**2) / math.sqrt(n)
    return PairedDifference(difference, centre - half, centre + half)


def significant(p_values: Sequence[float]) -> list[bool]:
    """Tell which of several tests are significant, at a level of 5% for all of them together (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    holds = np.asarray(p_values)[order] <= ALPHA / np.arange(len(order), 0, -1)
    result = np.zeros(len(order), bool)
    result[order] = np.logical_and.accumulate(holds)
    return result.tolist()


def calibration(probabilities: np.ndarray, correct: np.ndarray, units: np.ndarray) -> Calibration:
    """Return the bins of the reliability diagram and the expected calibration error (Guo et al., ICML 2017).

    The error is the mean distance between accuracy and mean probability over the bins, weighted by their images.

    probabilities: (n,) in [0, 1], of the predicted class; correct: (n,) bool; units: (n,) int64, as in
    `scoring.interval`.
    """
    numbers = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    inside = [numbers == number for number in np.unique(numbers)]
    bins = [_reliability_bin(probabilities[places], correct[places], units[places]) for places in inside]
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / max(len(correct), 1)
    return {"ece": float(error), "bins": bins}


def _reliability_bin(probabilities: np.ndarray, correct: np.ndarray, units: np.ndarray) -> ReliabilityBin:
    accuracy = float(correct.mean())
    low, high, _ = scoring.interval(accuracy, units)
    return {
        "confidence": float(probabilities.mean()),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": len(correct),
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
