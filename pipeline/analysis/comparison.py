"""Frozen codes beside a fine-tuned network: accuracy over seeds, a paired test, costs, and which to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from pipeline.analysis import predictions
from pipeline.classifiers import scoring

ALPHA = 0.05
RESAMPLES = 9999


@dataclass(frozen=True)
class Cost:
    """What commands took: seconds, the largest memory of one of them in bytes, joules where the machine counts them."""

    seconds: float
    memory: int
    joules: float | None

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        both = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Cost(self.seconds + other.seconds, max(self.memory, other.memory), both)


@dataclass(frozen=True)
class Contender:
    """One way to classify, tried with several seeds.

    right: (seeds, n) bool, which test images; validated: mean accuracy on training images held out, in
    cross-validation or as validation split, nan where there is none; costs: of each seed, what it starts from included.
    """

    layer: str
    model: str
    right: np.ndarray
    validated: float
    costs: Sequence[Cost]

    @property
    def name(self) -> str:
        """The layer and the model in one."""
        return f"{self.layer}-{self.model}"

    @property
    def top1(self) -> float:
        """The mean accuracy over seeds."""
        return float(self.right.mean())


def paired_test(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value that two contenders are equally often right on the same images.

    one, other: (seeds, n) bool. For one seed each McNemar's exact test; for several, whether the differences of the
    shares of seeds that are right, image by image, could as well have the other sign (Fisher's permutation test).
    """
    if len(one) == len(other) == 1:
        return predictions.mcnemar(one[0], other[0])
    differences = one.mean(0) - other.mean(0)
    unequal = differences[differences != 0]
    if len(unequal) < 2:
        return 1.0
    rng = np.random.default_rng(0)
    tested = permutation_test((unequal,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=rng)
    return float(tested.pvalue)


def interval(accuracy: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a mean accuracy over seeds on n images, as if it were one run's: rather wide."""
    lower, upper = (
        scoring.wilson_interval(int(np.floor(accuracy * n)), n),
        scoring.wilson_interval(int(np.ceil(accuracy * n)), n),
    )
    return lower[0], upper[1]


def rows(frozen: Sequence[Contender], tuned: Contender) -> list[dict[str, Any]]:
    """Return a row a contender, each compared with the frozen one of the best cross-validated accuracy."""
    reference = best(frozen)
    return [_row(contender, reference) for contender in (*frozen, tuned)]


def best(frozen: Sequence[Contender]) -> Contender:
    """Return the contender of the best cross-validated accuracy: chosen without the test images."""
    return max(frozen, key=lambda contender: contender.validated)


def _row(contender: Contender, reference: Contender) -> dict[str, Any]:
    seeds, n = contender.right.shape
    low, high = interval(contender.top1, n)
    each = contender.right.mean(1)
    joules = [cost.joules for cost in contender.costs if cost.joules is not None]
    return {
        "layer": contender.layer,
        "model": contender.model,
        "top1": round(contender.top1, 4),
        "top1_low": round(low, 4),
        "top1_high": round(high, 4),
        "worst_seed": round(float(each.min()), 4),
        "best_seed": round(float(each.max()), 4),
        "n": n,
        "seeds": seeds,
        "validated": round(contender.validated, 4),
        "difference": round(contender.top1 - reference.top1, 4),
        "p": None if contender is reference else round(paired_test(contender.right, reference.right), 4),
        "seconds": round(float(np.mean([cost.seconds for cost in contender.costs])), 1),
        "memory_mb": round(max(cost.memory for cost in contender.costs) / 1e6),
        "joules": round(float(np.mean(joules))) if joules else None,
    }


def verdict(frozen: Sequence[Contender], tuned: Contender) -> str:
    """Say in a sentence which to take."""
    reference = best(frozen)
    p, n = paired_test(tuned.right, reference.right), tuned.right.shape[1]
    points = 100 * (tuned.top1 - reference.top1)
    times = np.mean([cost.seconds for cost in tuned.costs]) / np.mean([cost.seconds for cost in reference.costs])
    found = f"{points:+.1f} points on {n} test images (p = {p:.2g}) for {times:.1f} times the time"
    if p <= ALPHA and points > 0:
        return f"Take the fine-tuned network: beside frozen {reference.name} it gains {found}."
    reason = "loses by fine-tuning" if p <= ALPHA else "fine-tuning changes nothing beyond chance"
    return f"Take the frozen codes with {reference.name}: {reason}, {found}."


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table of text."""
    cells = [("layer", "model", "top-1", "95% interval", "over seeds", "n", "p", "seconds", "MB")] + [
        (
            *(row["layer"], row["model"], f"{row['top1']:.4f}", f"{row['top1_low']:.4f}–{row['top1_high']:.4f}"),
            f"{row['worst_seed']:.4f}–{row['best_seed']:.4f}",
            *(
                str(row["n"]),
                "–" if row["p"] is None else f"{row['p']:.4f}",
                str(row["seconds"]),
                str(row["memory_mb"]),
            ),
        )
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
