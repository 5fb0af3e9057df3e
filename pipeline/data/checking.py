"""Check a dataset before it is written: read every file, settle the splits, and look for leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pipeline.data import corrections
from pipeline.data.listing import Listing
from pipeline.data.manifest import PIXELS, UNLABELLED, ListedImage
from pipeline.data.splits import assign_splits, find_leaks, resolve_splits, several_values
from pipeline.errors import first_names
from pipeline.images import decoding, depth, parallel
from pipeline.progress import track
from pipeline.texts import Texts

LARGE = 100
"""Shorter side in pixels beyond which the network for photographs is named."""


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready to be written.

    images: those that can be used, with their splits; bad: files that give no image, each with the reason; leaks: the
    images whose content occurs in several splits; listing: what the source offered; depths: of the images that can be
    read; max_value: the value that is white in images of more than 8 bits; large: whether most images have more than
    `LARGE` pixels on their shorter side.
    """

    images: list[ListedImage]
    bad: list[tuple[str, str]]
    leaks: list[ListedImage]
    listing: Listing
    depths: depth.Depths
    max_value: float = depth.WHITE
    large: bool = False


def check(path: Path) -> tuple[str, decoding.Facts]:
    """Decode one file and return its digest and what it holds; raise `BadImage` if it gives no image."""
    data = decoding.read_bytes(path)
    return decoding.digest(data), decoding.examine(data)


def prepare(
    listing: Listing,
    shares: Mapping[str, float],
    seed: int,
    threads: int,
    group_by: str = "",
    max_value: float | None = None,
) -> Prepared:
    """Read every listed file, leave out those that give no image, give the others splits, and look for leakage.

    max_value: the value that is white in images of more than 8 bits, None to take it from their values.
    """
    paths = [image.path for image in listing.images]
    checked = parallel.ordered_map(check, paths, threads, ahead=16 * threads)
    results = list(track(checked, "checking", len(paths)))
    checked_images = list(zip(listing.images, results, strict=True))
    facts = [result[1] for result in results if isinstance(result, tuple)]
    good = [replace(image, digest=result[0]) for image, result in checked_images if isinstance(result, tuple)]
    good = mark_resaved(good, [one.content for one in facts])
    depths = depth.Depths.of([one.values for one in facts])
    white, notes = choose_white(depths.deep, max_value)
    unreadable = [(str(image.path), str(r)) for image, r in checked_images if isinstance(r, decoding.BadImage)]
    bad = [*listing.bad, *unreadable]
    images = assign_splits(resolve_splits(good), shares, seed, group_by)
    notes = [*listing.notes, *split_notes(good), *notes, *several_notes(good, facts)]
    return Prepared(images, bad, find_leaks(images), replace(listing, notes=notes), depths, white, are_large(facts))


def mark_resaved(images: Sequence[ListedImage], contents: Sequence[str]) -> list[ListedImage]:
    """Return the images with their `Facts.content` in a column, if files of different bytes have the same one.

    Such files were saved anew, in another format or with other metadata.
    """
    if not several_values(Texts.of(contents), Texts.of(image.digest for image in images)).any():
        return list(images)
    marked = zip(images, contents, strict=True)
    return [replace(image, metadata={**image.metadata, PIXELS: content}) for image, content in marked]


def with_corrections(prepared: Prepared, by_hand: Mapping[str, Mapping[str, str]], folder: Path) -> Prepared:
    """Return what is prepared after corrections by hand; folder: of the prepared dataset."""
    corrected = corrections.correct(prepared.images, by_hand, folder)
    listing = prepared.listing
    listing = replace(listing, skipped=[*listing.skipped, *corrected.dropped], notes=[*listing.notes, corrected.note])
    return replace(prepared, images=corrected.images, leaks=find_leaks(corrected.images), listing=listing)


def choose_white(values: depth.Range | None, max_value: float | None) -> tuple[float, list[str]]:
    """Return the value that is white in a dataset's images of more than 8 bits, and what to say of it.

    values: the range of these images; max_value: what the user says of it, None to take it from the values.
    """
    if values is None:
        return max_value or depth.WHITE, []
    white = max_value or depth.white_of(values)
    return white, [depth.describe(values, white)]


def split_notes(images: Sequence[ListedImage]) -> list[str]:
    """Say which splits of the source are used for something else; the images are as the source lists them."""
    splits = {image.split for image in images} - {UNLABELLED}
    if splits and splits <= {"val", "test"}:
        return ["The source has no training images: codes can be extracted, but no classifier can be trained on them."]
    if splits == {"train", "val"}:
        return ["The source has no test split, so its val split is used for testing."]
    if splits == {"train"}:
        return ["The source has a train split only, so the splits are drawn from it."]
    return []


def several_notes(images: Sequence[ListedImage], facts: Sequence[decoding.Facts]) -> list[str]:
    """Say which files hold several images."""
    paths = [str(image.path) for image, one in zip(images, facts, strict=True) if one.several]
    if not paths:
        return []
    return [
        f"Of {len(paths)} files with several images (animations or pages) the first one is used: {first_names(paths)}."
    ]


def are_large(facts: Sequence[decoding.Facts]) -> bool:
    """Return whether the shorter side of most images exceeds `LARGE` pixels."""
    return bool(facts) and median(one.shorter_side for one in facts) > LARGE
