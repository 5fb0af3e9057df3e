"""Several tasks on the same images: a prepared dataset for each column of labels, with the splits in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data.checking import Prepared
from pipeline.data.listing import clean_name
from pipeline.data.manifest import RESERVED_COLUMNS, UNLABELLED, ListedImage
from pipeline.data.splits import find_leaks
from pipeline.errors import PipelineError
from pipeline.paths import MANIFEST, ORIGIN, TASK_SEPARATOR, folder_of_task, identity_of, read_origin, read_tasks


def validate_labels(labels: Sequence[str], corrections: Sequence[str]) -> None:
    """Refuse columns that cannot be tasks, and corrections, which do not say of which task they are."""
    for number, name in enumerate(labels):
        if name in labels[:number] or name in set(RESERVED_COLUMNS) - {"label"} or (number and name == "label"):
            why = "is named twice" if name in labels[:number] else "has a meaning of its own"
            raise PipelineError(f"--labels {name}: this column {why}. Name others; the column label may come first.")
        if "/" in name or TASK_SEPARATOR in name or name.startswith("."):
            raise PipelineError(f"--labels {name!r} cannot stand behind a dataset's name. Rename the column.")
    if len(labels) > 1 and corrections:
        raise PipelineError("--corrections are of one column of labels. Correct the CSV file, or name one of --labels.")


def part_by_task(prepared: Prepared, labels: Sequence[str]) -> dict[str, Prepared]:
    """Return what is prepared for each task, by the name of its column; under "" where no columns are named.

    Images have the same split in all tasks. One without a label in a column is unlabelled in that task.
    """
    if not labels:
        return {"": prepared}
    tasks = {}
    for name in labels:
        images, offered = (
            [_of_task(image, name, name == labels[0]) for image in listed]
            for listed in (prepared.images, prepared.listing.images)
        )
        listing = replace(prepared.listing, images=offered)
        tasks[name] = replace(prepared, images=images, leaks=find_leaks(images), listing=listing)
    return tasks


def _of_task(image: ListedImage, name: str, is_first: bool) -> ListedImage:
    label = image.label if is_first else clean_name(image.metadata.get(name, ""))
    multi_label = image.multi_label and is_first
    return replace(image, label=label, multi_label=multi_label, split=image.split if label else UNLABELLED)


def forget_tasks(folder: Path, source: str, labels: Sequence[str]) -> None:
    """Remove the manifests of tasks that a dataset had when it was prepared before, and has no more."""
    for name in read_tasks(folder)[1:]:
        old = folder_of_task(folder, name)
        if name not in labels[1:] and read_origin(old) == identity_of(source):
            for file in (MANIFEST, ORIGIN):
                (old / file).unlink(missing_ok=True)
