"""Corrections that a person makes in a CSV file of images: another label, another split, or none at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import errors, hints
from pipeline.data.csv_rows import Row, read_table
from pipeline.data.listing import Skipped, clean_name
from pipeline.data.manifest import SPLITS, UNLABELLED, ListedImage, stored_path
from pipeline.data.origin import prepare_again
from pipeline.paths import read_tasks

ACTIONS = ("relabel", "drop", "move")
"""What the column action may say: take the label, or the split, in the column `to`, or leave the image out."""

COLUMNS = ("action", "to")
"""The columns that are read, besides the path; lines without an action change nothing."""


@dataclass(frozen=True)
class Corrected:
    """The images after corrections, those that were dropped, and a sentence on what was done."""

    images: list[ListedImage]
    dropped: list[Skipped]
    note: str


def validate_overwritable(file: Path) -> None:
    """Refuse to write over a file that a person has filled in, in whatever way a spreadsheet saved it."""
    if file.exists() and read_corrections(file):
        raise errors.PipelineError(
            f"{file} has been filled in. Use it with pipeline.prepare --corrections, or write another with --out."
        )


def next_step(folder: Path, file: Path, first: str) -> str:
    """Say how to prepare a dataset as before, with the corrections in a file after earlier ones.

    first: what to write into the file. With several columns of labels, the source is what has to be corrected.
    """
    (again,) = prepare_again(folder)
    if len(read_tasks(folder)) > 1:
        return f"Correct them in the CSV file of the dataset, then: {hints.complete(again, {})}"
    earlier = again.settings.get("corrections")
    corrections = [*(earlier if isinstance(earlier, list) else ()), str(file)]
    command = hints.complete(errors.Fix("prepare", {**again.settings, "corrections": corrections}), {})
    return f"{first}, then: {command}"


def read_corrections(file: Path) -> dict[str, dict[str, str]]:
    """Return {path: {action: its target}} of a CSV file with the columns path, action and to."""
    if not file.exists():
        raise errors.PipelineError(f"There are no corrections at {file}.{errors.beside(file)} Name the CSV file.")
    rows, _ = read_table(file, labelled=False)
    for name in COLUMNS:
        if name not in rows[0].cells:
            raise errors.unknown("column", name, rows[0].cells, where=str(file))
    corrections: dict[str, dict[str, str]] = {}
    for row in rows:
        if action := row.cells["action"].strip().lower():
            _add(corrections.setdefault(row.cells["path"], {}), action, row, f"{file}, line {row.line}")
    return corrections


def _add(actions: dict[str, str], action: str, row: Row, where: str) -> None:
    """Add the action of a row to those of its image; refuse what cannot be done, or contradicts an earlier row."""
    target = "" if action == "drop" else clean_name(row.cells["to"])
    if action not in ACTIONS:
        raise errors.unknown("action", action, ACTIONS, where=where)
    if action == "move" and target not in SPLITS:
        raise errors.unknown("split", target, SPLITS, where=where)
    if actions.setdefault(action, target) != target or ("drop" in actions and len(actions) > 1):
        raise errors.PipelineError(
            f"{where}: {row.cells['path']!r} has another correction above. Take one of them out."
        )


def correct(images: Sequence[ListedImage], corrections: Mapping[str, Mapping[str, str]], folder: Path) -> Corrected:
    """Apply corrections to images whose splits are settled, so that all others stay in theirs.

    An image without a label that gets one becomes a training image. folder: of the prepared dataset, where the paths in
    the corrections start, as in its manifest.
    """
    by_path = {stored_path(image.path, folder): image for image in images}
    classes = sorted({name for image in images for name in image.classes})
    for path, actions in corrections.items():
        _validate(path, actions, by_path, classes)
    dropped = [Skipped(path, "dropped by the corrections") for path in by_path if "drop" in corrections.get(path, {})]
    kept = [
        _corrected(image, corrections.get(path, {}))
        for path, image in by_path.items()
        if "drop" not in corrections.get(path, {})
    ]
    counts = Counter(action for actions in corrections.values() for action in actions)
    done = ", ".join(f"{counts[action]} {word}" for action, word in WORDS.items())
    return Corrected(kept, dropped, f"Corrected by hand: {done}.")


WORDS = {"relabel": "relabelled", "drop": "dropped", "move": "moved to another split"}


def _validate(path: str, actions: Mapping[str, str], images: Mapping[str, ListedImage], classes: Sequence[str]) -> None:
    """Refuse corrections of images, or with classes, that the dataset does not have; one without any gets its first."""
    if path not in images:
        raise errors.PipelineError(
            f"The corrections name {path!r}, which is no image of the dataset. Correct the path."
        )
    if images[path].multi_label and "relabel" in actions:
        raise errors.PipelineError(f"{path!r} has several labels. Correct them in the source.")
    if "relabel" in actions and not (actions["relabel"] in classes or (actions["relabel"] and not classes)):
        raise errors.unknown("class", actions["relabel"], classes, where=f"the correction of {path!r}")


def _corrected(image: ListedImage, actions: Mapping[str, str]) -> ListedImage:
    label = actions.get("relabel", image.label)
    split = "train" if label and image.split == UNLABELLED else image.split
    return replace(image, label=label, split=actions.get("move", split))
