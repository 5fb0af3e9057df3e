"""Distances between CNN codes: nearest images, outliers, leave-one-out predictions, and a map.

Codes are compared by direction (Razavian et al., "CNN features off-the-shelf", 2014): the distance is 1 - cosine.
They are read block by block: memory is bounded by one block and a few numbers per row, however many images there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from pipeline.codes import reader

SKETCH = 64
"""Width to which codes are projected before all are compared with all (Johnson and Lindenstrauss, 1984)."""

MAX_COMPARISONS = 2 * 10**10
"""Number of pairs of codes that are compared at most; beyond it a sample of the images is checked."""

MAX_FEATURES = 1024
"""Width to which codes are projected before a classifier is trained on them."""

TILE = (256, 1024)
"""Numbers of vectors that are compared with each other at a time: their products, a megabyte, stay in the cache."""

JUDGED = 10_000
"""Number of images, at most, by which the regularisation of the leave-one-out classifier is chosen."""

SAME = 1e-6
"""Codes of length 1 that differ by less in each number are the same."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Regularisations of the leave-one-out classifier, as shares of the codes' variance."""


def unit_blocks(path: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `rows` (increasing) block by block with their (m, d) float32 codes, scaled to length 1."""
    for block, values in reader.blocks(path, rows, check_once=True):
        yield block, to_unit(values)


def to_unit(codes: np.ndarray) -> np.ndarray:
    """Return codes (m, d) scaled to length 1; those of length 0 are not changed."""
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return codes / np.where(lengths > 0, lengths, 1)


def unit(path: Path, rows: np.ndarray) -> np.ndarray:
    """Return the (m, d) float32 codes of a few rows in any order, scaled to length 1."""
    increasing, places = np.unique(rows, return_inverse=True)
    return np.concatenate([values for _, values in unit_blocks(path, increasing)])[places]


def nearest(path: Path, queries: np.ndarray, among: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (m, count) float32 in [0, 2] and the rows (m, count) int64 of the nearest images.

    Where `among` has fewer than `count` rows, the result has fewer columns.

    queries: (m,) rows, none of which is its own neighbour; among: increasing rows to choose from.
    """
    return nearest_to(unit(path, queries), path, among, count, itself=queries)


def nearest_to(
    codes: np.ndarray, path: Path, among: np.ndarray, count: int, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `nearest` does, for codes (m, d) float32 of length 1, which may be those of other images.

    itself: (m,) for each code the row that is left out; None for no row.
    """
    best, rows = np.empty((len(codes), 0), np.float32), np.empty((len(codes), 0), np.int64)
    for block, values in unit_blocks(path, among):
        cosines = codes @ values.T
        if itself is not None:
            cosines[itself[:, None] == block] = -np.inf
        best = np.concatenate([best, cosines], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(block, cosines.shape)], axis=1)
        if best.shape[1] > count:
            keep = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, rows = np.take_along_axis(best, keep, 1), np.take_along_axis(rows, keep, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.maximum(1 - np.take_along_axis(best, order, 1), 0), np.take_along_axis(rows, order, 1)


def _projected_blocks(path: Path, rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Yield blocks (m, at most `width`) float32 of codes of length 1.

    Wider codes are projected by a random matrix, which keeps their distances on average.
    """
    matrix = None
    for _, values in unit_blocks(path, rows):
        if matrix is None and values.shape[1] > width:
            matrix = np.random.default_rng(0).standard_normal((values.shape[1], width)) / np.sqrt(width)
            matrix = matrix.astype(np.float32)
        yield values if matrix is None else values @ matrix


def sketch(path: Path, rows: np.ndarray, width: int = SKETCH) -> np.ndarray:
    """Return codes (n, at most `width`) float32 of length 1, projected so that their distances are kept roughly."""
    return np.concatenate(list(_projected_blocks(path, rows, width)))


def find_outliers(path: Path, rows: np.ndarray, among: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Return the rows (at most `most`,) whose nearest image in `among` is farthest away, and how many were checked.

    Projected codes decide. Where there are too many pairs to compare, every k-th row is checked.

    rows, among: increasing rows.
    """
    checked = rows[:: every(len(rows), 10 * len(among))]
    _, squares = nearest_vectors(sketch(path, checked), sketch(path, among), places_among(checked, among))
    return checked[np.argsort(-squares, kind="stable")[:most]], len(checked)


def every(rows: int, comparisons: int) -> int:
    """Return k, where with every k-th row at most `MAX_COMPARISONS` are made; comparisons: for each row."""
    return max(1, -(-rows * comparisons // MAX_COMPARISONS))


def places_among(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the place (n,) int64 of each row among increasing rows, which are not empty; -1 where it is not there."""
    places = np.searchsorted(among, rows)
    return np.where(among[np.minimum(places, len(among) - 1)] == rows, places, -1)


def nearest_vectors(
    ones: np.ndarray, others: np.ndarray, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each vector of `ones` the place (n,) of the nearest of `others` and the squared distance (n,) to it.

    itself: (n,) the place of each vector of `ones` among `others`, which is left out, or -1.
    """
    itself = np.full(len(ones), -1) if itself is None else itself
    centre = others.mean(0)  # codes after a ReLU point the same way: uncentred, rounding would drown small distances
    ones, others = ones - centre, others - centre
    lengths = (ones**2).sum(1)
    # One product gives one · other - |other|² / 2, which is highest for the nearest, without a pass to subtract.
    ones = np.column_stack([ones, np.ones_like(lengths)])
    others = np.column_stack([others, (others**2).sum(1) / -2])
    places = np.empty(len(ones), np.int64)
    squares = np.empty(len(ones), np.float32)
    for start, end in pairwise([*range(0, len(ones), TILE[0]), len(ones)]):
        places[start:end], best = _highest_products(ones[start:end], others, itself[start:end])
        squares[start:end] = lengths[start:end] - 2 * best
    return places, np.maximum(squares, 0)


def _highest_products(ones: np.ndarray, others: np.ndarray, itself: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where one · other is highest (n,), and its value (n,), tile by tile to stay in cache."""
    places, best = np.zeros(len(ones), np.int64), np.full(len(ones), -np.inf, np.float32)
    for start in range(0, len(others), TILE[1]):
        products = ones @ others[start : start + TILE[1]].T
        inside = np.flatnonzero((itself >= start) & (itself < start + TILE[1]))
        products[inside, itself[inside] - start] = -np.inf
        columns = products.argmax(1)
        values = products[np.arange(len(ones)), columns]
        better = values > best
        places[better], best[better] = columns[better] + start, values[better]
    return places, best


def leave_one_out_predictions(
    path: Path, rows: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each row by a classifier that is trained on all the others.

    Return the predicted classes (n,) int64, and by how much the score of each exceeds that of the label (n,) float,
    0 where they agree. Regularised least squares gives all leave-one-out predictions in closed form (Rifkin and
    Lippert, "Notes on regularized least squares", 2007); of several regularisations the most accurate one is used, on
    `JUDGED` of the rows at even distances where there are more.

    rows: (n,) increasing; labels: (n,) int64 in [0, classes).
    """
    gram, sums = _moments(path, rows, labels, classes)
    spectrum, vectors = np.linalg.eigh(gram)
    spectra = [np.maximum(spectrum, 0) + ridge * np.trace(gram) / len(gram) for ridge in RIDGES]
    weights = vectors.T @ sums
    judged = np.arange(0, len(rows), max(1, -(-len(rows) // JUDGED)))
    correct = np.zeros(len(spectra), np.int64)
    for block, values in _features(path, rows[judged]):
        rotated, known = values @ vectors, labels[judged[block]]
        correct += [(_leave_one_out(rotated, each, weights, known)[0] == known).sum() for each in spectra]
    predicted, margins = np.empty(len(rows), np.int64), np.empty(len(rows))
    for block, values in _features(path, rows):
        best = spectra[correct.argmax()]
        predicted[block], margins[block] = _leave_one_out(values @ vectors, best, weights, labels[block])
    return predicted, margins


def _features(path: Path, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of codes, (m, at most 1025) float64 with a constant last column, and their place among the rows."""
    start = 0
    for values in _projected_blocks(path, rows, MAX_FEATURES):
        yield slice(start, start + len(values)), np.column_stack([values, np.ones(len(values))]).astype(np.float64)
        start += len(values)


def _moments(path: Path, rows: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return X'X (d, d) and X'Y (d, classes) of the features X, where Y (n, classes) is 1 at the labels."""
    gram, sums = np.zeros(()), np.zeros(())  # zeros that take the shape of the first block's moments
    for block, values in _features(path, rows):
        of_label = csr_array((np.ones(len(values)), labels[block], np.arange(len(values) + 1)), (len(values), classes))
        gram, sums = gram + values.T @ values, sums + (of_label.T @ values).T
    return gram, sums


def _leave_one_out(
    rotated: np.ndarray, spectrum: np.ndarray, weights: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and margins of a block: scores (s - h y) / (1 - h), where h is the leverage of each row."""
    leverage = ((rotated**2) / spectrum).sum(1)
    scores = rotated @ (weights / spectrum[:, None])
    numbers = np.arange(len(labels))
    scores[numbers, labels] -= leverage
    scores /= np.maximum(1 - leverage, 1e-9)[:, None]
    return scores.argmax(1), scores.max(1) - scores[numbers, labels]


def reduce(path: Path, rows: np.ndarray) -> np.ndarray:
    """Return the codes of a few thousand rows at most, of length 1, reduced by PCA to (n, at most 50) float32.

    Codes that are all the same become zeros.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    values = unit(path, rows)
    if np.ptp(values, axis=0).max() < SAME:
        return np.zeros((len(rows), 1), np.float32)
    with threadpool_limits(1):  # threads that share a core make it ten times slower, and change the order of sums
        reduced: np.ndarray = PCA(min(50, *values.shape), random_state=0).fit_transform(values)
    return reduced


def project_2d(vectors: np.ndarray) -> np.ndarray:
    """Return positions (n, 2) float32 in [0, 1], where similar vectors are close, of those that `reduce` gives.

    The projection is t-SNE (van der Maaten and Hinton, JMLR 9, 2008).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not vectors.any():
        return np.full((len(vectors), 2), 0.5, np.float32)
    with threadpool_limits(1):
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        positions = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    lowest = positions.min(0)
    return (positions - lowest) / np.maximum(positions.max(0) - lowest, 1e-9)
