"""What a person reads of a prepared dataset: what was found, what was skipped and why, and what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline import errors, hints
from pipeline.data.checking import Prepared
from pipeline.data.listing import Skipped
from pipeline.data.manifest import PARTS, UNLABELLED, ListedImage
from pipeline.errors import counted, first_names
from pipeline.images import decoding

FOR_PHOTOS = {"backbone": "efficientnet_lite0", "layer": "avgpool"}


def summary(prepared: Prepared, folder: Path, briefly: bool = False) -> str:
    """Say what is in the dataset, and unless briefly, what was found and skipped and why, and what to do next."""
    counts = Counter(image.split for image in prepared.images)
    splits = ", ".join(f"{counts[split]:,} {split}" for split in PARTS if counts[split])
    classes = {name for image in prepared.images for name in image.classes}
    first = f"{folder.name}: {counted(len(prepared.images), 'image')}, {counted(len(classes), 'class')} ({splits})"
    if briefly:
        return first
    lines = [
        first,
        *(f"{count:>9}  {text}" for count, text in table(prepared, folder)),
        *prepared.listing.notes,
        *next_steps(prepared, folder),
    ]
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def next_steps(prepared: Prepared, folder: Path) -> list[str]:
    """Say which commands go on with a prepared dataset: first the one that extracts its codes.

    What codes are good for is said where there are no labels.
    """
    dataset = folder.name if folder.parent == Path("data") else str(folder)
    network = FOR_PHOTOS if prepared.large else {}
    extract, similar = (
        hints.complete(errors.Fix(name, {"dataset": dataset, **network}), {}) for name in ("extract", "similar")
    )
    steps = [f"Next: {extract}"]
    if all(image.split == UNLABELLED for image in prepared.images):
        report = errors.Fix("report", {"dataset": dataset})
        steps += [f"Then: {report}", f"  or: {similar} {shlex.quote(str(prepared.images[0].path))}"]
    return steps


def table(prepared: Prepared, folder: Path) -> list[tuple[int, str]]:
    """Return the counts of files and what each count is of: found, used, skipped by reason, lost and copied."""
    skipped = prepared.listing.skipped
    total = len(prepared.images) + len(prepared.bad) + sum(entry.files for entry in skipped)
    rows = [(total, "files found"), (len(prepared.images), "images used")]
    if prepared.bad:
        rows.append((len(prepared.bad), f"bad files skipped, see {folder / 'bad.csv'}:"))
        rows += _by_reason([Skipped(path, reason) for path, reason in prepared.bad])
    rows += _by_reason(skipped)
    if lost := lost_classes(prepared):
        rows.append((len(lost), f"classes lost, since none of their files can be used: {first_names(lost)}"))
    rows += _copies(prepared.images)
    if prepared.leaks:
        rows.append(
            (
                len({image.content for image in prepared.leaks}),
                f"images in several splits, see {folder / 'leakage.csv'}",
            )
        )
    return rows


def lost_classes(prepared: Prepared) -> list[str]:
    """Return the classes of the source that no usable image has, sorted."""
    offered = {name for image in prepared.listing.images for name in image.classes} | set(prepared.listing.empty)
    return sorted(offered - {name for image in prepared.images for name in image.classes})


def _by_reason(skipped: Sequence[Skipped]) -> list[tuple[int, str]]:
    """Return how many files were skipped for each reason, with the first names."""
    reasons: dict[str, list[Skipped]] = {}
    for entry in skipped:
        reasons.setdefault(_without_details(entry.reason), []).append(entry)
    return [
        (sum(entry.files for entry in entries), f"skipped, {reason}: {first_names([entry.path for entry in entries])}")
        for reason, entries in reasons.items()
    ]


def _without_details(reason: str) -> str:
    """Return a reason without what a decoder says, which differs from file to file."""
    return decoding.DAMAGED if reason.startswith(decoding.DAMAGED) else reason


def _copies(images: Sequence[ListedImage]) -> list[tuple[int, str]]:
    """Return how many images are copies of others, and how many of these were saved anew, or have another label."""
    first: dict[str, ListedImage] = {}
    copies = [image for image in images if first.setdefault(image.content, image) is not image]
    resaved = [image for image in copies if image.digest != first[image.content].digest]
    conflicts = [image for image in copies if image.label and first[image.content].label not in ("", image.label)]
    rows = []
    if copies:
        rows.append(
            (len(copies), f"of these are copies of others: {first_names([str(image.path) for image in copies])}")
        )
    if resaved:
        rows.append((len(resaved), "of the copies were saved anew: the same pixels in other bytes"))
    if conflicts:
        other = first[conflicts[0].content]
        pair = f"{str(conflicts[0].path)!r} ({conflicts[0].label}) is {str(other.path)!r} ({other.label})"
        rows.append((len(conflicts), f"of the copies have another label: {pair}"))
    return rows


def first_bad(bad: Sequence[tuple[str, str]]) -> str:
    """Name the first bad file with its reason, and say whether there are more."""
    path, reason = bad[0]
    return f"{path!r}, {reason}" + (", …" if len(bad) > 1 else "")
