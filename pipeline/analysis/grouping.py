"""Which images count as one: copies, the images of a group, near-duplicates; and test images that training has seen."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.analysis import near_duplicates
from pipeline.codes import reader
from pipeline.config import NEAR_DISTANCE, NEAR_DUPLICATES
from pipeline.data.manifest import PIXELS, Manifest, read_manifest
from pipeline.data.splits import find_units
from pipeline.errors import counted
from pipeline.paths import MANIFEST
from pipeline.texts import Texts

logger = logging.getLogger(__name__)

SHOWN = 3
"""How many names of a group are shown."""


@dataclass(frozen=True)
class Grouping:
    """What joins images to a group.

    by: a column of the manifest, `NEAR_DUPLICATES`, or "" for nothing; near_distance: how close near-duplicates are, as
    a share of the median distance between two training images.
    """

    by: str = ""
    near_distance: float = NEAR_DISTANCE

    @property
    def has_column(self) -> bool:
        """Whether a column of the manifest joins images."""
        return self.by not in ("", NEAR_DUPLICATES)


@dataclass(frozen=True)
class CodesRows:
    """Some rows of a file of codes, or of those of several layers, and what the file says of all its rows.

    rows: (n,) increasing int64.
    """

    path: Path
    index: reader.CodesIndex
    rows: np.ndarray

    @classmethod
    def of_splits(cls, path: Path, *splits: str, index: reader.CodesIndex | None = None) -> CodesRows:
        """Return the rows of these splits; index: what the file says of all its rows, if it has been read."""
        index = index or reader.read_index(reader.layer_files(path)[0], {})
        return cls(path, index, np.flatnonzero(index.splits.isin(splits)))

    def of_other_splits(self, *splits: str) -> CodesRows:
        """Return the rows of other splits of the same file, which is not read again."""
        return replace(self, rows=np.flatnonzero(self.index.splits.isin(splits)))

    @cached_property
    def paths(self) -> Texts:
        """The paths of the images."""
        return self.index.paths.take(self.rows)

    @cached_property
    def digests(self) -> Texts:
        """The digests of the images."""
        return self.index.digests.take(self.rows)

    def near_limit(self, share: float) -> float:
        """Return the distance up to which images are near-duplicates, whatever rows these are."""
        return near_duplicates.distance_limit(self.path, self.of_other_splits("train").rows, share)


def find_image_units(images: CodesRows, data: Path, grouping: Grouping) -> np.ndarray:
    """Return the unit (n,) int64 of each image, as `find_units` numbers them; data: the prepared dataset's folder."""
    manifest = read_known(data, grouping)
    groups: list[Sequence[Hashable]] = []
    if grouping.by == NEAR_DUPLICATES:
        groups = [name_near_duplicates(images, grouping.near_distance)]
    elif manifest and grouping.by:
        values = manifest.groups_of(grouping.by, images.paths)
        groups = [[value or (path,) for value, path in zip(values, images.paths, strict=True)]]  # no value, no group
    return find_units(find_contents(images, manifest), *groups)


def read_known(data: Path, grouping: Grouping) -> Manifest | None:
    """Return the manifest of a prepared dataset; None where there is none, and no column of it is asked for."""
    return read_manifest(data) if grouping.has_column or (data / MANIFEST).exists() else None


def find_contents(images: CodesRows, manifest: Manifest | None) -> Texts:
    """Return what tells each image from those that are no copies of it: see `ListedImage.content`."""
    if manifest is None or PIXELS not in manifest.metadata:
        return images.digests
    return manifest.groups_of(PIXELS, images.paths)


def name_near_duplicates(images: CodesRows, share: float) -> Texts:
    """Return the group of near-duplicates of each image, named by the path of its first image; log what was found."""
    limit = images.near_limit(share)
    groups = near_duplicates.group_near_duplicates(images.path, images.rows, limit)
    kind = f"{' and '.join(sorted(images.index.splits.take(images.rows).distinct()))} images"
    how_near = f"codes at most {limit:.4g} apart, {share:g} of the median distance"
    logger.info(describe(groups, images.paths, kind, how_near))
    return images.paths.take(groups)


def describe(groups: np.ndarray, paths: Sequence[str], kind: str, how_near: str) -> str:
    """Say how many images fall into how many groups.

    groups: (n,) the place of the first image of each one's group; kind: what the images are called.
    """
    sizes = np.bincount(groups, minlength=len(groups))
    several = np.flatnonzero(sizes > 1)
    if not len(several):
        return f"No two of {len(paths)} {kind} are near-duplicates ({how_near})."
    largest = several[sizes[several].argmax()]
    names = [repr(paths[place]) for place in np.flatnonzero(groups == largest)[:SHOWN]]
    return (
        f"Near-duplicates ({how_near}): {sizes[several].sum()} of {len(paths)} {kind} fall into {len(several)} groups, "
        f"the largest of {sizes[largest]}: {', '.join(names)}{', …' if sizes[largest] > SHOWN else ''}."
    )


@dataclass(frozen=True)
class Related:
    """Which test images have relatives among the training images, by what relates them, (n,) bool each.

    near: near-duplicates that are no copies, all False where they were not searched for; grouped: images of a group of
    training images; unknown: of which near-duplicates were not looked for, since there are too many images to compare
    all; limit: the distance up to which images are near-duplicates.
    """

    copies: np.ndarray
    near: np.ndarray
    grouped: np.ndarray
    unknown: np.ndarray
    limit: float

    @property
    def any(self) -> np.ndarray:
        """Which test images have any relative."""
        related: np.ndarray = self.copies | self.near | self.grouped
        return related

    @property
    def none(self) -> np.ndarray:
        """Which test images are known to have no relative."""
        return ~(self.any | self.unknown)

    def sentence(self, by: str) -> str:
        """Say how many test images are related to training images, and how; by: as in `Grouping`."""
        kinds = [
            (self.copies, counted(self.copies.sum(), "copy")),
            (self.near, f"{counted(self.near.sum(), 'near-duplicate')} (codes at most {self.limit:.4g} apart)"),
            (self.grouped, f"{self.grouped.sum()} of a group of training images, by {by}"),
        ]
        found = ", ".join(text for images, text in kinds if images.any())
        sample = f" (a sample of {(~self.unknown).sum()} was compared)" if self.unknown.any() else ""
        verb = "is" if self.any.sum() == 1 else "are"
        return f"{self.any.sum()} of {len(self.any)} test images{sample} {verb} related to training images: {found}"


def find_related(test: CodesRows, data: Path, grouping: Grouping, *, search: bool = True) -> Related:
    """Find the test images that have relatives in the training split; search: whether near-duplicates are looked for.

    data: the prepared dataset's folder.
    """
    train, manifest = test.of_other_splits("train"), read_known(data, grouping)
    copies = occur(find_contents(test, manifest), find_contents(train, manifest))
    grouped = np.zeros(len(test.rows), bool)
    if manifest and grouping.has_column:
        grouped = occur(*(manifest.groups_of(grouping.by, images.paths) for images in (test, train)))
    near, unknown, limit = np.zeros(len(test.rows), bool), np.zeros(len(test.rows), bool), 0.0
    if search and len(train.rows):
        limit = test.near_limit(grouping.near_distance)
        found = near_duplicates.find_near_duplicates(test.path, test.rows[~copies], train.rows, limit)
        near = np.isin(test.rows, found.pairs[:, 0])
        unknown = ~(np.isin(test.rows, found.checked) | copies)
    return Related(copies, near, grouped, unknown, limit)


def occur(values: Texts, others: Texts) -> np.ndarray:
    """Return which of some values, (n,) bool, are among the others."""
    return others.rows_of(values) >= 0
