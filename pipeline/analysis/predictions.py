"""What a classifier said of each test image: from predictions.csv to confusions, calibration and paired tests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipeline import errors, files
from pipeline.classifiers import scoring

BINS = 15
"""Of the reliability diagram, of equal width."""

ALPHA = 0.05


@dataclass(frozen=True)
class Predictions:
    """The predictions of one experiment, as `evaluate` wrote them.

    paths: n test images; labels, predicted: (n,) int64, indices into `classes`; margins: (n,) float, of the predicted
    class; per_class: precision, recall, f1 and support of each class.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    margins: np.ndarray
    classes: tuple[str, ...]
    per_class: list[tuple[float, float, float, int]]

    @property
    def right(self) -> np.ndarray:
        """(n,) bool: which predictions are right."""
        return self.labels == self.predicted


def read_predictions(folder: Path) -> Predictions:
    """Read predictions.csv and per_class.csv of an experiment's folder of scores."""
    try:
        table, rows = _read_csv(folder / "per_class.csv"), _read_csv(folder / "predictions.csv")
        numbers = {row["class"]: number for number, row in enumerate(table)}
        return Predictions(
            tuple(row["path"] for row in rows),
            np.array([numbers[row["label"]] for row in rows], dtype=np.int64),
            np.array([numbers[row["predicted"]] for row in rows], dtype=np.int64),
            np.array([float(row["margin"]) for row in rows]),
            tuple(numbers),
            [(float(r["precision"]), float(r["recall"]), float(r["f1"]), int(r["support"])) for r in table],
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise errors.PipelineError(
            f"The scores in {folder} are incomplete or damaged ({error!r}). Run pipeline.evaluate again."
        ) from error


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(**files.UTF8) as file:
        return list(csv.DictReader(file))


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value that two classifiers are equally often right on the same images.

    one, other: (n,) bool, right or wrong, in the same order of images. McNemar's test (Psychometrika 12, 1947) in its
    exact form: of the images that only one of the two gets right, either is as likely to be that one.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


def significant(p_values: Sequence[float]) -> list[bool]:
    """Tell which of several tests are significant when all of them may err once in 20 (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    holds = np.asarray(p_values)[order] <= ALPHA / np.arange(len(order), 0, -1)
    found = np.zeros(len(order), bool)
    found[order] = np.logical_and.accumulate(holds)
    return found.tolist()


def calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Return the reliability diagram's bins and the expected calibration error (Guo et al., ICML 2017).

    probabilities: (n,) in [0, 1], of the predicted class; right: (n,) bool. ece: the mean distance between accuracy
    and mean probability over the bins, weighted by their images; each bin's accuracy comes with its 95% interval.
    """
    numbers = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        hits, count = int(right[inside].sum()), int(inside.sum())
        low, high = scoring.wilson_interval(hits, count)
        confidence = float(probabilities[inside].mean())
        bins.append({"confidence": confidence, "accuracy": hits / count, "low": low, "high": high, "n": count})
    ece = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / max(len(right), 1)
    return {"ece": float(ece), "bins": bins}


def confusions(outcomes: Predictions) -> list[tuple[int, int, np.ndarray]]:
    """Return (true class, predicted class, which test images) of every cell that is not empty, the fullest first."""
    cells = outcomes.labels * len(outcomes.classes) + outcomes.predicted
    order = np.argsort(cells, kind="stable")
    keys, starts = np.unique(cells[order], return_index=True)
    images = np.split(order, starts[1:]) if len(keys) else []
    found = [(*divmod(int(key), len(outcomes.classes)), rows) for key, rows in zip(keys, images, strict=True)]
    return sorted(found, key=lambda cell: -len(cell[2]))
