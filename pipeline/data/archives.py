"""Unpack zip and tar files of strangers: nothing leaves the folder, nothing is a link, nothing grows without bounds."""

from __future__ import annotations

import lzma
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.addresses import is_archive
from pipeline.data.listing import Skipped
from pipeline.errors import PipelineError, first_line
from pipeline.files import MARK
from pipeline.progress import ProgressBar

MAX_FILES = 5_000_000
MAX_FILE_BYTES = 1 << 32
MAX_RATIO = 200
"""How many times its own size an archive may unpack to: photos hardly shrink, blank scans may shrink by so much."""

FREE_BYTES = 1 << 30
"""What any archive may unpack to, however small it is."""

MAX_HEADER_BYTES = 1 << 20
"""The most bytes that a tar file may say of one entry besides its content."""

PLAIN_TYPES = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE)
"""The kinds of entries, besides files, whose size says nothing."""

BLOCK = 1 << 20

NESTED = "an archive within the archive, which is not opened"
LINK = "a link in the archive"
SPARSE = "a sparse file, of which holes are left out"
SPECIAL = "neither a file nor a folder of the archive"

DAMAGES = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)
"""What the libraries raise of archives that are damaged, or packed in a way that they do not know."""


@dataclass(frozen=True)
class Member:
    """An entry of an archive.

    name: as the archive has it; is_folder: whether it names a folder; reason: why it is not unpacked, "" where it is;
    open: gives the file's bytes.
    """

    name: str
    is_folder: bool
    reason: str
    open: Callable[[], IO[bytes]]


def is_packed(path: Path) -> bool:
    """Return whether a file is a zip or tar file, by its content."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path, shown: str) -> list[Skipped]:
    """Unpack an archive into an empty folder, and return what was left out; shown: how the archive is called.

    Raises PipelineError if the archive is damaged or encrypted, if a name leaves the folder or two names are one on
    some disks, and if there is more in it than the bounds of this module let pass.
    """
    skipped, names, bounds = [], Names(shown), Bounds(shown, archive.stat().st_size)
    with _explain_damage(shown), _open(archive, shown) as members, ProgressBar("unpacking", None, "file") as bar:
        for member in members:
            parts = names.add(member.name)
            bounds.add_file()
            target = folder.joinpath(*parts)
            if reason := member.reason or _left_out(member, target.name):
                skipped.append(Skipped(f"{shown}/{'/'.join(parts)}", reason))
            else:
                _write(member, target, bounds)
            bar.update()
    return skipped


def _left_out(member: Member, name: str) -> str:
    """Return why a file is not unpacked that could be, "" if it is."""
    if name == MARK:
        return "written by this program"
    return NESTED if is_archive(name) and not member.is_folder else ""


def _write(member: Member, target: Path, bounds: Bounds) -> None:
    try:
        (target if member.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
        if not member.is_folder:
            with target.open("xb") as file, member.open() as data:
                _copy(data, file, bounds)
    except (FileExistsError, NotADirectoryError) as error:
        raise PipelineError(
            f"{bounds.archive} holds two entries of one name, {member.name!r}. Pack it again, with one of them renamed."
        ) from error


def _copy(source: IO[bytes], target: IO[bytes], bounds: Bounds) -> None:
    size = 0
    while block := source.read(BLOCK):
        size += len(block)
        bounds.add_bytes(len(block), size)
        target.write(block)


class Bounds:
    """How much an archive may hold; counts what was unpacked."""

    def __init__(self, archive: str, size: int) -> None:
        self.archive, self.files, self.bytes = archive, 0, 0
        self.most = max(FREE_BYTES, MAX_RATIO * size)

    def add_file(self) -> None:
        """Count an entry."""
        self.files += 1
        if self.files > MAX_FILES:
            raise self._error(f"more than {MAX_FILES:,} entries")

    def add_bytes(self, count: int, of_file: int) -> None:
        """Count bytes; of_file: how many its file has by now."""
        self.bytes += count
        if of_file > MAX_FILE_BYTES:
            raise self._error(f"a file of more than {MAX_FILE_BYTES:,} bytes")
        if self.bytes > self.most:
            raise self._error(f"more than {self.most:,} bytes")

    def _error(self, what: str) -> PipelineError:
        return PipelineError(
            f"{self.archive} unpacks to {what}, which no archive of images does. If you trust it, unpack it yourself "
            "and name the folder."
        )


class Names:
    """The names in an archive or bucket; refuses those that leave the folder, and pairs that are one on some disks."""

    def __init__(self, source: str) -> None:
        self.source, self.seen = source, dict[str, str]()

    def add(self, name: str) -> list[str]:
        """Return the parts of a name, which is relative, with slashes or the backslashes of Windows."""
        path = name.replace("\\", "/")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or ".." in parts or re.match("[A-Za-z]:", "".join(parts[:1])) or "\0" in path:
            raise PipelineError(
                f"{self.source} holds the name {name!r}, which leads out of the folder, so nothing is taken from it. "
                "Rename it there."
            )
        for end in range(1, len(parts) + 1):
            self._add_alike("/".join(parts[:end]))
        return parts

    def _add_alike(self, path: str) -> None:
        before = self.seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if before != path:
            raise PipelineError(
                f"{self.source} holds {before!r} and {path!r}, which are one name on many disks. Rename one of them."
            )


class BoundedHeader(tarfile.TarInfo):
    """An entry of a tar file whose long name or other facts, which tarfile reads into memory, have a bound.

    Sparse files have maps of their holes, which may be without end; no images are stored so.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedHeader:
        """Read a header of 512 bytes."""
        header = super().frombuf(buf, encoding, errors)
        if header.size > MAX_HEADER_BYTES and header.type not in (*tarfile.REGULAR_TYPES, *PLAIN_TYPES):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(SPARSE)
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:  # where tarfile reads the map of a sparse file of its newest kind
        raise tarfile.ReadError(SPARSE)


@contextmanager
def _explain_damage(archive: str) -> Iterator[None]:
    """Turn what the libraries raise into a PipelineError."""
    try:
        yield
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
            raise
        reason = first_line(error).rstrip(".:")
        raise PipelineError(
            f"{archive} is damaged, cut off, or no zip or tar file ({reason}). Copy or pack it again."
        ) from error


@contextmanager
def _open(archive: Path, shown: str) -> Iterator[Iterator[Member]]:
    """Yield the entries of an archive; its first bytes tell its kind."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as zipped:
            yield _zip_members(zipped, shown)
    else:
        with tarfile.open(archive, encoding="utf-8", errors="surrogateescape", tarinfo=BoundedHeader) as tar:
            yield _tar_members(tar)


def _zip_members(archive: zipfile.ZipFile, shown: str) -> Iterator[Member]:
    for entry in archive.infolist():
        if entry.flag_bits & 1:
            raise PipelineError(f"{shown} is encrypted. Unpack it yourself, and name the folder.")
        is_link = stat.S_ISLNK(entry.external_attr >> 16)
        yield Member(_zip_name(entry), entry.is_dir(), LINK if is_link else "", partial(archive.open, entry))


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Return a name as its writer meant it: macOS writes UTF-8 without saying so, where the format means cp437."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    while (entry := archive.next()) is not None:
        reason = "" if entry.isfile() or entry.isdir() else LINK if entry.issym() or entry.islnk() else SPECIAL
        yield Member(entry.name, entry.isdir(), reason, partial(_of_tar, archive, entry))
        vars(archive)["members"].clear()  # which would hold every entry in memory
    _validate_end(archive)


def _of_tar(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    if file is None:
        raise tarfile.ReadError(f"{entry.name!r} is no file")
    return file


def _validate_end(archive: tarfile.TarFile) -> None:
    """Refuse a tar file that lacks the block of zeros at its end: tarfile stops at a damaged header without a word."""
    file = archive.fileobj
    if file is None:
        raise tarfile.ReadError("it is closed")
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
