"""Make a dataset ready: check every file, settle the splits, write data/<dataset>/manifest.csv."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pipeline import command_line, errors, files, hints, params
from pipeline.config import NEAR_DUPLICATES, Prepare
from pipeline.data import corrections, downloads, folders, sources
from pipeline.data.listing import Listing, Skipped, join_listings
from pipeline.data.manifest import PARTS, PIXELS, SPLITS, UNLABELLED, ListedImage, write_manifest
from pipeline.data.origin import validate_origin, write_origin
from pipeline.data.splits import assign_splits, find_leaks, resolve_splits
from pipeline.data.tables import list_csv, list_unlabelled_csv
from pipeline.errors import counted
from pipeline.images import decoding, depth, parallel
from pipeline.paths import TABLE_SUFFIXES, expand_home, identity_of
from pipeline.progress import track

EXAMPLE = "python -m pipeline.prepare --dataset ~/photos/flowers --test 0.2"
SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {"digits": sources.write_digits, **downloads.SOURCES}


RECORDED = ("test", "val", "seed", "group_by", "layout", "range")
"""The settings on which a prepared dataset depends, besides its sources."""

LARGE = 100
"""Shorter side in pixels beyond which the network for photographs is named."""

FOR_PHOTOS = {"backbone": "efficientnet_lite0", "layer": "avgpool"}

SHOWN = 3
"""How many names the summary shows of what was skipped or lost."""


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


def list_source(source: str, folder: Path, layout: str = "auto") -> Listing:
    """List the images of a named dataset, which is written or downloaded to `folder`, of a folder, or of a CSV file.

    layout: how images lie in a folder, one of `folders.LAYOUTS`.
    """
    path = expand_home(source)
    if source not in SOURCES and path.is_dir():
        return folders.list_folder(path, layout)
    if layout != "auto":
        raise errors.PipelineError(f"--layout {layout} is for folders of images, and {source} is none. Leave it out.")
    if source in SOURCES:
        return Listing(SOURCES[source](folder))
    if path.suffix.lower() in TABLE_SUFFIXES and path.exists():
        return list_csv(path)
    if "/" in source or path.suffix or path.exists():
        raise _no_images_at(source)
    raise errors.unknown("dataset", source, SOURCES, where="neither a folder nor a CSV")


def list_unlabelled(source: str) -> Listing:
    """List the images of a folder or a CSV file as images without labels."""
    path = expand_home(source)
    if path.is_dir():
        return folders.list_unlabelled(path)
    if path.suffix.lower() in TABLE_SUFFIXES and path.exists():
        return list_unlabelled_csv(path)
    raise _no_images_at(source)


def _no_images_at(source: str) -> errors.PipelineError:
    if expand_home(source).exists():
        return errors.PipelineError(f"{source} is neither a folder nor a CSV file ({' or '.join(TABLE_SUFFIXES)}).")
    return errors.PipelineError(f"No folder or CSV at {source}. Check the path.")


def list_sources(settings: Prepare, folder: Path) -> Listing:
    """List the images of both sources that the settings name, with labels and without, or of one of them."""
    if not settings.unlabelled:
        return list_source(settings.dataset, folder, settings.layout)
    unlabelled = list_unlabelled(settings.unlabelled)
    if not settings.dataset:
        return unlabelled
    return join_listings(list_source(settings.dataset, folder, settings.layout), unlabelled)


def check(path: Path) -> tuple[str, decoding.Facts]:
    """Decode one file and return its digest and what it holds; raise `BadImage` if it gives no image."""
    data = decoding.read_bytes(path)
    return decoding.digest(data), decoding.examine(data)


def prepare(
    listing: Listing,
    shares: dict[str, float],
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
    bad = [(str(image.path), str(r)) for image, r in checked_images if isinstance(r, decoding.BadImage)]
    images = assign_splits(resolve_splits(good), shares, seed, group_by)
    notes = [*listing.notes, *split_notes(good), *notes, *several_notes(good, facts)]
    return Prepared(images, bad, find_leaks(images), replace(listing, notes=notes), depths, white, are_large(facts))


def mark_resaved(images: Sequence[ListedImage], contents: Sequence[str]) -> list[ListedImage]:
    """Return the images with their `Facts.content` in a column, if files of different bytes have the same one.

    Such files were saved anew, in another format or with other metadata.
    """
    digests: dict[str, set[str]] = {}
    for image, content in zip(images, contents, strict=True):
        digests.setdefault(content, set()).add(image.digest)
    if all(len(of_content) == 1 for of_content in digests.values()):
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
    return [f"Of {len(paths)} files with several images (animations or pages) the first one is used: {_shown(paths)}."]


def validate_column(listing: Listing, name: str, source: str) -> None:
    """Refuse to group by what is no column that the source has, with a value for each image that has a label."""
    if any(NEAR_DUPLICATES in image.metadata for image in listing.images):
        raise errors.PipelineError(
            f"{source} has a column {NEAR_DUPLICATES!r}, which --group-by takes for a way to compare codes. Rename it."
        )
    if name == NEAR_DUPLICATES:
        raise errors.PipelineError(
            "Near-duplicates are found by codes, and there are none before a dataset is prepared. Prepare it without "
            "--group-by: pipeline.evaluate says how many test images have near-duplicates among the training images, "
            f"and pipeline.classify --group-by {NEAR_DUPLICATES} keeps them in one fold."
        )
    labelled = [image for image in listing.images if image.split != UNLABELLED]
    for image in labelled if name else ():
        if name not in image.metadata:
            raise errors.unknown("column", name, image.metadata, where=f"--group-by in {source}")
        if not image.metadata[name].strip():
            raise errors.PipelineError(
                f"{image.path} has no value in the column {name!r}. Fill it in: its group is unknown."
            )


def validate_groups(prepared: Prepared, name: str, source: str) -> None:
    """Refuse a source whose splits part a group."""
    splits: dict[str, set[str | None]] = {}
    labelled = [image for image in prepared.images if image.split != UNLABELLED]
    for image in labelled if name else ():
        splits.setdefault(image.metadata[name], set()).add(image.split)
    if parted := sorted(group for group, parts in splits.items() if len(parts) > 1):
        raise errors.PipelineError(
            f"The splits of {source} part {len(parted)} groups of {name!r}, the first is {parted[0]!r}. Correct the "
            "column split, or take it out."
        )


def validate_usable(prepared: Prepared, source: str) -> None:
    """Refuse a dataset without any image, and labels from which no classifier could learn.

    Images without labels, and test images alone, are good for their codes.
    """
    if not prepared.images:
        raise errors.PipelineError(
            f"None of the {len(prepared.bad)} files of {source} can be read as an image: {_first(prepared.bad)}."
        )
    classes = {split: {name for i in prepared.images if i.split == split for name in i.classes} for split in SPLITS}
    names = set().union(*classes.values())
    if all(image.split == UNLABELLED for image in prepared.images):
        return
    if len(names) < 2:
        classes_text = f"one class only, {names.pop()!r}" if names else "no classes"
        raise errors.PipelineError(
            f"{source} has {classes_text}{_lost_hint(prepared)}. A classifier needs two or more. If the images have "
            "no labels, prepare them as such.",
            fix=[errors.Fix("prepare", {"dataset": "", "unlabelled": source})],
        )
    for split in ("test", "val") if classes["train"] else ():
        if untrained := sorted(classes[split] - classes["train"]):
            raise errors.PipelineError(
                f"The labels of {source} do not match: class {untrained[0]!r} has images in {split} but none in train. "
                "Add some there, or take it out."
            )


def write(prepared: Prepared, folder: Path) -> None:
    """Write bad.csv, skipped.csv and leakage.csv, and last of all the manifest, without which nothing is prepared."""
    files.write_csv(folder / "bad.csv", ("path", "reason"), prepared.bad)
    skipped = [(entry.path, entry.reason, entry.files) for entry in prepared.listing.skipped]
    files.write_csv(folder / "skipped.csv", ("path", "reason", "files"), skipped)
    leaks = [(image.digest, image.split, image.label, image.path) for image in prepared.leaks]
    files.write_csv(folder / "leakage.csv", ("digest", "split", "label", "path"), leaks)
    write_manifest(folder, prepared.images)


def are_large(facts: Sequence[decoding.Facts]) -> bool:
    """Return whether the shorter side of most images exceeds `LARGE` pixels."""
    return bool(facts) and median(one.shorter_side for one in facts) > LARGE


def summary(prepared: Prepared, folder: Path) -> str:
    """Say what is in the dataset, what was found and skipped and why, and what to do next."""
    counts = Counter(image.split for image in prepared.images)
    splits = ", ".join(f"{counts[split]:,} {split}" for split in PARTS if counts[split])
    classes = {name for image in prepared.images for name in image.classes}
    lines = [
        f"{folder.name}: {counted(len(prepared.images), 'image')}, {counted(len(classes), 'class')} ({splits})",
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
        rows.append((len(lost), f"classes lost, since none of their files can be used: {_shown(lost)}"))
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


def _lost_hint(prepared: Prepared) -> str:
    lost = lost_classes(prepared)
    first = f" ({_first(prepared.bad)})" if prepared.bad else ""
    return f", and no usable image of {_shown(lost)}{first}" if lost else ""


def _by_reason(skipped: Sequence[Skipped]) -> list[tuple[int, str]]:
    """Return how many files were skipped for each reason, with the first names."""
    reasons: dict[str, list[Skipped]] = {}
    for entry in skipped:
        reasons.setdefault(_without_details(entry.reason), []).append(entry)
    return [
        (sum(entry.files for entry in entries), f"skipped, {reason}: {_shown([entry.path for entry in entries])}")
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
        rows.append((len(copies), f"of these are copies of others: {_shown([str(image.path) for image in copies])}"))
    if resaved:
        rows.append((len(resaved), "of the copies were saved anew: the same pixels in other bytes"))
    if conflicts:
        other = first[conflicts[0].content]
        pair = f"{str(conflicts[0].path)!r} ({conflicts[0].label}) is {str(other.path)!r} ({other.label})"
        rows.append((len(conflicts), f"of the copies have another label: {pair}"))
    return rows


def _shown(names: Sequence[str]) -> str:
    more = f", … ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _first(bad: Sequence[tuple[str, str]]) -> str:
    path, reason = bad[0]
    return f"{path!r}, {reason}" + (", …" if len(bad) > 1 else "")


def run(settings: Prepare) -> None:
    """Prepare what the settings name."""
    shares = {"test": settings.test, "val": settings.val}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise errors.PipelineError(
            f"--test {settings.test} and --val {settings.val} must be shares ≥ 0 that leave something for training."
        )
    source = settings.dataset or settings.unlabelled
    folder = settings.out or Path("data", params.dataset_name(source))
    validate_origin(folder, source, settings.overwrite)
    listed = list_sources(settings, folder)
    validate_column(listed, settings.group_by, source)
    threads = settings.threads or parallel.default_threads()
    by_hand = [corrections.read_corrections(expand_home(name)) for name in settings.corrections]
    prepared = prepare(listed, shares, settings.seed, threads, settings.group_by, settings.range)
    for one in by_hand:
        prepared = with_corrections(prepared, one, folder)
    if prepared.bad and settings.on_bad == "error":
        raise errors.PipelineError(
            f"{len(prepared.bad)} bad files: {_first(prepared.bad)}. Fix them, or run with --on-bad skip."
        )
    validate_usable(prepared, source)
    validate_groups(prepared, settings.group_by, source)
    sources = {name: identity_of(getattr(settings, name)) for name in ("dataset", "unlabelled")}
    recorded = {name: getattr(settings, name) for name in RECORDED}
    recorded["corrections"] = [identity_of(name) for name in settings.corrections]
    write_origin(folder, source, prepared.max_value, prepared.depths, sources | recorded)
    write(prepared, folder)
    print(summary(prepared, folder))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("prepare", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
