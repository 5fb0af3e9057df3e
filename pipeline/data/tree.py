"""What lies in folders: files and folders by name, without what operating systems and this program put there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.listing import Skipped
from pipeline.files import MARK
from pipeline.paths import MANIFEST, ORIGIN

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

OUTPUTS = {"data": MANIFEST, "features": "*.h5", "models": "*.skops", "reports": "metrics.json"}
"""The folders of the working folder into which the commands write, and a file by which each is known."""

HIDDEN = "hidden or system file"
OUTPUT = "written by this program"
REPEATED = "a link to a folder that is read already"


@dataclass(frozen=True)
class FolderContent:
    """What lies in one folder, sorted by name; skipped: hidden, system and own files, and what cannot be read."""

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
        is_folder = _holds(path.is_dir)
        if path.name == MARK:
            continue
        if path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES:
            content.skipped.extend(_skip(path, HIDDEN))
        elif is_folder and _is_output(path):
            content.skipped.extend(_skip(path, OUTPUT))
        elif is_folder:
            content.folders.append(path)
        elif _holds(path.exists) and not _holds(path.is_file):
            content.skipped.append(Skipped(str(path), "no regular file"))
        else:
            content.files.append(path)  # a broken link, too: reading it fails with the system's reason
    return content


def _skip(path: Path, reason: str) -> list[Skipped]:
    if path.is_symlink() or not _holds(path.is_dir):
        return [Skipped(str(path), reason)]
    count = sum(1 for file in path.rglob("*") if not _holds(file.is_dir))
    return [Skipped(str(path), reason, count)] if count else []


def _is_output(path: Path) -> bool:
    """Return whether a folder holds what the commands wrote: a prepared dataset, or an output of the working folder.

    It matters to whoever works in the folder of the images, or keeps these in one called data.
    """
    if _holds((path / ORIGIN).exists):
        return True
    named = path.name in OUTPUTS and path.parent.resolve() == Path.cwd()
    return named and next(path.rglob(OUTPUTS[path.name]), None) is not None


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
