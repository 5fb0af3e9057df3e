"""What in a source may be a mistake, though it can be read: sentences for whoever knows what was meant."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pipeline.data.listing import split_of
from pipeline.data.manifest import ListedImage

MISSING = {"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "undefined", "unknown"}
"""What programs write, in lower case, where a value is missing."""

SEPARATORS = (";", "|", ",", "/", "+", " ")
"""What may stand between the labels of an image."""

CERTAIN_SEPARATORS = (";", "|")
"""Those that hardly ever belong to a name; in a column of several labels, neither does a comma."""

FLAGS = {"true", "false", "0", "1", "yes", "no"}
SPLIT_FLAGS = re.compile(r"(is_?)?(train|val|valid|validation|test)", re.IGNORECASE)
"""A column whose name matches it, and which holds `FLAGS` alone, tells the split of an image in its own way."""

MASK = re.compile(r"[ _-](masks?|seg|segmentation|gt)([ _-]?\d+)?$", re.IGNORECASE)
"""How the names of masks end, without the suffix."""

SHOWN = 3
"""How many names a sentence shows."""


def doubts_of_names(images: Sequence[ListedImage]) -> list[str]:
    """Return a sentence for each kind of mistake that the names of classes and files look like."""
    return [*_alike_notes(_classes_of(images)), *_mask_notes(images)]


def doubts_of_cells(images: Sequence[ListedImage]) -> list[str]:
    """Return a sentence for each kind of mistake that the cells of a CSV file look like."""
    classes, multi_label = _classes_of(images), any(image.multi_label for image in images)
    return [*_missing_notes(classes), *_separator_notes(classes, multi_label), *_split_column_notes(images)]


def _classes_of(images: Iterable[ListedImage]) -> list[str]:
    return sorted({name for image in images for name in image.classes})


def _alike_notes(classes: Iterable[str]) -> list[str]:
    """Warn of class names that look alike."""
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name in classes:
        same[_likeness(name)].append(name)
    alike = [names for names in same.values() if len(names) > 1]
    notes = [
        f"The classes {', '.join(map(repr, names))} {_how_alike(names)}, and count as different classes: rename "
        "them if they are the same."
        for names in alike[:SHOWN]
    ]
    return [*notes, f"So do {len(alike) - SHOWN} more groups of classes."] if len(alike) > SHOWN else notes


def _likeness(name: str) -> str:
    """Return what names that look alike share: numbers their value, others their letters in lower case."""
    if re.fullmatch(r"\d+(\.\d*)?", name):
        return str(float(name))
    text = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()


def _how_alike(names: Sequence[str]) -> str:
    if len({name.lower() for name in names}) == 1:
        return "differ only by case"
    return "are the same number" if names[0][:1].isdigit() else "look alike"


def _missing_notes(classes: Iterable[str]) -> list[str]:
    return [
        f"{name!r} is read as a class. If it stands for a missing label, leave the cell empty."
        for name in classes
        if name.lower() in MISSING
    ]


def _separator_notes(classes: Sequence[str], multi_label: bool) -> list[str]:
    """Say which class names look like several labels, since they hold a separator between them."""
    for separator in SEPARATORS:
        for name in classes:
            parts = {part.strip() for part in name.split(separator)}
            certain = separator in CERTAIN_SEPARATORS or (multi_label and separator == ",")
            if len(parts) > 1 and (certain or parts <= set(classes)):
                fix = "write a semicolon" if multi_label else "name the column 'labels', and write semicolons"
                return [f"{name!r} is read as one class. If {separator!r} separates several labels, {fix} instead."]
    return []


def _split_column_notes(images: Sequence[ListedImage]) -> list[str]:
    """Say which columns seem to tell the splits, where no column is called split."""
    if all(image.split for image in images):
        return []
    return [
        f"The column {name!r} looks like one of splits, but the splits are drawn. If it should decide, call it "
        "'split', with the values train, val and test."
        for name in images[0].metadata
        if _tells_splits(name, {image.metadata.get(name, "").strip().lower() for image in images} - {""})
    ]


def _tells_splits(name: str, values: set[str]) -> bool:
    flags = SPLIT_FLAGS.fullmatch(name) is not None and values <= FLAGS
    return bool(values) and (flags or all(split_of(value) for value in values))


def _mask_notes(images: Sequence[ListedImage]) -> list[str]:
    masks = [image.path for image in images if MASK.search(image.path.stem)]
    if not masks or len(masks) == len(images):
        return []
    return [
        f"{len(masks)} files have names of masks, the first is {str(masks[0])!r}, and count as images of their "
        "classes. If they are masks, move them away."
    ]


def nested_notes(folders: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which class folders hold folders, whose images count to the outer class.

    folders: the names of those within each class folder.
    """
    outer = next((name for name, inner in folders.items() if inner), None)
    if outer is None:
        return []
    inner = ", ".join(map(repr, folders[outer][:SHOWN])) + (", …" if len(folders[outer]) > SHOWN else "")
    return [
        f"Images in folders within class folders count to the outer class: {outer!r} holds {inner}. If those are the "
        "classes, move them up, or list the images in a CSV file."
    ]
