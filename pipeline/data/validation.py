"""What a dataset must have to be of use: columns to group by, groups that no split parts, classes to learn."""

from __future__ import annotations

from pipeline.config import NEAR_DUPLICATES
from pipeline.data.checking import Prepared
from pipeline.data.findings import first_bad, lost_classes
from pipeline.data.listing import Listing
from pipeline.data.manifest import SPLITS, UNLABELLED
from pipeline.errors import Fix, PipelineError, first_names, unknown


def validate_column(listing: Listing, name: str, source: str) -> None:
    """Refuse to group by what is no column that the source has, with a value for each image that has a label."""
    if any(NEAR_DUPLICATES in image.metadata for image in listing.images):
        raise PipelineError(
            f"{source} has a column {NEAR_DUPLICATES!r}, which --group-by takes for a way to compare codes. Rename it."
        )
    if name == NEAR_DUPLICATES:
        raise PipelineError(
            "Near-duplicates are found by codes, and there are none before a dataset is prepared. Prepare it without "
            "--group-by: pipeline.evaluate says how many test images have near-duplicates among the training images, "
            f"and pipeline.classify --group-by {NEAR_DUPLICATES} keeps them in one fold."
        )
    labelled = [image for image in listing.images if image.split != UNLABELLED]
    for image in labelled if name else ():
        if name not in image.metadata:
            raise unknown("column", name, image.metadata, where=f"--group-by in {source}")
        if not image.metadata[name].strip():
            raise PipelineError(f"{image.path} has no value in the column {name!r}. Fill it in: its group is unknown.")


def validate_groups(prepared: Prepared, name: str, source: str) -> None:
    """Refuse a source whose splits part a group."""
    splits: dict[str, set[str | None]] = {}
    labelled = [image for image in prepared.images if image.split != UNLABELLED]
    for image in labelled if name else ():
        splits.setdefault(image.metadata[name], set()).add(image.split)
    if parted := sorted(group for group, parts in splits.items() if len(parts) > 1):
        raise PipelineError(
            f"The splits of {source} part {len(parted)} groups of {name!r}, the first is {parted[0]!r}. Correct the "
            "column split, or take it out."
        )


def validate_usable(prepared: Prepared, source: str, column: str = "") -> None:
    """Refuse a dataset without any image, and labels from which no classifier could learn.

    Images without labels, and test images alone, are good for their codes. column: of the labels, where others were
    named first, by which the splits are drawn.
    """
    drawn = column and any(image.split is None for image in prepared.listing.images)
    drawn_by = (
        f" Splits are drawn by the first of --labels: put {column} first, or take another --seed." if drawn else ""
    )
    if not prepared.images:
        raise PipelineError(
            f"None of the {len(prepared.bad)} files of {source} can be read as an image: {first_bad(prepared.bad)}."
        )
    classes = {split: {name for i in prepared.images if i.split == split for name in i.classes} for split in SPLITS}
    names = set().union(*classes.values())
    if all(image.split == UNLABELLED for image in prepared.images):
        return
    if len(names) < 2:
        classes_text = f"one class only, {names.pop()!r}" if names else "no classes"
        raise PipelineError(
            f"{source} has {classes_text}{_lost_hint(prepared)}. A classifier needs two or more. If the images have "
            "no labels, prepare them as such.",
            fix=[Fix("prepare", {"dataset": "", "unlabelled": source})],
        )
    for split in ("test", "val") if classes["train"] else ():
        if untrained := sorted(classes[split] - classes["train"]):
            raise PipelineError(
                f"The labels of {source} do not match: class {untrained[0]!r} has images in {split} but none in train. "
                f"Add some there, or take it out.{drawn_by}"
            )


def _lost_hint(prepared: Prepared) -> str:
    lost = lost_classes(prepared)
    first = f" ({first_bad(prepared.bad)})" if prepared.bad else ""
    return f", and no usable image of {first_names(lost)}{first}" if lost else ""
