"""What a pretrained network sees in a dataset by itself: the commonest of its own classes in each class of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

COMMONEST = 3
"""Number of the network's classes that are named for each class of images."""


class SourceShare(NamedTuple):
    """One of the network's own classes, and the share of the images for which it has the highest score, in (0, 1]."""

    name: str
    share: float


class ClassView(TypedDict):
    """What the network sees in a class of n images: the commonest of its own classes first."""

    label: str
    n: int
    seen: list[SourceShare]


def commonest_source_classes(
    scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], source_classes: Sequence[str]
) -> list[ClassView]:
    """Return for each class with images the commonest of the network's own classes, ties by their order.

    scores: (n, n_source_classes) of the network's head; labels: (n,) int64, indices into `classes`.
    """
    highest = scores.argmax(1)
    return [
        _view_of(str(classes[label]), highest[labels == label], source_classes) for label in np.unique(labels).tolist()
    ]


def _view_of(label: str, highest: np.ndarray, source_classes: Sequence[str]) -> ClassView:
    counts = np.bincount(highest)
    order = np.argsort(-counts, kind="stable")[:COMMONEST]
    seen = [SourceShare(source_classes[number], counts[number] / len(highest)) for number in order if counts[number]]
    return {"label": label, "n": len(highest), "seen": seen}
