"""Which images are worth looking at: mistakes, doubts, confusions, leaks, doubtful labels, and a map of them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pipeline.analysis import neighbors, predictions
from pipeline.codes import reader
from pipeline.reporting import thumbnails
from pipeline.reporting.experiments import ExperimentResult

SHOWN = 24
"""Images in each list."""

NEAREST = 5
"""Training images beside each of them."""

MAX_MATRIX_CLASSES = 200
"""With more classes than these a matrix has no readable cells; its fullest ones are listed instead."""

LISTED_CELLS = 200
CELL_IMAGES = 12
MAX_CELL_IMAGES = 4000
MAP_IMAGES = 2000
MAX_PAIRS = 200

FIRST, BESIDE, MAPPED, CONFUSED, CORRECT = range(5)
"""The order in which thumbnails are given out until the budget is spent."""


@dataclass(frozen=True)
class Gallery:
    """The images of a dataset, by their rows in a file of codes, and the page's album that they go into."""

    study: ExperimentResult
    index: reader.CodesIndex
    album: thumbnails.Album

    def add(self, row: int, wish: int) -> int:
        """Put an image into the album and return its number there."""
        index = self.index
        root = self.study.address.data
        return self.album.add(root, index.paths[row], int(index.labels[row]), index.splits[row], wish)

    def rows(self, *splits: str) -> np.ndarray:
        """Return the rows of the codes in these splits."""
        return np.flatnonzero(np.isin(self.index.splits, splits))

    def near(self, rows: np.ndarray) -> list[list[tuple[int, float]]]:
        """Return for each row its nearest training images: their numbers and distances."""
        train = self.rows("train")
        if not len(rows) or not len(train):
            return [[] for _ in rows]
        distances, found = neighbors.nearest(self.index.path, rows, train, NEAREST)
        return [
            [(self.add(row, BESIDE), round(float(d), 5)) for row, d in zip(line, far, strict=True) if d <= 2]
            for line, far in zip(found.tolist(), distances, strict=True)
        ]


def prediction_lists(study: ExperimentResult, album: thumbnails.Album) -> dict[str, list[dict[str, Any]]]:
    """Return the most confident mistakes and the least certain predictions, with their nearest training images."""
    wrong = np.flatnonzero(~study.outcomes.correct)
    chosen = {
        "mistakes": wrong[np.argsort(-study.sureness[wrong], kind="stable")][:SHOWN],
        "doubts": np.argsort(study.sureness, kind="stable")[:SHOWN],
    }
    return {name: _items(study, album, images) for name, images in chosen.items()}


def _items(study: ExperimentResult, album: thumbnails.Album, images: np.ndarray) -> list[dict[str, Any]]:
    near: list[list[tuple[int, float]]] = [[] for _ in images]
    if study.index is not None:
        near = Gallery(study, study.index, album).near(study.tests[images])
    return [
        {
            "image": add_test(study, album, image, FIRST),
            "said": int(study.outcomes.predicted[image]),
            "sure": round(float(study.sureness[image]), 4),
            "near": beside,
        }
        for image, beside in zip(images.tolist(), near, strict=True)
    ]


def add_test(study: ExperimentResult, album: thumbnails.Album, image: int, wish: int) -> int:
    """Put a test image into the album and return its number there."""
    found = study.outcomes
    return album.add(study.address.data, found.paths[image], int(found.labels[image]), "test", wish)


def confusion_cells(study: ExperimentResult, album: thumbnails.Album) -> list[tuple[int, int, int, list[int]]]:
    """Return (true class, predicted class, images, numbers of some of them) for the cells that are to be shown.

    Behind a mistake are the images that it was surest of, behind the diagonal the least sure.
    """
    found = predictions.confusions(study.outcomes)
    wrong = [cell for cell in found if cell[0] != cell[1]]
    if len(study.outcomes.classes) > MAX_MATRIX_CLASSES:
        shown = wrong[:LISTED_CELLS]
    else:
        shown = wrong + [cell for cell in found if cell[0] == cell[1]]
    left, result = MAX_CELL_IMAGES, []
    for true, predicted, images in shown:
        order = np.argsort(study.sureness[images] * (1 if true == predicted else -1), kind="stable")
        few = images[order][: min(CELL_IMAGES, left)].tolist()
        left -= len(few)
        wish = CORRECT if true == predicted else CONFUSED
        result.append((true, predicted, len(images), [add_test(study, album, image, wish) for image in few]))
    return result


def find_leaks_between_splits(gallery: Gallery) -> dict[str, Any]:
    """Return the images that occur in several splits: the same bytes, and codes that are nearly the same."""
    index = gallery.index
    groups = same_bytes(index, index.splits)
    copies = {row for group in groups for row in group}
    found = []
    for one, others in (("test", ("train", "val")), ("val", ("train",))):
        ones = np.array([row for row in gallery.rows(one) if row not in copies], dtype=np.int64)
        if len(ones) and len(gallery.rows(*others)):
            found.append(neighbors.near_duplicates(index.path, ones, gallery.rows(*others), MAX_PAIRS))
    pairs = [(pair, far) for some in found for pair, far in zip(some.pairs.tolist(), some.distances, strict=True)]
    pairs.sort(key=lambda pair: pair[1])
    return {
        "copies": [[gallery.add(row, FIRST) for row in group[:NEAREST]] for group in groups[:SHOWN]],
        "copies_total": len(groups),
        "pairs": [
            (gallery.add(a, FIRST), gallery.add(b, FIRST), round(float(far), 6)) for (a, b), far in pairs[:SHOWN]
        ],
        "pairs_total": len(pairs),
        "limit": [round(neighbors.DUPLICATE * some.median_distance, 6) for some in found],
        "checked": sum(some.checked for some in found),
        "of": sum(some.total for some in found),
    }


def same_bytes(index: reader.CodesIndex, column: Sequence[Any]) -> list[list[int]]:
    """Return groups of rows whose files have the same bytes and that differ in `column` (n,), one row a value first."""
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(index.digests):
        rows.setdefault(digest, []).append(row)
    groups = [group for group in rows.values() if len({column[row] for row in group}) > 1]
    return [_one_of_each(group, column) for group in groups]


def _one_of_each(group: Iterable[int], column: Sequence[Any]) -> list[int]:
    first: dict[Any, int] = {}
    rest = [row for row in group if first.setdefault(column[row], row) != row]
    return [*first.values(), *rest]


def suspected_label_errors(gallery: Gallery) -> dict[str, Any]:
    """Return the training images whose label a classifier trained on all the others contradicts most decidedly."""
    index, train = gallery.index, gallery.rows("train")
    twins = same_bytes(index, index.labels.tolist())
    labels = index.labels[train]
    said, leads = neighbors.leave_one_out_predictions(index.path, train, labels, len(index.classes))
    wrong = np.flatnonzero(said != labels)
    order = wrong[np.argsort(-leads[wrong], kind="stable")][:SHOWN]
    near = gallery.near(train[order])
    return {
        "twins": [[gallery.add(row, FIRST) for row in group[:NEAREST]] for group in twins[:SHOWN]],
        "twins_total": len(twins),
        "items": [
            {
                "image": gallery.add(int(train[place]), FIRST),
                "said": int(said[place]),
                "sure": round(float(leads[place]), 4),
                "near": beside,
            }
            for place, beside in zip(order.tolist(), near, strict=True)
        ],
        "total": len(wrong),
        "of": len(train),
    }


def outliers(gallery: Gallery) -> dict[str, Any]:
    """Return the files of rare types, and the images whose nearest training image is farthest away."""
    index, train = gallery.index, gallery.rows("train")
    if len(train) < 2:
        return {"types": [], "items": [], "checked": 0, "of": len(index.labels)}
    lonely, checked = neighbors.find_outliers(index.path, np.arange(len(index.labels)), train, 2 * SHOWN)
    found = sorted(zip(lonely.tolist(), gallery.near(lonely), strict=True), key=lambda item: -item[1][0][1])
    items = [{"image": gallery.add(row, FIRST), "near": near} for row, near in found[:SHOWN]]
    rare = [gallery.add(row, FIRST) for row in rare_types(index.paths)]
    return {"types": rare, "items": items, "checked": checked, "of": len(index.labels)}


def rare_types(paths: Sequence[str]) -> list[int]:
    """Return where the files stand whose type (.gif) is that of less than one file in a hundred, the rarest first."""
    types = [PurePath(path).suffix.lower() for path in paths]
    counts = Counter(types)
    rare = [row for row, kind in enumerate(types) if 100 * counts[kind] < len(paths)]
    return sorted(rare, key=lambda row: counts[types[row]])[:SHOWN]


def code_map(gallery: Gallery) -> dict[str, Any] | None:
    """Return (x, y, image number) of a sample of all images, x and y in 0…1000; None where there are too few."""
    index = gallery.index
    rows = np.arange(len(index.labels))
    if len(rows) < 5 or index.width < 2:
        return None
    if len(rows) > MAP_IMAGES:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAP_IMAGES, replace=False))
    places = np.rint(1000 * neighbors.project_2d(index.path, rows)).astype(int).tolist()
    points = [(x, y, gallery.add(row, MAPPED)) for (x, y), row in zip(places, rows.tolist(), strict=True)]
    return {"points": points, "of": len(index.labels), "layer": index.spec.layer, "backbone": index.spec.backbone}


def wrong_on_map(study: ExperimentResult, album: thumbnails.Album, flat: dict[str, Any] | None) -> dict[int, int]:
    """Return {image number: predicted class} of the map's images that a study gets wrong."""
    shown = {image for _, _, image in flat["points"]} if flat else set()
    found = {}
    for image in np.flatnonzero(~study.outcomes.correct).tolist():
        number = album.number(study.address.data, study.outcomes.paths[image])
        if number is not None and number in shown:
            found[number] = int(study.outcomes.predicted[image])
    return found
