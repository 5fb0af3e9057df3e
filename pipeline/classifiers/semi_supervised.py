"""Learn from images without a label as well: guess their labels by the codes around them, and weigh each guess."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from threadpoolctl import threadpool_limits

from pipeline.classifiers import search, solvers
from pipeline.classifiers.cv_table import Setting
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.data.manifest import NO_LABEL

WIDTH = 50
"""Width to which PCA reduces codes of length 1, in which labels are guessed."""

NEIGHBOURS = 10
"""Number of nearest images from which an image takes labels."""

SHARE_OF_NEIGHBOURS = 0.8
"""Share of what an image takes from its neighbours, the rest being its own label (Zhou et al., NIPS 2003)."""

ROUNDS = 10
"""How often, at most, the softmax learns again from what it is sure of."""

C = 100
"""Weight of the loss of the softmax that teaches itself: one value, since a few labels cannot be cross-validated."""


class Guesser(Protocol):
    """Guesses labels: vectors (n, k) float32 and labels (n,) int64, some of them -1, become (n, n_classes) >= 0."""

    def __call__(self, vectors: np.ndarray, labels: np.ndarray, /) -> np.ndarray: ...


def spread_labels(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Let labels spread along the graph of nearest images; zeros where no label arrives.

    "Learning with Local and Global Consistency" (Zhou et al., NIPS 2003).
    """
    neighbours = min(NEIGHBOURS, len(vectors))
    spreading = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=SHARE_OF_NEIGHBOURS, max_iter=1000)
    distributions: np.ndarray = spreading.fit(vectors, labels).label_distributions_
    return distributions


def train_itself(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Let a softmax learn again and again from what it predicts with a probability above 0.75.

    "Unsupervised word sense disambiguation rivaling supervised methods" (Yarowsky, ACL 1995).
    """
    softmax = SelfTrainingClassifier(solvers.Softmax(C=C), max_iter=ROUNDS).fit(vectors, labels)
    probabilities: np.ndarray = softmax.predict_proba(vectors)
    return probabilities


METHODS: dict[str, Guesser] = {"self-training": train_itself, "label-spreading": spread_labels}
"""The ways to guess labels, by name."""


@dataclass(frozen=True)
class Unlabelled:
    """Images without a label to learn from, and how.

    method: a name of `METHODS`; data: their codes, whose labels are not looked at; units numbered with those of the
    labelled images.
    """

    method: str
    data: TrainingData

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.data.y) if self.data.images is None else len(np.unique(self.data.images))

    def without(self, units: np.ndarray) -> Unlabelled:
        """Return the images that are in none of these units."""
        return replace(self, data=self.data.subset(np.flatnonzero(~np.isin(self.data.units, units))))

    def joined(self, others: TrainingData) -> Unlabelled:
        """Return these images and others, the labels of which are forgotten."""
        return replace(self, data=self.data.joined(others))


@dataclass(frozen=True)
class Beside:
    """Which held-out images are predicted correctly with the unlabelled images and without them.

    together, alone: (n,) bool; units: (n,) int64 of the images; folds: the accuracy of each fold, with them.
    """

    together: np.ndarray
    alone: np.ndarray
    units: np.ndarray
    folds: list[float]


def guess_labels(labelled: TrainingData, unlabelled: Unlabelled) -> tuple[np.ndarray, np.ndarray]:
    """Return the label (m,) int64 that each row without one seems to have, and the weight (m,) of the guess in [0, 1].

    The weight is 1 less the entropy of the guess, as a share of the highest, as in "Label Propagation for Deep
    Semi-supervised Learning" (Iscen et al., CVPR 2019). The views of an image get one guess, by their mean code.
    """
    both = labelled.joined(unlabelled.data)
    images = np.arange(len(both.y)) if both.images is None else np.unique(both.images, return_inverse=True)[1]
    _, first = np.unique(images, return_index=True)
    n_labelled, codes = len(labelled.y), _means(Normalizer().transform(both.X[:]), images)
    known = np.where(first < n_labelled, both.y[first], NO_LABEL)
    classes = np.unique(labelled.y)
    with threadpool_limits(1):  # for the same sums, and so the same guesses, on any machine
        vectors = PCA(min(WIDTH, *codes.shape), random_state=0).fit_transform(codes)
        guesses = METHODS[unlabelled.method](vectors, known)
    totals = guesses.sum(1, keepdims=True)
    shares = np.where(totals > 0, guesses / np.where(totals > 0, totals, 1), 1 / len(classes))
    weights = np.clip(1 - entropy(shares, axis=1) / np.log(len(classes)), 0, 1)
    return classes[shares.argmax(1)][images[n_labelled:]], weights[images[n_labelled:]]


def _means(rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the mean row (n_images, d) of each image; images: (n,) int64 from 0 on, in any order."""
    sums = np.zeros((images.max() + 1, rows.shape[1]), rows.dtype)
    np.add.at(sums, images, rows)
    return sums / np.bincount(images)[:, None].astype(rows.dtype)


def refit(labelled: TrainingData, unlabelled: Unlabelled, model: str, setting: Setting) -> tuple[Pipeline, bool]:
    """Return a classifier fitted to the labels, and to the guesses, which weigh up to 1; and whether it converged.

    It is a classifier like any other, of the size of its coefficients: what LabelSpreading itself predicts by needs the
    codes of all images.
    """
    if not len(unlabelled.data.y):
        return search.refit(labelled, model, **setting)
    guessed, weights = guess_labels(labelled, unlabelled)
    used = np.flatnonzero(weights > 0)
    both = labelled.joined(replace(unlabelled.data, y=guessed, weights=weights).subset(used))
    return search.refit(both, model, **setting)


def compare(data: TrainingData, unlabelled: Unlabelled, plan: SearchPlan, setting: Setting) -> Beside:
    """Cross-validate a setting with the unlabelled images and without them, on the same folds of the labelled ones.

    Unlabelled images of the units that a fold holds out, such as copies, take no part in it.
    """
    together, alone, units = zip(*_fold_results(data, unlabelled, plan, setting), strict=True)
    folds = [float(fold.mean()) for fold in together]
    return Beside(np.concatenate(together), np.concatenate(alone), np.concatenate(units), folds)


def _fold_results(
    data: TrainingData, unlabelled: Unlabelled, plan: SearchPlan, setting: Setting
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each fold which images are predicted correctly, with and without the others, and their units."""
    for fitted, held in data.folds(plan.folds, plan.seed):
        labelled, scored = data.subset(fitted), data.subset(held)
        alone, _ = search.refit(labelled, plan.model, **setting)
        together, _ = refit(labelled, unlabelled.without(scored.units), plan.model, setting)
        predicted, labels, units = scored.predict_images(together)
        yield predicted == labels, scored.predict_images(alone)[0] == labels, units
