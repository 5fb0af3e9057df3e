"""Codes in several HDF5 files, the shards, shown as one file: the rows of the first, then those of the second.

features/photos/vgg16/fc7.h5 is then an index of the shards in fc7.shards beside it. It is made from them alone, and can
be made again at any time.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from pipeline import errors, files
from pipeline.codes import stored
from pipeline.codes.spec import CodesSpec

FORMAT = "cnn-codes 5, shards"
"""The format of an index."""

OPEN_FILES = 64
"""Shards that are open at a time, at most."""

ATTEMPTS = "attempts"
"""The folder in the cache where workers write shards, each in a folder of its own."""

AGAIN = "Extract again, as before: whole shards are kept."
"""How what is wrong with a shard is put right."""


@dataclass(frozen=True)
class Header:
    """What an index says of one shard.

    name: of the file; rows: their number; seal: a checksum of its header and of the checksums of its rows, by which
    another file of the same name is noticed.
    """

    name: str
    rows: int
    seal: int


def folder_of(path: Path) -> Path:
    """Return the folder of the shards whose index is at a path."""
    return path.with_suffix(".shards")


def shard_name(number: int, count: int, key: str) -> str:
    """Return the name of the file of shard `number` of `count`; key: of its rows and their spec."""
    return f"shard-{number:05}-of-{count:05}-{key}.h5"


def key_of(spec: str, digest: str) -> str:
    """Return the key of a shard; spec: of its codes, as JSON; digest: of the dataset that its images are."""
    return _spec_key(spec) + digest[:12]


def any_key_of(spec: str) -> str:
    """Return a pattern of the keys of all shards of a spec, given as JSON."""
    return f"{_spec_key(spec)}*"


def _spec_key(spec: str) -> str:
    return hashlib.sha256(spec.encode()).hexdigest()[:6]


def seal_of(file: h5py.File) -> int:
    """Return the checksum of an open shard's header and of the checksums of its rows, a uint32."""
    return zlib.crc32(file["checksums"][()].tobytes(), int(file.attrs["checksum"]))


def read_digests(path: Path, spec: CodesSpec) -> dict[str, str] | None:
    """Return {path: digest} of the images whose codes a shard holds; None where it is not whole.

    A whole shard is complete, of that spec, and all its rows fit their checksums.
    """
    with suppress(OSError, KeyError, errors.PipelineError), h5py.File(path) as file:
        if file.attrs["format"] == stored.FORMAT and stored.read_spec(file, path, {}) == spec:
            for first, last in stored.block_bounds(file):
                stored.read_rows(file, first, last)
            columns = (stored.decode_texts(file[name][()]) for name in ("paths", "digests"))
            return dict(zip(*columns, strict=True))
    return None


def write_index(path: Path, names: Sequence[str]) -> None:
    """Write the index of shards beside them, complete or not at all; names: of the files, in the order of their rows.

    Raises PipelineError where they do not belong together, and OSError where one cannot be read.
    """
    headers, bad, first = [], [], None
    for name in names:
        with h5py.File(folder_of(path) / name) as file:
            values, classes = file["values"], file["classes"][()].tolist()
            common = {"spec": file.attrs["spec"], "width": values.shape[1], "dtype": str(values.dtype)}
            first = first or (common, classes)
            if (common, classes) != first:
                raise errors.PipelineError(
                    f"{folder_of(path) / name} has another spec or other classes than {names[0]}."
                )
            headers.append(Header(name, len(values), seal_of(file)))
            bad += file["bad"][()].tolist()
    if first is None:
        raise ValueError("an index has shards")
    common, classes = first
    with files.replacing(path) as partial, h5py.File(partial, "w") as file:
        file["classes"], file["bad"] = np.array(classes, "S"), np.array(bad, "S")
        for column in ("name", "rows", "seal"):
            file[column] = np.array([getattr(header, column) for header in headers], "S" if column == "name" else "i8")
        checksum = stored.header_checksum(common["spec"], classes, bad)
        file.attrs.update(
            {"spec": common["spec"], "checksum": checksum, "shards": _checksum(headers), "format": FORMAT}
        )


def _checksum(headers: Sequence[Header]) -> int:
    return zlib.crc32(repr([(header.name, header.rows, header.seal) for header in headers]).encode())


def read_headers(path: Path, index: h5py.File) -> list[Header]:
    """Return what an open index says of its shards; raise PipelineError if it is damaged, or if a shard is gone."""
    names, rows, seals = (index[column][()].tolist() for column in ("name", "rows", "seal"))
    headers = [Header(name.decode(), *numbers) for name, *numbers in zip(names, rows, seals, strict=True)]
    if index.attrs["shards"] != _checksum(headers):
        raise errors.PipelineError(f"{path} is damaged: its list of shards does not fit its checksum. {AGAIN}")
    there = {file.name for file in folder_of(path).glob("*.h5")}
    if missing := [header.name for header in headers if header.name not in there]:
        raise errors.PipelineError(
            f"{path} is an index of {errors.counted(len(headers), 'shard')}, of which {len(missing)} cannot be found "
            f"in {folder_of(path)}; the first is {missing[0]}. {AGAIN}"
        )
    return headers


def files_of(path: Path) -> list[Path]:
    """Return the files that hold the rows of a file of codes: itself, or the shards of an index."""
    with h5py.File(path) as file:
        if file.attrs.get("format") != FORMAT:
            return [path]
        return [folder_of(path) / header.name for header in read_headers(path, file)]


def as_settings(path: Path) -> dict[str, object]:
    """Return the setting of `extract` that cuts codes as the file at a path is cut; {} for one file."""
    part = next(iter(files_of(path)))
    return {} if part == path else {"shards": int(part.name.split("-")[3])}


def read_bad(paths: Iterable[Path]) -> list[str]:
    """Return the images of some shards that were skipped, each with its reason."""
    bad: list[str] = []
    for path in paths:
        with h5py.File(path) as file:
            bad += stored.decode_texts(file["bad"][()])
    return bad


def remove(path: Path, keep: Container[str] = ()) -> None:
    """Remove the shards of the index at a path, but for those of some names; files of others stay."""
    folder = folder_of(path)
    for other in folder.glob("shard-*.h5"):
        if other.name not in keep:
            other.unlink()
    with suppress(OSError):  # it is not empty, or not there
        folder.rmdir()


class ShardedCodes:
    """The shards of an index as one open file of codes; of the shards, the last `OPEN_FILES` that were read are open.

    A shard that is gone, or is another one than when the index was written, is an error when it is opened.
    """

    def __init__(self, path: Path, index: h5py.File) -> None:
        self.path, self.filename = path, str(path)
        self.headers = read_headers(path, index)
        self.starts = np.cumsum([0, *(header.rows for header in self.headers)])
        self.whole = {name: index[name][()] for name in ("classes", "bad")}
        self.attrs: Mapping[str, Any] = {**index.attrs, "format": stored.FORMAT}
        self.opened: OrderedDict[int, h5py.File] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.opened.values():
            file.close()

    def __getitem__(self, name: str, /) -> Any:
        return self.whole[name] if name in self.whole else JoinedColumn(self, name)

    def shard(self, number: int) -> h5py.File:
        """Return the open file of a shard; raise PipelineError if it is not the one that the index names."""
        if number in self.opened:
            self.opened.move_to_end(number)
            return self.opened[number]
        header = self.headers[number]
        path = folder_of(self.path) / header.name
        try:
            file = h5py.File(path)
            sound = len(file["values"]) == header.rows and seal_of(file) == header.seal
        except (OSError, KeyError) as error:
            raise errors.PipelineError(f"{path} cannot be read ({errors.first_line(error)}). {AGAIN}") from error
        if not sound:
            file.close()
            raise errors.PipelineError(f"{path} is not the file that {self.path} names. {AGAIN}")
        self.opened[number] = file
        if len(self.opened) > OPEN_FILES:
            self.opened.popitem(last=False)[1].close()
        return file

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, slice]]:
        """Yield the shards that hold the rows from `first` to before `last`, each with its own rows among them."""
        number = int(np.searchsorted(self.starts, first, side="right")) - 1
        while first < last:
            start, stop = self.starts[number], min(self.starts[number + 1], last)
            if first < stop:
                yield number, slice(int(first - start), int(stop - start))
            first, number = max(first, stop), number + 1


class JoinedColumn:
    """One column of all shards, read when it is sliced by [first:last], or as a whole by [()]."""

    def __init__(self, shards: ShardedCodes, name: str) -> None:
        self.shards, self.name = shards, name

    def __len__(self) -> int:
        return int(self.shards.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and that of numbers per row, if there are several."""
        return (len(self), *self._of_one.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        dtype: np.dtype[Any] = self._of_one.dtype
        return dtype

    @cached_property
    def _of_one(self) -> Any:
        return self.shards.shard(0)[self.name][:0]

    def __getitem__(self, part: slice | tuple[()], /) -> np.ndarray:
        first, last, _ = (part if isinstance(part, slice) else slice(None)).indices(len(self))
        pieces = ((self.shards.shard(number)[self.name], rows) for number, rows in self.shards.pieces(first, last))
        if self.name in stored.TEXTS:  # bytes, whose length may differ from shard to shard
            return np.concatenate([self._of_one, *(column[rows] for column, rows in pieces)])
        values = np.empty((max(last - first, 0), *self.shape[1:]), self.dtype)
        start = 0
        for column, rows in pieces:
            stop = start + rows.stop - rows.start
            column.read_direct(values, rows, slice(start, stop))
            start = stop
        return values
