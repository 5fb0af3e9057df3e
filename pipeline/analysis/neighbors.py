"""Distances between CNN codes: nearest images, near-duplicates, held-out labels and a map, block by block.

Codes are compared by direction (Razavian et al., "CNN features off-the-shelf", 2014): the distance is 1 - cosine.
Memory is bounded by a block of codes and a few numbers a row, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codes import reader

SKETCH = 64
"""Numbers that stand for a code where all are compared with all (Johnson and Lindenstrauss, 1984)."""

MAX_COMPARISONS = 2 * 10**10
DUPLICATE = 0.02
"""Near-duplicates are nearer than this share of the median distance between two images."""

MAX_FEATURES = 1024
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Regularisation of the held-out classifier, as shares of the codes' variance."""


def unit_blocks(path: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some of `rows` at a time with their (m, d) float32 codes of length 1 (those of length 0 stay)."""
    for some, values in reader.blocks(path, rows):
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        yield some, values / np.where(lengths > 0, lengths, 1)


def unit(path: Path, rows: np.ndarray) -> np.ndarray:
    """Return the (m, d) float32 codes of length 1 of a few rows, in any order."""
    increasing, places = np.unique(rows, return_inverse=True)
    return np.concatenate([values for _, values in unit_blocks(path, increasing)])[places]


def nearest(path: Path, queries: np.ndarray, among: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (m, count) float32 in [0, 2] and the rows (m, count) int64 of the nearest of `among`.

    queries: (m,) rows, which are never their own neighbours; among: increasing rows. Where there are fewer than
    `count`, the columns end earlier.
    """
    asked = unit(path, queries)
    best, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for some, values in unit_blocks(path, among):
        closeness = asked @ values.T
        closeness[queries[:, None] == some] = -np.inf
        best = np.concatenate([best, closeness], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(some, closeness.shape)], axis=1)
        if best.shape[1] > count:
            keep = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, rows = np.take_along_axis(best, keep, 1), np.take_along_axis(rows, keep, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.maximum(1 - np.take_along_axis(best, order, 1), 0), np.take_along_axis(rows, order, 1)


@dataclass(frozen=True)
class Pairs:
    """Near-duplicates: pairs (k, 2) of rows, the nearest first, with their distances (k,).

    typical: the median distance between any two images; checked, of: the images whose nearest was sought, and all.
    """

    pairs: np.ndarray
    distances: np.ndarray
    typical: float
    checked: int
    of: int


def near_duplicates(path: Path, ones: np.ndarray, others: np.ndarray, most: int) -> Pairs:
    """Find the pairs of one row of `ones` and one of `others` (both increasing) that are suspiciously alike.

    Sketches of the codes find the candidates, the codes themselves decide. Where there are too many pairs to compare,
    an even sample of `ones` is checked.
    """
    checked = ones[:: max(1, -(-len(ones) * len(others) // MAX_COMPARISONS))]
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.choice(rows, 200) for rows in (checked, others)], 1)
    typical = float(np.median(_distances(path, pairs)))
    found, squares = _nearest_sketch(_sketch(path, checked), _sketch(path, others))
    order = np.argsort(squares, kind="stable")[:most]
    order = order[squares[order] / 2 < 3 * DUPLICATE * typical]  # |a - b|² = 2 (1 - cos), and sketches err
    candidates = np.stack([checked[order], others[found[order]]], 1)
    distances = _distances(path, candidates) if len(candidates) else np.empty(0, np.float32)
    sure = np.argsort(distances, kind="stable")
    sure = sure[distances[sure] <= DUPLICATE * typical]
    return Pairs(candidates[sure], distances[sure], typical, len(checked), len(ones))


def _distances(path: Path, pairs: np.ndarray) -> np.ndarray:
    one, other = unit(path, pairs[:, 0]), unit(path, pairs[:, 1])
    return np.maximum(1 - np.einsum("nd,nd->n", one, other), 0)


def _projection(width: int, most: int) -> np.ndarray | None:
    """Return a random (width, most) float32 matrix that keeps distances on average, or None where none is needed."""
    if width <= most:
        return None
    return (np.random.default_rng(0).standard_normal((width, most)) / np.sqrt(most)).astype(np.float32)


def _sketch(path: Path, rows: np.ndarray) -> np.ndarray:
    sketches, matrix = [], None
    for number, (_, values) in enumerate(unit_blocks(path, rows)):
        if number == 0:
            matrix = _projection(values.shape[1], SKETCH)
        sketches.append(values if matrix is None else values @ matrix)
    return np.concatenate(sketches)


def find_outliers(path: Path, rows: np.ndarray, among: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Return those of `rows` that are farthest from the nearest of `among` (both increasing), by their sketches.

    Also returned: how many of the rows were looked at, an even sample where there are too many to compare.
    """
    checked = rows[:: max(1, -(-10 * len(rows) * len(among) // MAX_COMPARISONS))]
    places = np.searchsorted(among, checked)
    own = np.where(among[np.minimum(places, len(among) - 1)] == checked, places, -1)
    _, squares = _nearest_sketch(_sketch(path, checked), _sketch(path, among), own)
    return checked[np.argsort(-squares, kind="stable")[:most]], len(checked)


def _nearest_sketch(
    ones: np.ndarray, others: np.ndarray, own: np.ndarray | None = None, step: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `ones` the nearest of `others` (n,) and the squared distance to it (n,).

    own: (n,) where each of `ones` itself stands among `others`, or -1.
    """
    own = np.full(len(ones), -1) if own is None else own
    centre = others.mean(0)  # ReLU codes point the same way; without the centre, rounding would drown small distances
    ones, others = ones - centre, others - centre
    halves = (others**2).sum(1) / 2
    places = np.empty(len(ones), np.int64)
    squares = np.empty(len(ones), np.float32)
    for start, end in pairwise([*range(0, len(ones), step), len(ones)]):
        found, best = _highest(ones[start:end], others, halves, own[start:end])
        places[start:end] = found
        squares[start:end] = (ones[start:end] ** 2).sum(1) - 2 * best
    return places, np.maximum(squares, 0)


def _highest(
    some: np.ndarray, others: np.ndarray, halves: np.ndarray, own: np.ndarray, step: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """Return where some · other - |other|² / 2 is highest (n,), and its value (n,), tile by tile to stay in cache."""
    places, best = np.zeros(len(some), np.int64), np.full(len(some), -np.inf, np.float32)
    for start in range(0, len(others), step):
        closeness = some @ others[start : start + step].T - halves[start : start + step]
        here = np.flatnonzero((own >= start) & (own < start + step))
        closeness[here, own[here] - start] = -np.inf
        found = closeness.argmax(1)
        values = closeness[np.arange(len(some)), found]
        better = values > best
        places[better], best[better] = found[better] + start, values[better]
    return places, best


def leave_one_out_predictions(
    path: Path, rows: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each of `rows` (n, increasing) by a classifier trained on all the others.

    Returns the predicted classes (n,) int64 and by how much each scores above the label (n,) float, 0 where they
    agree. Regularised least squares gives all n leave-one-out predictions in closed form (Rifkin and Lippert, "Notes on
    regularized least squares", 2007); of a few regularisations the one that is most often right is taken.
    labels: (n,) int64.
    """
    gram, sums = _moments(path, rows, labels, classes)
    spectrum, vectors = np.linalg.eigh(gram)
    ridges = np.array(RIDGES) * np.trace(gram) / len(gram)
    weights = vectors.T @ sums
    predicted = np.empty((len(ridges), len(rows)), np.int64)
    leads = np.empty((len(ridges), len(rows)))
    start = 0
    for values in _features(path, rows):
        turned, inside = values @ vectors, slice(start, start + len(values))
        for number, ridge in enumerate(ridges):
            found = _leave_one_out(turned, np.maximum(spectrum, 0) + ridge, weights, labels[inside])
            predicted[number, inside], leads[number, inside] = found
        start += len(values)
    best = (predicted == labels).sum(1).argmax()
    return predicted[best], leads[best]


def _features(path: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks of codes, (m, at most 1024) float64, and a constant column."""
    matrix = None
    for number, (_, values) in enumerate(unit_blocks(path, rows)):
        if number == 0:
            matrix = _projection(values.shape[1], MAX_FEATURES)
        features = values if matrix is None else values @ matrix
        yield np.column_stack([features, np.ones(len(features))]).astype(np.float64)


def _moments(path: Path, rows: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return X'X (d, d) and X'Y (d, classes), where Y (n, classes) is 1 at the labels."""
    gram: Any = 0
    sums: Any = 0
    start = 0
    for values in _features(path, rows):
        hot = np.eye(classes)[labels[start : start + len(values)]]
        gram, sums = gram + values.T @ values, sums + values.T @ hot
        start += len(values)
    return gram, sums


def _leave_one_out(
    turned: np.ndarray, spectrum: np.ndarray, weights: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and leads of a block: scores (s - h y) / (1 - h), where h is the row's own leverage."""
    own = ((turned**2) / spectrum).sum(1)
    scores = turned @ (weights / spectrum[:, None])
    here = np.arange(len(labels))
    scores[here, labels] -= own
    scores /= np.maximum(1 - own, 1e-9)[:, None]
    return scores.argmax(1), scores.max(1) - scores[here, labels]


def project_2d(path: Path, rows: np.ndarray) -> np.ndarray:
    """Return (n, 2) float32 places in [0, 1] of a few thousand rows at most, such that similar codes lie together.

    PCA to 50 dimensions, then t-SNE (van der Maaten and Hinton, JMLR 9, 2008).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    values = unit(path, rows)
    with threadpool_limits(1):  # threads that share a core slow it down tenfold, and change the sums' order
        few = PCA(min(50, *values.shape), random_state=0).fit_transform(values)
        perplexity = min(30.0, (len(rows) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(few)
    lowest = places.min(0)
    return (places - lowest) / np.maximum(places.max(0) - lowest, 1e-9)
