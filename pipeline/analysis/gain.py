"""What training a network further, or on more images, brought: accuracies on the same held-out images, paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.analysis.predictions import paired_difference
from pipeline.classifiers import scoring
from pipeline.errors import counted

Sign = Literal["higher", "lower", "not told apart"]


@dataclass(frozen=True)
class Gain:
    """Accuracies on held-out images before and after a change, and their paired difference with its 95% interval.

    n_images: number of these images; n_units: number of independent units among them, as in `scoring.Interval`.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    n_images: int
    n_units: int

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, units: np.ndarray) -> Gain:
        """Return the gain; before, after: (n,) bool, which images are predicted correctly; units: (n,) of these."""
        paired = paired_difference(after, before, units)
        return cls(float(before.mean()), float(after.mean()), *paired, len(units), len(np.unique(units)))

    @classmethod
    def of_dict(cls, values: Mapping[str, float]) -> Gain:
        """Return a gain from its fields by name, as a classifier's metadata have them."""
        return cls(**values)  # type: ignore[arg-type]

    @property
    def sign(self) -> Sign:
        """Whether the accuracy after the change is higher, lower, or cannot be told apart at 95%."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not told apart"

    def __str__(self) -> str:
        """Return the figures."""
        return self.text("after", "before")

    def text(self, after: str, before: str) -> str:
        """Return the figures; after, before: words for the two."""
        number = scoring.count_text(self.n_units, self.n_images)
        return (
            f"{self.after:.4f} {after} and {self.before:.4f} {before}, a difference of {self.difference:+.4f} "
            f"(95% {self.low:+.4f} to {self.high:+.4f}, paired, {number})"
        )


def judge_training(gain: Gain, best_epoch: int, *, from_codes: bool) -> str:
    """Say whether fine-tuning helped, by the validation images that also chose its best epoch.

    from_codes: whether it started from a classifier of frozen codes, so that "before" is what these reach.
    """
    advice = "Stay with the frozen codes, or take a lower --lr-backbone, a later --unfreeze, or more images."
    if best_epoch == 0:
        return f"Training did not help: no epoch did better than the start, whose weights these are. {advice}"
    if not from_codes:
        return ""
    if gain.difference <= 0:
        return f"Training did not help: accuracy {gain}. {advice}"
    chosen = "The epoch was chosen by these images, so the difference is a little too high"
    if gain.sign == "higher":
        return f"Training helped: accuracy {gain}. {chosen}; pipeline.evaluate tells it on test images."
    return f"Whether training helped is open: accuracy {gain}. {chosen}. {advice}"


NO_HELP = {
    "higher": "",
    "lower": " They do harm: leave {flag} out.",
    "not told apart": " That may be chance: without {flag} the classifier is simpler.",
}


def judge_unlabelled(gain: Gain, method: str, n_images: int) -> str:
    """Say what images without a label brought, and whether they helped; n_images: their number."""
    return f"{counted(n_images, 'image')} without a label, by {method}: {_judge_others(gain, '--unlabelled')}"


def judge_source(gain: Gain, method: str, source: str, n_images: int, effective: float | None) -> str:
    """Say what images of another dataset brought; effective: as how many equally weighted ones they count."""
    worth = "" if effective is None else f", worth {effective:.1f} equally weighted ones"
    images = f"{counted(n_images, 'image')} of {source}, by {method}{worth}"
    return f"{images}: {_judge_others(gain, '--source and --adapt')}"


def _judge_others(gain: Gain, flag: str) -> str:
    figures = gain.text("with them", "without them")
    return f"accuracy {figures}.{NO_HELP[gain.sign].format(flag=flag)}"
