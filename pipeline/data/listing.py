"""What a source offers: its images, what it skips, and what a user should know about how it was read."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.manifest import UNLABELLED, ListedImage

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that each usual name stands for; names are compared without regard to case."""

WORD = re.compile(r"[^\W\d_]+")
"""A word of a name: letters between anything else."""

UNLABELLED_NAMES = (UNLABELLED, "unlabeled")
"""Names, in lower case, of folders and splits whose images have no label."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, or a folder with `files` of them, and the reason."""

    path: str
    reason: str
    files: int = 1


@dataclass(frozen=True)
class Listing:
    """The images of a source.

    skipped: files that are not used; notes: sentences on how the source was read; empty: classes without any file; bad:
    files that were not to be had, each with the reason.
    """

    images: Sequence[ListedImage]
    skipped: Sequence[Skipped] = ()
    notes: Sequence[str] = ()
    empty: Sequence[str] = ()
    bad: Sequence[tuple[str, str]] = ()


def join_listings(labelled: Listing, unlabelled: Listing) -> Listing:
    """Return the images of both; those without a label that are listed with one as well are skipped."""
    known = {_identity(image.path) for image in labelled.images}
    repeated = [image for image in unlabelled.images if _identity(image.path) in known]
    others = [image for image in unlabelled.images if _identity(image.path) not in known]
    skipped = [Skipped(str(image.path), "is listed with a label as well") for image in repeated]
    return Listing(
        [*labelled.images, *others],
        [*labelled.skipped, *unlabelled.skipped, *skipped],
        [*labelled.notes, *unlabelled.notes],
        labelled.empty,
        [*labelled.bad, *unlabelled.bad],
    )


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def split_of(name: str) -> str | None:
    """Return the split that a name stands for, or None if it is not the name of a split."""
    return SPLIT_NAMES.get(name.strip().lower())


def split_within(name: str) -> str | None:
    """Return the split that a word of a name stands for, as in train_images or TestSet; None for none or several."""
    words = [word.removesuffix("s").removesuffix("set").removesuffix("data") for word in WORD.findall(name.lower())]
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def clean_name(name: str) -> str:
    """Return the name of a class in NFC and without spaces around it.

    Bytes of a folder's name that are not valid UTF-8 are read as Windows-1252, if they are valid there.
    """
    if not is_text(name):
        name = os.fsencode(name).decode("cp1252", "replace")
    return unicodedata.normalize("NFC", name).strip()


def is_text(name: str) -> bool:
    """Return whether a name is free of bytes that could not be decoded."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
