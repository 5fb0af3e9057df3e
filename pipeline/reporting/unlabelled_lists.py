"""The images of a dataset that have no label: clusters, nearest images, copies and near-duplicates among them."""

from __future__ import annotations

import numpy as np

from pipeline.analysis import duplicates, near_duplicates, neighbors
from pipeline.analysis.clusters import find_clusters
from pipeline.config import NEAR_DISTANCE
from pipeline.data.manifest import PARTS
from pipeline.reporting.image_lists import (
    LISTED,
    NEAREST,
    Gallery,
    draw_sample,
    list_pairs,
    priority_at,
)
from pipeline.reporting.page_data import Card, ImageList
from pipeline.reporting.thumbnails import Priority

CLUSTER_IMAGES = 12
"""Number of images shown of a cluster; its other ones are in the CSV file."""


def list_clusters(gallery: Gallery, rows: np.ndarray) -> ImageList:
    """Return the clusters of a sample of the images, the largest first, and of each its most typical images first."""
    chosen = draw_sample(rows)
    found = find_clusters(neighbors.reduce(gallery.index.path, chosen))
    cards: list[Card] = [
        {"cluster": number, "images": [gallery.add(row, _priority(place)) for place, row in enumerate(members)]}
        for number, members in enumerate([chosen[places].tolist() for places in found.members] if found else [], 1)
    ]
    lists: ImageList = {"cards": cards, "found": len(cards), "checked": len(chosen), "total": len(rows)}
    return {**lists, "silhouette": round(found.silhouette, 2), "tried": found.tried} if found else lists


def _priority(place: int) -> Priority:
    return Priority.LIST if place < CLUSTER_IMAGES else Priority.MAP


def list_neighbours(gallery: Gallery, rows: np.ndarray) -> ImageList:
    """Return images at even distances in the list, each with those of all images that are nearest to it."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(LISTED, len(rows))).round().astype(np.int64))]
    everyone = np.arange(len(gallery.index.paths))
    cards: list[Card] = [
        {"images": [gallery.add(row, priority_at(place))], "nearest": nearest}
        for place, (row, nearest) in enumerate(zip(chosen.tolist(), gallery.nearest(chosen, everyone), strict=True))
    ]
    return {"cards": cards, "found": len(cards), "checked": len(cards), "total": len(rows)}


def list_copies(gallery: Gallery, rows: np.ndarray) -> ImageList:
    """Return groups of images with the same bytes, at least one of which has no label."""
    everyone = range(len(gallery.index.paths))
    groups = [group for group in duplicates.same_bytes(gallery.index, everyone, PARTS) if np.isin(group, rows).any()]
    cards: list[Card] = [
        {"images": [gallery.add(row, priority_at(place)) for row in group[:NEAREST]]}
        for place, group in enumerate(groups[:LISTED])
    ]
    return {"cards": cards, "found": len(groups), "checked": len(rows), "total": len(rows)}


def list_near_duplicates(gallery: Gallery, rows: np.ndarray) -> ImageList:
    """Return pairs of images whose codes are nearly the same, one of them without a label, the nearest pair first.

    Of images with the same bytes the first alone counts.
    """
    path, contents = gallery.index.path, gallery.index.digests.numbers()
    limit = near_duplicates.distance_limit(path, rows, NEAR_DISTANCE)
    different = np.unique(contents, return_index=True)[1]
    ones = rows[np.isin(rows, different)]
    search = near_duplicates.find_near_duplicates(path, ones, different, limit)
    return list_pairs(gallery, [search], len(ones), limit)
