"""Which training images an epoch draws, and how much each counts: all alike, or by the weights of their classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import errors

REPEAT, EXHAUST, LOSS = METHODS = ("repeat", "exhaust", "loss")
"""How weights of classes count (Ngiam et al., "Domain Adaptive Transfer Learning", 2018): images are drawn in
proportion and come back ("same distribution matcher"), or do not until all are drawn ("elastic"), or their losses are
multiplied by the weights."""


@dataclass(frozen=True)
class Sampling:
    """How the images of an epoch are drawn.

    weights: (k,) float64 of the classes, 0 or more, None for all alike; method: one of `METHODS`; draws: images per
    epoch, 0 for as many as there are; again: whether an epoch may see all images several times, as often as draws ask.
    """

    weights: np.ndarray | None = None
    method: str = REPEAT
    draws: int = 0
    again: bool = False

    @property
    def repeats(self) -> bool:
        """Whether an image may be drawn several times in an epoch."""
        return self.weights is not None and self.method == REPEAT

    def count(self, n: int) -> int:
        """Return the number of images that an epoch draws from n."""
        return self.draws or n

    def shares(self, labels: np.ndarray) -> np.ndarray:
        """Return the share (n,) with which each image is drawn, of sum 1; labels: (n,) int64."""
        weights = np.ones(len(labels)) if self.weights is None or self.method == LOSS else self.weights[labels]
        shares: np.ndarray = weights / weights.sum()
        return shares

    def loss_weights(self, labels: np.ndarray) -> np.ndarray | None:
        """Return the factor (k,) of the loss of each class, whose mean over n images is 1; None where all are 1."""
        if self.weights is None or self.method != LOSS:
            return None
        factors: np.ndarray = self.weights / self.weights[labels].mean()
        return factors

    def draw(self, labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return what an epoch sees, in order: (draws, 2) int64, an image's place in `labels`, and its earlier draws.

        All of it comes from the seed and the epoch. Without repetitions, all epochs see the same images.
        """
        n, rng = len(labels), np.random.default_rng((seed, epoch))
        if self.repeats:
            places = rng.choice(n, self.count(n), p=self.shares(labels))
        elif self.count(n) >= n:
            passes = [rng.permutation(n) for _ in range(0, self.count(n), n)]
            places = np.concatenate(passes)[: self.count(n)]
        else:
            places = np.random.default_rng(seed).choice(n, self.draws, replace=False, p=self.shares(labels))
            places = rng.permutation(places)
        return np.stack([places, count_earlier(places)], 1)

    def validate(self, labels: np.ndarray) -> None:
        """Raise PipelineError where the training images cannot be drawn so."""
        if self.weights is not None and not self.weights[labels].any():
            raise errors.PipelineError("All training images have the weight 0. Give one of their classes more.")
        n, drawable = len(labels), int(np.count_nonzero(self.shares(labels)))
        if not (self.repeats or self.again) and self.draws > drawable:
            raise errors.PipelineError(
                f"--draws {self.draws}: only {drawable} of the training images can be drawn without repetition. Take "
                "fewer, or --sample-by with --sampling repeat."
            )
        if self.weights is not None and self.method == EXHAUST and self.count(n) >= n:
            raise errors.PipelineError(
                f"--sampling exhaust leaves out images, so it needs fewer --draws than the {n} training images."
            )


def count_earlier(places: np.ndarray) -> np.ndarray:
    """Return for each of (m,) places how often it stood before in the array, (m,) int64."""
    order = np.argsort(places, kind="stable")
    starts = np.r_[True, places[order][1:] != places[order][:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(places)), 0))
    earlier = np.empty(len(places), np.int64)
    earlier[order] = np.arange(len(places)) - first
    return earlier
