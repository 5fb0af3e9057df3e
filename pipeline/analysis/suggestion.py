"""Which images to label next: those that a classifier is least sure of, or those typical of what has no label yet."""

from __future__ import annotations

import numpy as np
from scipy.stats import entropy

MOST_CLUSTERS = 500
"""Number of clusters at most."""

NEIGHBOURS = 20
"""Number of nearest images of a cluster whose mean distance says how typical an image is of it."""


def gap_to_second(margins: np.ndarray) -> np.ndarray:
    """Return by how much the highest of the margins (n, n_classes >= 2) of each image exceeds the next, (n,)."""
    highest = np.partition(margins, -2, axis=1)[:, -2:]
    gaps: np.ndarray = highest[:, 1] - highest[:, 0]
    return gaps


def certainty(probabilities: np.ndarray) -> np.ndarray:
    """Return the negative entropy (n,), in nats, of the probabilities (n, n_classes) of each image."""
    negative: np.ndarray = -entropy(probabilities, axis=1)
    return negative


def typical_images(vectors: np.ndarray, labelled: np.ndarray, count: int) -> np.ndarray:
    """Return the places of `count` images without a label that are typical of clusters without labelled images.

    TypiClust of "Active Learning on a Budget" (Hacohen, Dekel and Weinshall, ICML 2022): there are as many clusters as
    there will be labelled images; the largest of those with the fewest labelled images is next, and the image of it
    that is nearest to its neighbours.

    vectors: (n, d) float32, as `neighbors.reduce` gives them; labelled: (n,) bool, of which at least `count` are False.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    n_clusters = min(int(labelled.sum()) + count, MOST_CLUSTERS, len(np.unique(vectors.round(6), axis=0)))
    with threadpool_limits(1):  # for the same sums, and so the same clusters, on any machine
        clusters = KMeans(n_clusters, n_init=1, random_state=0).fit(vectors).labels_
    members = [_most_typical_first(vectors, np.flatnonzero(clusters == number)) for number in range(n_clusters)]
    queues = [places[~labelled[places]].tolist() for places in members]
    covered, sizes = np.bincount(clusters[labelled], minlength=n_clusters), np.bincount(clusters, minlength=n_clusters)
    chosen: list[int] = []
    while len(chosen) < count:
        cluster = min((number for number in range(n_clusters) if queues[number]), key=lambda n: (covered[n], -sizes[n]))
        chosen.append(queues[cluster].pop(0))
        covered[cluster] += 1
    return np.array(chosen, dtype=np.int64)


def _most_typical_first(vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the places of a cluster's images, those with the smallest mean distance to their neighbours first."""
    from sklearn.neighbors import NearestNeighbors

    if len(places) < 3:
        return places
    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(places) - 1)).fit(vectors[places])
    distances, _ = neighbours.kneighbors()
    return places[np.argsort(distances.mean(1), kind="stable")]
