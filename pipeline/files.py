"""Write files so that a reader never meets half of one; CSV and JSON; one writer at a time."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError

UTF8: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
"""How text files are opened: file names that are not valid UTF-8 keep their bytes."""


MARK = ".cnn-codes"
"""The file by which a folder of images is known as one that this program wrote, and may replace."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` at the end, or remove it if an exception is raised.

    The parent folder is created. A process that is killed leaves at most the temporary file, whose name starts with a
    dot, and the old file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Replace `target` with a hard link to a file, or with a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # EPERM or ENOTSUP on FAT and some network drives, EMLINK beyond the limit
        with replacing(target) as partial:
            shutil.copyfile(source, partial)


def number_of(cell: str) -> float:
    """Return the number that a cell of a CSV file holds, NaN where it holds none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing_folder(folder: Path, mark: str = MARK) -> Iterator[None]:
    """Give an empty folder in place of an old one; put the old one back if an exception is raised.

    Where a process is killed, the old folder is put back when this is called again. mark: the file, written here, by
    which an old folder is known as one that may be replaced; raises PipelineError if it holds files without it.
    """
    folder = folder.absolute()
    is_new = not folder.parent.exists()
    before, discarded = (folder.with_name(f".{folder.name}.{word}") for word in ("before", "discarded"))
    _refuse_others(folder, mark)
    if before.exists():
        _put_back(before, folder)
    if folder.exists():
        folder.rename(before)
    try:
        folder.mkdir(parents=True)
        (folder / mark).touch()
        yield
        shutil.rmtree(discarded, ignore_errors=True)
        if before.exists():
            before.rename(discarded)
    except BaseException:
        _put_back(before, folder)
        if is_new:
            with suppress(OSError):
                folder.parent.rmdir()
        raise
    shutil.rmtree(discarded, ignore_errors=True)


def _refuse_others(folder: Path, mark: str) -> None:
    if folder.exists() and not (folder / mark).exists() and next(folder.iterdir(), None):
        raise PipelineError(
            f"{folder} holds files that this program did not write, and would be replaced. Move it away, or choose "
            "another place with --out."
        )


@contextmanager
def replacing_files(folder: Path, last: str) -> Iterator[Path]:
    """Give an empty folder; move its files to `folder` at the end, or none of them if an exception is raised.

    last: the name of the file that is moved last, without which readers do not look at the others.
    """
    is_new, staged = not folder.exists(), folder / ".new"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        for file in sorted(staged.iterdir(), key=lambda file: file.name == last):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it has files by now, unless an exception was raised
                folder.rmdir()


def _put_back(before: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if before.exists():
        before.rename(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, complete or not at all."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file with one value per line, complete or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file with a header line, complete or not at all."""
    with replacing(path) as partial, partial.open("w", **UTF8) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file that `write_csv` wrote: a dict per line, by the header's names."""
    with path.open(**UTF8) as file:
        return list(csv.DictReader(file))


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file at `path`; raise PipelineError with `message` at once if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise PipelineError(message) from None
    try:
        yield
    finally:
        lock.release()
