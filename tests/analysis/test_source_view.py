"""The commonest of a network's own classes in each class of images."""

from __future__ import annotations

import numpy as np

from pipeline.analysis.source_view import commonest_source_classes

SOURCE = ("tench", "hen", "robin", "ant", "bee")


def test_the_commonest_classes_are_named_with_their_shares() -> None:
    highest, labels = np.array([3, 3, 4, 3, 1, 2, 0, 0, 4, 4]), np.array([0, 0, 0, 0, 2, 2, 2, 2, 2, 2])
    views = commonest_source_classes(np.eye(5)[highest], labels, ("ants", "no images", "others"), SOURCE)
    assert views == [
        {"label": "ants", "n": 4, "seen": [("ant", 0.75), ("bee", 0.25)]},
        {"label": "others", "n": 6, "seen": [("tench", 2 / 6), ("bee", 2 / 6), ("hen", 1 / 6)]},
    ]
