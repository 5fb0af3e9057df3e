"""Folders of images: which images, classes and splits are in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.addresses import is_table
from pipeline.data import layouts
from pipeline.data.doubts import doubts_of_names, nested_notes
from pipeline.data.listing import UNLABELLED_NAMES, Listing, Skipped, clean_name, join_listings
from pipeline.data.manifest import UNLABELLED, ListedImage
from pipeline.data.tree import FolderContent, read_folder, walk
from pipeline.errors import PipelineError, unknown
from pipeline.paths import MANIFEST, ORIGIN

logger = logging.getLogger(__name__)

OWN_FILES = {MANIFEST, "bad.csv", "leakage.csv", "skipped.csv", ORIGIN}
"""Files that `prepare` writes, which may lie beside the class folders."""

LOOSE = "lies beside the class folders, so its class is unknown"


def list_files(folder: Path, show: Callable[[str], str] = str) -> list[Path]:
    """Return the files below a folder; what is skipped there is logged, by names that a person knows."""
    content = walk(folder)
    for entry in content.skipped:
        logger.warning("Skipped %r (%d files): %s", show(entry.path), entry.files, entry.reason)
    return content.files


def list_folder(root: Path, layout: str = "auto") -> Listing:
    """List the images of a folder; layout: one of `layouts.LAYOUTS`.

    All files below a class folder count as images, whatever their names, but for hidden and system files, and what this
    program wrote. A folder called unlabelled holds images without labels, unless the layout says that all folders are
    classes.
    """
    if layout not in layouts.LAYOUTS:
        raise unknown("layout", layout, layouts.LAYOUTS)
    content = read_folder(root)
    if layout != "classes" and (unlabelled := _unlabelled_folder(content)):
        content.folders.remove(unlabelled)
        note = f"The images in {unlabelled} have no label. If {unlabelled.name!r} is a class, take --layout classes."
        return join_listings(_list_labelled(root, content, layout), list_unlabelled(unlabelled, note))
    return _list_labelled(root, content, layout)


def _unlabelled_folder(content: FolderContent) -> Path | None:
    return next((folder for folder in content.folders if folder.name.lower() in UNLABELLED_NAMES), None)


def list_unlabelled(root: Path, *notes: str) -> Listing:
    """List all files below a folder, but for hidden and system files, as images without labels."""
    content = walk(root)
    images = [ListedImage(file, "", UNLABELLED) for file in content.files if not _is_own(file, root)]
    if not images:
        raise PipelineError(f"{root} holds no files." + _first_skipped(content.skipped))
    return Listing(images, content.skipped, notes)


def _is_own(file: Path, root: Path) -> bool:
    return file.parent == root and file.name in OWN_FILES


def _list_labelled(root: Path, content: FolderContent, layout: str) -> Listing:
    layout = layouts.guess_layout(root, content.folders) if layout == "auto" else layout
    loose = [Skipped(str(file), LOOSE) for file in content.files if not _is_own(file, root)]
    skipped = [*content.skipped, *loose]
    images: list[ListedImage] = []
    empty: list[str] = []
    nested: dict[str, list[str]] = {}
    for folder, named_folder, split in layouts.class_folders(content.folders, layout):
        label, inside = _class_name(named_folder), walk(folder)
        images += [ListedImage(file, label, split) for file in inside.files]
        skipped += inside.skipped
        empty += [] if inside.files else [label]
        nested.setdefault(label, []).extend(_folders_within(folder, inside.files))
    skipped += layouts.loose_below(content.folders, layout)
    if not images:
        raise PipelineError(
            f"{root} holds no images in class folders. It must look like {root.name}/<class>/<image> or "
            f"{root.name}/train/<class>/<image>.{_table_hint(content.files)} If its images have no labels, take "
            f"--unlabelled {root}." + _first_skipped(skipped)
        )
    labels = {image.label for image in images}
    notes = [*layouts.joined_notes(root, content.folders, layout), *doubts_of_names(images), *nested_notes(nested)]
    return Listing(images, skipped, notes, sorted(set(empty) - labels))


def _table_hint(files: Sequence[Path]) -> str:
    """Say that a CSV file lies beside the images, if that is so."""
    tables = [file for file in files if is_table(file.name)]
    return f" If {tables[0]} lists them, prepare that file." if tables else ""


def _folders_within(folder: Path, files: Sequence[Path]) -> list[str]:
    """Return the names of the folders right within a folder that hold some of its files."""
    return sorted({file.relative_to(folder).parts[0] for file in files if file.parent != folder})


def _first_skipped(skipped: Sequence[Skipped]) -> str:
    return f" Skipped: {skipped[0].path} ({skipped[0].reason})." if skipped else ""


def _class_name(folder: Path) -> str:
    if not (name := clean_name(folder.name)):
        raise PipelineError(f"The folder {str(folder)!r} has a name of spaces only. Give it the name of its class.")
    return name
