"""Near-duplicates: images whose codes are nearly the same, found in bounded memory, and the groups that they form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.analysis.neighbors import SKETCH, every, nearest_vectors, places_among, sketch, unit, unit_blocks
from pipeline.errors import PipelineError

PAIRS = 200
"""Number of random pairs of images whose median distance is taken."""

FILTER = 32
"""Width to which codes are projected to find the candidates, whose codes themselves are compared then."""

SLACK = 3.0
"""Images whose projected codes are farther apart than this multiple of the limit are no near-duplicates.

The squared distance of two projected codes is that of the codes times a chi-squared variable of `FILTER` degrees of
freedom over its mean: of the near-duplicates one in 30 million is lost.
"""

CHUNK_BYTES = 1 << 26
"""Bytes of codes that are compared at a time with the blocks of all others."""

TILE_CELLS = 1 << 22
"""Number of distances that are in memory together."""

LARGEST_SHARE = 0.5
"""Share of the images that a group may hold at most: more are joined by chains, or are not told apart by the codes."""


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near-duplicates: (k, 2) int64 rows, the closest pair first, and their distances (k,) float32.

    checked: (m,) increasing rows, those of which a near-duplicate was looked for.
    """

    pairs: np.ndarray
    distances: np.ndarray
    checked: np.ndarray


def distance_limit(path: Path, rows: np.ndarray, share: float) -> float:
    """Return the distance up to which images are near-duplicates: a share of the median distance between two images.

    path: a file of codes, or fc6+fc7.h5 for those of several layers; rows: increasing rows of the images that are drawn
    from: those for training, where there are any.
    """
    if len(rows) < 2:
        return 0.0
    pairs = np.random.default_rng(0).choice(rows, (PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    one, other = unit(path, pairs[:, 0]), unit(path, pairs[:, 1])
    return share * float(np.median(np.maximum(1 - np.einsum("nd,nd->n", one, other), 0)))


def find_near_duplicates(path: Path, ones: np.ndarray, others: np.ndarray, limit: float) -> NearDuplicates:
    """Return each row of `ones` with the nearest of the `others`, if that is at most `limit` away.

    Projected codes give the candidates, the codes themselves decide. Where there are too many pairs to compare, every
    k-th of `ones` is checked.

    ones, others: increasing rows; a row in both is not compared with itself.
    """
    checked = ones[:: every(len(ones), len(others))]
    if not (len(checked) and len(others)):
        return NearDuplicates(np.empty((0, 2), np.int64), np.empty(0, np.float32), checked)
    _, squares = nearest_vectors(
        sketch(path, checked, FILTER), sketch(path, others, FILTER), places_among(checked, others)
    )
    candidates = checked[_may_be_near(squares, limit)]
    checked = checked[:: _affordable_step(len(candidates), len(others), path)]
    candidates = np.intersect1d(candidates, checked)
    best, nearest = np.full(len(candidates), np.inf, np.float32), np.zeros(len(candidates), np.int64)
    for rows, block, distances in _tiles(path, candidates, others):
        distances[rows[:, None] == block] = np.inf
        places, closest = np.searchsorted(candidates, rows), distances.argmin(1)
        found = distances[np.arange(len(rows)), closest]
        better = found < best[places]
        best[places[better]], nearest[places[better]] = found[better], block[closest[better]]
    order = np.argsort(best, kind="stable")
    order = order[best[order] <= limit]
    return NearDuplicates(np.stack([candidates[order], nearest[order]], 1), best[order], checked)


def _affordable_step(candidates: int, others: int, path: Path) -> int:
    """Return the k of the every k-th candidate that can be compared with the others by the codes themselves."""
    width = next(unit_blocks(path, np.arange(1)))[1].shape[1]
    return every(candidates, others * max(1, width // SKETCH))


def group_near_duplicates(path: Path, rows: np.ndarray, limit: float) -> np.ndarray:
    """Return the group (n,) int64 of each row: the place of the first row to which near-duplicates lead from it.

    Groups are the connected components of the pairs that are at most `limit` apart. Raises PipelineError where one
    group holds most of the images. rows: (n,) increasing.
    """
    if not len(rows):
        return np.arange(0)
    vectors = sketch(path, rows, FILTER)
    _, squares = nearest_vectors(vectors, vectors, np.arange(len(rows)))
    places = np.flatnonzero(_may_be_near(squares, limit))
    groups = np.arange(len(rows))
    for ones, others, distances in _tiles(path, rows[places], rows[places]):
        one, other = np.nonzero(distances <= limit)
        groups = _join(groups, np.searchsorted(rows, ones)[one], np.searchsorted(rows, others)[other])
    _validate_groups(groups, limit)
    return groups


def _may_be_near(squares: np.ndarray, limit: float) -> np.ndarray:
    """Tell which squared distances (n,) of projected codes allow a distance up to the limit; |a - b|² = 2 (1 - cos)."""
    return squares / 2 <= SLACK * limit


def _tiles(path: Path, ones: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield some of `ones` and some of `others` with their distances (m, k) float32, until all have been compared."""
    for rows, codes in _chunks(path, ones):
        step = max(1, TILE_CELLS // len(rows))
        for block, values in unit_blocks(path, others):
            for start in range(0, len(block), step):
                yield rows, block[start : start + step], np.maximum(1 - codes @ values[start : start + step].T, 0)


def _chunks(path: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows with their codes of length 1, about `CHUNK_BYTES` at a time."""
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    for block, values in unit_blocks(path, rows):
        blocks.append((block, values))
        if sum(codes.nbytes for _, codes in blocks) >= CHUNK_BYTES:
            yield np.concatenate([rows for rows, _ in blocks]), np.concatenate([codes for _, codes in blocks])
            blocks = []
    if blocks:
        yield np.concatenate([rows for rows, _ in blocks]), np.concatenate([codes for _, codes in blocks])


def _join(groups: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the groups (n,) after those of each pair of places became one; a group is the place of its first row."""
    links = coo_array((np.ones(len(ones)), (groups[ones], groups[others])), shape=(len(groups), len(groups)))
    _, components = connected_components(links, directed=False)
    _, first, numbers = np.unique(components[groups], return_index=True, return_inverse=True)
    return first[numbers]


def _validate_groups(groups: np.ndarray, limit: float) -> None:
    """Refuse groups of which one holds most of the images."""
    largest = int(np.bincount(groups).max(initial=0))
    if largest > max(LARGEST_SHARE * len(groups), 1):
        raise PipelineError(
            f"Chains of near-duplicates, at most {limit:.4g} apart, join {largest} of {len(groups)} images to one "
            "group. Take a smaller --near-distance, or codes of another layer, which tell the images apart."
        )
