"""Clusters: as many as there are, the largest first, and the most typical images first."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import silhouette_score

from pipeline.analysis.clusters import find_clusters


def test_as_many_clusters_as_there_are_groups() -> None:
    sizes, rng = (10, 40, 20), np.random.default_rng(0)
    groups = np.repeat(np.arange(3), sizes)
    centres = 4 * np.eye(3)[groups]
    vectors = (centres + rng.normal(size=(70, 3))).astype(np.float32)
    found = find_clusters(vectors)
    assert found and [len(members) for members in found.members] == [40, 20, 10] and found.tried == 14
    assert [set(groups[members]) for members in found.members] == [{1}, {2}, {0}]
    assert abs(found.silhouette - silhouette_score(vectors, groups)) < 1e-6
    largest = vectors[found.members[0]]
    distances = np.linalg.norm(largest - largest.mean(0), axis=1)
    assert (np.diff(distances) >= -1e-5).all()


def test_images_that_are_too_few_or_the_same_have_no_clusters() -> None:
    vectors = np.random.default_rng(0).random((9, 4)).astype(np.float32)
    assert find_clusters(vectors) is None
    assert find_clusters(np.repeat(vectors[:1], 50, 0)) is None
