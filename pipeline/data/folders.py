"""Folders of images: which layout a folder has, and which images, classes and splits are in it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.doubts import doubts_of_names, nested_notes
from pipeline.data.listing import UNLABELLED_NAMES, Listing, Skipped, clean_name, join_listings, split_of
from pipeline.data.manifest import SPLITS, UNLABELLED, ListedImage
from pipeline.errors import PipelineError, unknown
from pipeline.paths import MANIFEST, ORIGIN

logger = logging.getLogger(__name__)

SYSTEM_NAMES = {
    "__macosx",
    "@eadir",
    "@__thumb",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "icon\r",
}
"""Names, in lower case, of the files and folders that operating systems and network disks add; they hold no images."""

OWN_FILES = {MANIFEST, "bad.csv", "leakage.csv", "skipped.csv", ORIGIN}
"""Files that `prepare` writes, which may lie beside the class folders."""

HIDDEN = "hidden or system file"
LOOSE = "lies beside the class folders, so its class is unknown"
LOOSE_BELOW = {
    "splits": "lies in no class folder, so its class is unknown",
    "class-splits": "lies in no split folder, so its split is unknown",
}
REPEATED = "a link to a folder that is read already"

LAYOUTS = {
    "auto": "as the names of the folders suggest; where they can be read in two ways, you are asked",
    "classes": "<class>/<image>",
    "splits": "<split>/<class>/<image>",
    "class-splits": "<class>/<split>/<image>",
}
"""How images may lie in a folder, by the values of --layout."""


@dataclass(frozen=True)
class FolderContent:
    """What lies in one folder, sorted by name; skipped: hidden and system files, and what cannot be read."""

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def read_folder(folder: Path) -> FolderContent:
    """Read one folder."""
    content = FolderContent()
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        content.skipped.append(Skipped(str(folder), f"unreadable folder: {error.strerror}", 0))
        return content
    for path in paths:
        if path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES:
            content.skipped.extend(_skip_system(path))
        elif _holds(path.is_dir):
            content.folders.append(path)
        elif _holds(path.exists) and not _holds(path.is_file):
            content.skipped.append(Skipped(str(path), "no regular file"))
        else:
            content.files.append(path)  # a broken link, too: reading it fails with the system's reason
    return content


def _skip_system(path: Path) -> list[Skipped]:
    if path.is_symlink() or not _holds(path.is_dir):
        return [Skipped(str(path), HIDDEN)]
    count = sum(1 for file in path.rglob("*") if not _holds(file.is_dir))
    return [Skipped(str(path), HIDDEN, count)] if count else []


def _holds(test: Callable[[], bool]) -> bool:
    """Return the result of a test of a path, False if the path may not be looked at."""
    try:
        return test()
    except OSError:
        return False


def walk(folder: Path) -> FolderContent:
    """Read all files below a folder, at any depth.

    Links to folders are followed, except those to a folder above, or to one that is read already.
    """
    content = FolderContent()
    seen = {_identity(parent) for path in (folder.absolute(), folder.resolve()) for parent in path.parents}
    pending, links = deque([folder]), deque[Path]()
    while pending or links:
        current = pending.popleft() if pending else links.popleft()
        if (identity := _identity(current)) in seen:
            content.skipped.append(Skipped(str(current), REPEATED, 0))
            continue
        seen.add(identity)
        inside = read_folder(current)
        content.files.extend(inside.files)
        content.skipped.extend(inside.skipped)
        for path in inside.folders:
            (links if path.is_symlink() else pending).append(path)
    content.files.sort()
    return content


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def list_paths(names: Iterable[str], lines: Iterable[str]) -> Iterator[Path]:
    """Yield each file, the files below each folder, and for the name `-` the paths in `lines`.

    What is skipped in folders is logged.
    """
    for name in names:
        if name == "-":
            yield from (Path(line.rstrip("\r\n")) for line in lines if line.strip())
        elif Path(name).is_dir():
            content = walk(Path(name))
            for entry in content.skipped:
                logger.warning("Skipped %r (%d files): %s", entry.path, entry.files, entry.reason)
            yield from content.files
        else:
            yield Path(name)


def list_folder(root: Path, layout: str = "auto") -> Listing:
    """List the images of a folder; layout: one of `LAYOUTS`.

    All files below a class folder count as images, whatever their names, but for hidden and system files. A folder
    called unlabelled holds images without labels, unless the layout says that all folders are classes.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
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
    layout = guess_layout(root, content.folders) if layout == "auto" else layout
    loose = [Skipped(str(file), LOOSE) for file in content.files if not _is_own(file, root)]
    skipped = [*content.skipped, *loose]
    images: list[ListedImage] = []
    empty: list[str] = []
    nested: dict[str, list[str]] = {}
    for folder, named_folder, split in _class_folders(content.folders, layout):
        label, inside = _class_name(named_folder), walk(folder)
        images += [ListedImage(file, label, split) for file in inside.files]
        skipped += inside.skipped
        empty += [] if inside.files else [label]
        nested.setdefault(label, []).extend(_folders_within(folder, inside.files))
    skipped += _loose_below(content.folders, layout)
    if not images:
        raise PipelineError(
            f"{root} holds no images in class folders. It must look like {root.name}/<class>/<image> or "
            f"{root.name}/train/<class>/<image>. If its images have no labels, take --unlabelled {root}."
            + _first_skipped(skipped)
        )
    labels = {image.label for image in images}
    notes = [*_name_notes(root, content.folders, layout), *doubts_of_names(images), *nested_notes(nested)]
    return Listing(images, skipped, notes, sorted(set(empty) - labels))


def _folders_within(folder: Path, files: Sequence[Path]) -> list[str]:
    """Return the names of the folders right within a folder that hold some of its files."""
    return sorted({file.relative_to(folder).parts[0] for file in files if file.parent != folder})


def _first_skipped(skipped: Sequence[Skipped]) -> str:
    return f" Skipped: {skipped[0].path} ({skipped[0].reason})." if skipped else ""


def _class_folders(folders: Sequence[Path], layout: str) -> Iterator[tuple[Path, Path, str | None]]:
    """Yield each folder whose files have one class and split, the folder that names the class, and the split."""
    for folder in folders:
        if layout == "classes":
            yield folder, folder, None
        elif layout == "splits":
            split = _require_split(folder)
            yield from ((inner, inner, split) for inner in read_folder(folder).folders)
        else:
            yield from ((inner, folder, _require_split(inner)) for inner in read_folder(folder).folders)


def _require_split(folder: Path) -> str:
    if (split := split_of(folder.name)) is None:
        raise PipelineError(
            f"{folder} stands beside the splits but is no split. Name it one of {', '.join(SPLITS)}, move it away, or "
            "take --layout classes if all folders are classes."
        )
    return split


def _loose_below(folders: Sequence[Path], layout: str) -> list[Skipped]:
    """Return what is skipped in the outer folders themselves, where images lie two folders down."""
    if layout == "classes":
        return []
    contents, reason = [read_folder(folder) for folder in folders], LOOSE_BELOW[layout]
    loose = [Skipped(str(file), reason) for content in contents for file in content.files]
    return [*(skipped for content in contents for skipped in content.skipped), *loose]


def _class_name(folder: Path) -> str:
    if not (name := clean_name(folder.name)):
        raise PipelineError(f"The folder {str(folder)!r} has a name of spaces only. Give it the name of its class.")
    return name


def _name_notes(root: Path, folders: Sequence[Path], layout: str) -> list[str]:
    """Say which folders are read as the same split or class though their names differ."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        key = split_of(folder.name) if layout == "splits" else clean_name(folder.name)
        groups.setdefault(str(key), []).append(folder)
    return [
        f"The folders {' and '.join(repr(folder.name) for folder in same)} of {root} are both read as {key!r}."
        for key, same in groups.items()
        if len(same) > 1
    ]


def guess_layout(root: Path, folders: Sequence[Path]) -> str:
    """Return the layout that the names of folders have; refuse folders that can be read in two ways.

    folders: those in `root`.
    """
    inner = {folder: read_folder(folder).folders for folder in folders}
    splits = [folder for folder in folders if split_of(folder.name)]
    others = [folder for folder in folders if folder not in splits]
    if not splits:
        _refuse_class_splits(root, inner)
        _refuse_single_class(root, inner)
        return "classes"
    names = " and ".join(f"{folder.name}/" for folder in splits)
    if not any(inner[folder] for folder in splits):
        _refuse_flat_splits(root, names, others, len(splits))
        return "classes"
    if others:
        raise PipelineError(
            f"{root} can be read in two ways: {names} are splits, and {others[0]} stands beside them but is no split "
            "(move it away, or name it train, val or test); or all folders are classes (--layout classes)."
        )
    if not any(split_of(folder.name) == "train" for folder in splits):
        raise PipelineError(
            f"{root} has {names} but no train/. Add the training images, or take --layout classes if these are classes."
        )
    return "splits"


def _refuse_class_splits(root: Path, inner: dict[Path, list[Path]]) -> None:
    """Refuse classes whose folders hold splits, as long as nobody says that they do."""
    if inner and all(below and all(split_of(folder.name) for folder in below) for below in inner.values()):
        first = next(iter(inner))
        raise PipelineError(
            f"{root} can be read in two ways: {first.name}/{inner[first][0].name}/ is the split of a class "
            f"(--layout class-splits), or just a folder of the class {first.name!r} (--layout classes)."
        )


def _refuse_single_class(root: Path, inner: dict[Path, list[Path]]) -> None:
    """Refuse a single folder with folders in it: the dataset probably starts further down."""
    if len(inner) == 1 and (below := next(iter(inner.values()))):
        (folder,) = inner
        raise PipelineError(
            f"{root} has one class only, {folder.name!r}. If {below[0].name!r} and its neighbours are the classes or "
            f"splits, prepare {folder} instead; if the images have no labels, take --unlabelled {root}."
        )


def _refuse_flat_splits(root: Path, names: str, others: Sequence[Path], count: int) -> None:
    """Refuse splits without class folders; one folder with a split's name may be a class among others."""
    if not others:
        raise PipelineError(
            f"{root} has {names} without class folders, so the classes are unknown. Sort the images into "
            "train/<class>/<image>, or list them in a CSV file with the columns path, label and split; or, if these "
            "folders are the classes, take --layout classes."
        )
    if count > 1:
        raise PipelineError(
            f"{root} can be read in two ways: {names} are splits without class folders (then sort their images into "
            f"train/<class>/<image>), or classes like {others[0].name}/ (--layout classes)."
        )
