"""The images of a dataset that are worth a look: copies across splits, suspected label errors, outliers; and a map."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.analysis import duplicates, near_duplicates, neighbors
from pipeline.codes.reader import CodesIndex
from pipeline.data.manifest import NO_LABEL
from pipeline.reporting.page_data import Card, CodeMap, ImageList, MapPoint, Neighbour
from pipeline.reporting.thumbnails import Album, Priority

SHOWN = 24
"""Number of cards in a list that have thumbnails and nearest images."""

LISTED = 200
"""Number of cards in a list of mistakes or suspected label errors, most of which are there for its CSV file."""

NEAREST = 5
"""Number of nearest training images shown with each of them, and of images of a group of copies."""

MAP_IMAGES = 2000
"""Number of images on the map."""


@dataclass(frozen=True)
class Gallery:
    """The images of a dataset, by their rows in a file of codes; those that are shown go into the page's album."""

    root: Path
    index: CodesIndex
    album: Album

    def add(self, row: int, priority: Priority = Priority.LIST) -> int:
        """Put an image into the album and return its number there."""
        index = self.index
        label = int(index.labels[row]) if index.labels.ndim == 1 else NO_LABEL
        return self.album.add(self.root, index.paths[row], label, index.splits[row], priority)

    def rows(self, *splits: str) -> np.ndarray:
        """Return the rows (n,) int64 of the images of these splits."""
        return np.flatnonzero(self.index.splits.isin(splits))

    @property
    def reference(self) -> np.ndarray:
        """The rows of the images that others are compared with: those for training, or all where there are none."""
        train = self.rows("train")
        return train if len(train) else np.arange(len(self.index.paths))

    def nearest(self, rows: np.ndarray, among: np.ndarray) -> list[list[Neighbour]]:
        """Return the nearest images of each row, the nearest first; among: the increasing rows to choose from."""
        if not len(rows) or not len(among):
            return [[] for _ in rows]
        distances, nearest_rows = neighbors.nearest(self.index.path, rows, among, NEAREST)
        return [
            [
                Neighbour(self.add(row, Priority.NEIGHBOUR), round(float(distance), 5))
                for row, distance in zip(*line, strict=True)
                if distance <= 2
            ]
            for line in zip(nearest_rows.tolist(), distances, strict=True)
        ]


def copies_across_splits(gallery: Gallery) -> ImageList:
    """Return groups of images with the same bytes in several splits."""
    return _list_copies(gallery, gallery.index.splits)


def conflicting_duplicates(gallery: Gallery) -> ImageList:
    """Return groups of images with the same bytes and different labels."""
    return _list_copies(gallery, gallery.index.labels.tolist())


def _list_copies(gallery: Gallery, values: Sequence[duplicates.Value]) -> ImageList:
    groups, total = duplicates.same_bytes(gallery.index, values), len(gallery.index.paths)
    cards: list[Card] = [{"images": [gallery.add(row) for row in group[:NEAREST]]} for group in groups[:SHOWN]]
    return {"cards": cards, "found": len(groups), "checked": total, "total": total}


def near_duplicates_across_splits(gallery: Gallery) -> ImageList:
    """Return pairs of images of different splits whose codes are nearly the same, the nearest first."""
    search = duplicates.search_across_splits(gallery.index)
    return list_pairs(gallery, search.searches, search.total, search.limit)


def list_pairs(
    gallery: Gallery, searches: Sequence[near_duplicates.NearDuplicates], total: int, limit: float
) -> ImageList:
    """Return the pairs that searches for near-duplicates of `total` images found, the nearest first, each once."""
    pairs = duplicates.pairs_of(searches)
    cards: list[Card] = [
        {"images": [gallery.add(row, priority_at(place)) for row in rows], "distance": round(distance, 6)}
        for place, (distance, rows) in enumerate(pairs[:LISTED])
    ]
    checked = sum(len(search.checked) for search in searches)
    return {
        "cards": cards,
        "found": len(pairs),
        "checked": checked,
        "total": total,
        "limit": round(limit, 6),
    }


def suspected_label_errors(gallery: Gallery) -> ImageList:
    """Return the training images whose label a classifier contradicts that is trained on all the others.

    Those come first whose margin over the label's score is largest; that margin is their confidence.
    """
    index, train = gallery.index, gallery.rows("train")
    labels = index.labels[train]
    predicted, margins = neighbors.leave_one_out_predictions(index.path, train, labels, len(index.classes))
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-margins[wrong], kind="stable")][:LISTED]
    cards: list[Card] = [
        {
            "images": [gallery.add(int(train[place]), priority_at(number))],
            "predicted": int(predicted[place]),
            "confidence": round(float(margins[place]), 4),
        }
        for number, place in enumerate(order.tolist())
    ]
    add_nearest(cards, gallery, train[order[:SHOWN]])
    return {"cards": cards, "found": len(wrong), "checked": len(train), "total": len(train)}


def priority_at(place: int) -> Priority:
    """Return the priority of an image at a place of a list: the first are shown at once, the others on request."""
    return Priority.LIST if place < SHOWN else Priority.REST


def add_nearest(cards: Sequence[Card], gallery: Gallery, rows: np.ndarray) -> None:
    """Add the nearest images of the reference to the first cards, which show the images of these rows (m,)."""
    for card, nearest in zip(cards, gallery.nearest(rows, gallery.reference), strict=False):
        card["nearest"] = nearest


def outliers(gallery: Gallery) -> ImageList:
    """Return the images whose nearest image of the reference is farthest away."""
    index, among = gallery.index, gallery.reference
    total = len(index.labels)
    if len(among) < 2:
        return {"cards": [], "found": 0, "checked": 0, "total": total}
    rows, checked = neighbors.find_outliers(index.path, np.arange(total), among, 2 * SHOWN)
    nearest = zip(rows.tolist(), gallery.nearest(rows, among), strict=True)
    by_distance = sorted(nearest, key=lambda item: -item[1][0].distance)
    cards: list[Card] = [{"images": [gallery.add(row)], "nearest": nearest} for row, nearest in by_distance[:SHOWN]]
    return {"cards": cards, "found": len(cards), "checked": checked, "total": total}


def files_of_rare_types(gallery: Gallery) -> ImageList:
    """Return the files whose type (.gif) is that of less than one file in a hundred, the rarest first."""
    paths = gallery.index.paths
    rare = rare_types(paths)
    cards: list[Card] = [{"images": [gallery.add(row)]} for row in rare[:SHOWN]]
    return {"cards": cards, "found": len(rare), "checked": len(paths), "total": len(paths)}


def rare_types(paths: Sequence[str]) -> list[int]:
    """Return the places of files whose type is that of less than one file in a hundred, the rarest first."""
    types = [os.path.splitext(path)[1].lower() for path in paths]  # noqa: PTH122 - PurePath takes ten times as long
    counts = Counter(types)
    rare = [place for place, kind in enumerate(types) if 100 * counts[kind] < len(paths)]
    return sorted(rare, key=lambda place: counts[types[place]])


def draw_sample(rows: np.ndarray) -> np.ndarray:
    """Return at most `MAP_IMAGES` of increasing rows, drawn at random, the same in each run."""
    if len(rows) <= MAP_IMAGES:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MAP_IMAGES, replace=False))


def code_map(gallery: Gallery) -> CodeMap | None:
    """Return the codes of a sample of all images in two dimensions; None if there are too few images."""
    index = gallery.index
    rows = draw_sample(np.arange(len(index.labels)))
    if len(rows) < 5 or index.width < 2:
        return None
    places = np.rint(1000 * neighbors.project_2d(neighbors.reduce(index.path, rows))).astype(int).tolist()
    return {
        "points": [
            MapPoint(x, y, gallery.add(row, Priority.MAP)) for (x, y), row in zip(places, rows.tolist(), strict=True)
        ],
        "total": len(index.labels),
        "backbone": index.spec.backbone,
        "layer": index.spec.layer,
    }


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder, with a slash at its end, that absolute paths share; "" if they are relative to the dataset."""
    if not paths or not all(path.startswith("/") for path in paths):
        return ""
    return os.path.commonpath(paths) + "/"
