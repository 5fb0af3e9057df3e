"""Frozen codes compared with a fine-tuned network: accuracy over seeds, a paired test, costs, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from scipy.stats import permutation_test

from pipeline.analysis import predictions
from pipeline.classifiers import scoring

RESAMPLES = 9999
"""Number of permutations of the test over several seeds."""

ROUNDING = 1e-9
"""Differences up to this one are none."""


@dataclass(frozen=True)
class Cost:
    """Cost of commands: seconds, largest memory of one of them in bytes, joules where the machine counts them."""

    seconds: float
    memory: int
    joules: float | None

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        joules = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Cost(self.seconds + other.seconds, max(self.memory, other.memory), joules)


@dataclass(frozen=True)
class Contender:
    """One way to classify, run with several seeds.

    correct: (seeds, n) bool, which test images are classified correctly; units: (n,) int64 of the test images, as in
    `scoring.interval`; validation_accuracy: mean accuracy on training images that were held out, by cross-validation or
    as a validation split, nan where there are none; costs: one per seed, including what the run started from.
    """

    layer: str
    model: str
    correct: np.ndarray
    units: np.ndarray
    validation_accuracy: float
    costs: Sequence[Cost]

    @property
    def name(self) -> str:
        """Layer and model."""
        return f"{self.layer}-{self.model}"

    @property
    def top1(self) -> float:
        """Mean accuracy over the seeds."""
        return float(self.correct.mean())

    @property
    def seconds(self) -> float:
        """Mean time over the seeds."""
        return float(np.mean([cost.seconds for cost in self.costs]))


class ComparisonRow(TypedDict):
    """A contender's line of comparison.csv.

    Accuracies are in [0, 1]; images: number of test images; n: number of independent units among them; difference and p
    compare it with the reference, whose own p is None.
    """

    layer: str
    model: str
    top1: float
    top1_low: float
    top1_high: float
    worst_seed: float
    best_seed: float
    n: int
    images: int
    seeds: int
    validation_accuracy: float
    difference: float
    p: float | None
    seconds: float
    memory_mb: int
    joules: float | None


def paired_test(one: np.ndarray, other: np.ndarray, units: np.ndarray) -> float:
    """Return the p-value of the hypothesis that two contenders are equally often correct on the same images.

    With one seed each, this is McNemar's exact test. With several, it is Fisher's permutation test: whether each
    unit's difference in the share of seeds that are correct could equally have the other sign.

    one, other: (seeds, n) bool; units: (n,) int64 of the images, as in `scoring.interval`.
    """
    if len(one) == len(other) == 1:
        return predictions.mcnemar(one[0], other[0], units)
    differences = scoring.sum_by_unit(one.mean(0) - other.mean(0), units)
    unequal = differences[np.abs(differences) > ROUNDING]
    if len(unequal) < 2:
        return 1.0
    rng = np.random.default_rng(0)
    result = permutation_test((unequal,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=rng)
    return float(result.pvalue)


def rows(frozen: Sequence[Contender], tuned: Contender) -> list[ComparisonRow]:
    """Return a row for each contender; the reference is the frozen one with the best validation accuracy."""
    reference = best(frozen)
    return [_row(contender, reference) for contender in (*frozen, tuned)]


def best(frozen: Sequence[Contender]) -> Contender:
    """Return the contender with the best validation accuracy, which is chosen without the test images."""
    return max(frozen, key=lambda contender: contender.validation_accuracy)


def _row(contender: Contender, reference: Contender) -> ComparisonRow:
    seeds, images = contender.correct.shape
    low, high, n = scoring.interval(contender.top1, contender.units)  # of one run: wide for a mean over several
    p = paired_test(contender.correct, reference.correct, contender.units)
    by_seed = contender.correct.mean(1)
    joules = [cost.joules for cost in contender.costs if cost.joules is not None]
    return {
        "layer": contender.layer,
        "model": contender.model,
        "top1": round(contender.top1, 4),
        "top1_low": round(low, 4),
        "top1_high": round(high, 4),
        "worst_seed": round(float(by_seed.min()), 4),
        "best_seed": round(float(by_seed.max()), 4),
        "n": n,
        "images": images,
        "seeds": seeds,
        "validation_accuracy": round(contender.validation_accuracy, 4),
        "difference": round(contender.top1 - reference.top1, 4),
        "p": None if contender is reference else round(p, 4),
        "seconds": round(contender.seconds, 1),
        "memory_mb": round(max(cost.memory for cost in contender.costs) / 1e6),
        "joules": round(float(np.mean(joules))) if joules else None,
    }


def verdict(frozen: Sequence[Contender], tuned: Contender) -> str:
    """Say in a sentence which contender to take."""
    reference = best(frozen)
    p = paired_test(tuned.correct, reference.correct, tuned.units)
    images = scoring.images_text(len(np.unique(tuned.units)), tuned.correct.shape[1], "test image")
    points = 100 * (tuned.top1 - reference.top1)
    times = tuned.seconds / reference.seconds
    result = f"{points:+.1f} points on {images} (p = {p:.2g}) for {times:.1f} times the time"
    if p <= predictions.ALPHA and points > 0:
        return f"Take the fine-tuned network: compared with frozen {reference.name} it gains {result}."
    reason = "fine-tuning loses" if p <= predictions.ALPHA else "fine-tuning changes nothing beyond chance"
    return f"Take the frozen codes with {reference.name}: {reason}, {result}."


def table(compared: Sequence[ComparisonRow]) -> str:
    """Return the rows as a table of text."""
    lines = [("layer", "model", "top-1", "95% interval", "over seeds", "n", "p", "seconds", "MB")]
    lines += [_cells(row) for row in compared]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(row: ComparisonRow) -> tuple[str, str, str, str, str, str, str, str, str]:
    return (
        row["layer"],
        row["model"],
        f"{row['top1']:.4f}",
        f"{row['top1_low']:.4f}–{row['top1_high']:.4f}",
        f"{row['worst_seed']:.4f}–{row['best_seed']:.4f}",
        str(row["n"]),
        "–" if row["p"] is None else f"{row['p']:.4f}",
        str(row["seconds"]),
        str(row["memory_mb"]),
    )
