"""Clusters: groups of images whose codes are alike, as many as the images fall into most clearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_CLUSTERS = 20
"""Number of clusters that is tried at most."""

SMALLEST = 5
"""Number of images per cluster, on average, below which no more clusters are tried."""

STARTS = 4
"""Number of random starts of k-means for each number of clusters, of which the best counts."""


@dataclass(frozen=True)
class Clusters:
    """Images in clusters.

    members: the places of each cluster's images, those nearest to its centre first; the largest cluster comes first;
    silhouette: the mean over the images, in [-1, 1]: 1 where the clusters are far apart, 0 where they touch; tried: the
    largest number of clusters that was tried.
    """

    members: list[np.ndarray]
    silhouette: float
    tried: int


def find_clusters(vectors: np.ndarray) -> Clusters | None:
    """Return the clusters of images by k-means; None where there are too few different images for two.

    Of 2 to `MOST_CLUSTERS` clusters the number is taken whose mean silhouette is highest (Rousseeuw, "Silhouettes",
    1987).

    vectors: (n, d) float32 of a few thousand images at most, as `neighbors.reduce` gives them.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    most = min(MOST_CLUSTERS, len(vectors) // SMALLEST, len(np.unique(vectors.round(6), axis=0)) - 1)
    if most < 2:
        return None
    with threadpool_limits(1):  # for the same sums, and so the same clusters, on any machine
        fits = [KMeans(count, n_init=STARTS, random_state=0).fit(vectors) for count in range(2, most + 1)]
        silhouettes = [float(silhouette_score(vectors, fit.labels_)) for fit in fits]
    best = int(np.argmax(silhouettes))
    distances = fits[best].transform(vectors)
    members = [np.flatnonzero(fits[best].labels_ == number) for number in range(best + 2)]
    nearest_first = [places[np.argsort(distances[places, n], kind="stable")] for n, places in enumerate(members)]
    return Clusters(sorted(nearest_first, key=len, reverse=True), silhouettes[best], most)
