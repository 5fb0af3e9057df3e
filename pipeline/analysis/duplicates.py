"""Images that are there twice: groups of the same bytes, and near-duplicates in different splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.analysis import near_duplicates
from pipeline.codes.reader import CodesIndex
from pipeline.config import NEAR_DISTANCE
from pipeline.data.manifest import SPLITS

Value = TypeVar("Value", bound=str | int)


def same_bytes(index: CodesIndex, values: Sequence[Value], splits: Sequence[str] = SPLITS) -> list[list[int]]:
    """Return groups of rows of some splits whose files have the same bytes and whose `values` (n,) differ.

    Each group begins with one row of each value.
    """
    chosen = np.flatnonzero(index.splits.isin(splits))
    contents = index.digests.take(chosen).numbers()
    several = np.bincount(contents)[contents] > 1  # few rows, as a rule: no other one becomes a Python object
    rows: dict[int, list[int]] = {}
    for content, row in zip(contents[several].tolist(), chosen[several].tolist(), strict=True):
        rows.setdefault(content, []).append(row)
    groups = [group for group in rows.values() if len({values[row] for row in group}) > 1]
    return [_one_of_each_first(group, values) for group in groups]


def _one_of_each_first(group: Iterable[int], values: Sequence[Value]) -> list[int]:
    first: dict[Value, int] = {}
    rest = [row for row in group if first.setdefault(values[row], row) != row]
    return [*first.values(), *rest]


@dataclass(frozen=True)
class SplitSearch:
    """Searches for near-duplicates that are no copies in different splits.

    total: number of images of which near-duplicates were to be found; limit: the distance up to which images count as
    nearly the same.
    """

    searches: list[near_duplicates.NearDuplicates]
    total: int
    limit: float


def search_across_splits(index: CodesIndex) -> SplitSearch:
    """Find test images that are nearly training or validation images, and validation images nearly training images."""
    copies = [row for group in same_bytes(index, index.splits) for row in group]
    limit = near_duplicates.distance_limit(index.path, np.flatnonzero(index.splits.isin(["train"])), NEAR_DISTANCE)
    searches, total = [], 0
    for split, other_splits in (("test", ("train", "val")), ("val", ("train",))):
        rows = np.setdiff1d(np.flatnonzero(index.splits.isin([split])), copies)
        others = np.flatnonzero(index.splits.isin(other_splits))
        if len(rows) and len(others):
            total += len(rows)
            searches.append(near_duplicates.find_near_duplicates(index.path, rows, others, limit))
    return SplitSearch(searches, total, limit)


def pairs_of(searches: Iterable[near_duplicates.NearDuplicates]) -> list[tuple[float, list[int]]]:
    """Return the distance and the two rows of the pairs that searches found, the nearest first, each once."""
    pairs = sorted(
        (distance, rows)
        for search in searches
        for rows, distance in zip(search.pairs.tolist(), search.distances.tolist(), strict=True)
    )
    return list({frozenset(rows): (distance, rows) for distance, rows in pairs}.values())
