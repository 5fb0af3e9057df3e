"""Write CNN codes to HDF5 files row by row, so that an interrupted run is resumed and a file appears when complete."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

import h5py
import numpy as np

from pipeline import errors, files
from pipeline.codes import stored
from pipeline.codes.spec import CodesSpec
from pipeline.paths import codes_of_all_tasks

COPIED_AT_ONCE = 256
"""Rows of earlier runs that are written at a time."""

CHUNK_BYTES = 1 << 19
"""Bytes that are compressed together: readers decompress them as a whole, within HDF5's cache of 1 MiB."""


@dataclass(frozen=True)
class Metadata:
    """The metadata of a dataset's n images, as HDF5 stores it.

    paths, splits: (n,) bytes; labels: (n,) int64, or (n, n_classes) uint8; classes: sorted class names, bytes.
    """

    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    classes: np.ndarray

    def take(self, rows: np.ndarray) -> Metadata:
        """Return the metadata of some of the rows."""
        return Metadata(self.paths[rows], self.labels[rows], self.splits[rows], self.classes)

    def of_rows(self, rows: np.ndarray, digests: np.ndarray) -> stored.RowMetadata:
        """Return the metadata of some of the rows, together with the digests of their images."""
        return stored.RowMetadata(self.labels[rows], digests, self.paths[rows], self.splits[rows])

    def key(self, spec: CodesSpec) -> str:
        """Return a short digest of these rows and a spec: a half-written file with the same key can be resumed."""
        total = hashlib.sha256(spec.to_json().encode())
        for column in (self.paths, self.labels, self.splits, self.classes):
            total.update(column.tobytes() + str(column.dtype).encode())
        return total.hexdigest()[:12]


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Make sure that one run at a time writes codes to a folder; raise PipelineError if another run does."""
    folder.mkdir(parents=True, exist_ok=True)
    message = f"Another run is writing to {folder}. Wait until it ends, or choose another --out."
    with files.locked(folder.with_name(f".{folder.name}.lock"), message):
        yield


def cache_folder(folder: Path) -> Path:
    """Return where later runs find what earlier runs wrote to a folder of codes.

    It holds half-written files (`.partial`), and the complete ones as hard links, which need no space. It lies beside
    the folder, since DVC empties the folder before each run. The tasks of a dataset share it.
    """
    return codes_of_all_tasks(folder).parent / ".cache" / folder.name


def cached_name(spec: CodesSpec) -> str:
    """Return the name of the complete file of a spec in the cache."""
    return f"{spec.layer}-{hashlib.sha256(spec.to_json().encode()).hexdigest()[:12]}.h5"


def partial_path(path: Path, spec: CodesSpec, metadata: Metadata) -> Path:
    """Return the path of the half-written file that is to become `path`."""
    return cache_folder(path.parent) / f"{path.name}-{metadata.key(spec)}.partial"


def has_earlier_rows(path: Path, spec: CodesSpec, metadata: Metadata) -> bool:
    """Return whether an earlier run wrote codes of that spec: a complete file, or some of these rows."""
    cached = cache_folder(path.parent) / cached_name(spec)
    return cached.exists() or partial_path(path, spec, metadata).exists()


class CarefulFile(io.FileIO):
    """A file for HDF5 to write to that keeps the first error, as a full disk or an interrupt, until `check`.

    HDF5 cannot close a file that it cannot write: it hangs, or crashes when the program ends. So all writes after an
    error are dropped, HDF5 closes without an error, and the owner of the file raises the error.
    """

    error: BaseException | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of the bytes, or keep the error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's size, or keep the error."""
        try:
            if self.error is None:
                super().truncate(size)
        except BaseException as error:
            self.error = error
        return size or 0

    def check(self) -> None:
        """Raise the error that was kept, if there is one."""
        if self.error is not None:
            raise self.error


class EarlierRows:
    """The rows of a file of the same spec, from which codes are copied instead of computed.

    rows: {digest of the image's bytes: row of the file}, of all rows that fit their checksums.
    """

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.rows: dict[bytes, int] = {}
        for first, last in stored.block_bounds(file):
            metadata = stored.RowMetadata.read(file, first, last)
            written = metadata.digests != b""
            if written.any():
                checksums = stored.row_checksums(stored.read_values(file, first, last), metadata)
                intact = written & (checksums == file["checksums"][first:last])
                self.rows |= {metadata.digests[row]: first + row for row in np.flatnonzero(intact)}

    def read_code(self, digest: bytes) -> np.ndarray:
        """Return the (d,) code of the image with that digest, which must be in `rows`."""
        row = self.rows[digest]
        return stored.read_values(self.file, row, row + 1).reshape(-1)


class CodesWriter:
    """Write one layer's codes, row by row of the dataset, and move the file to `path` when it is complete.

    If the program ends before that, in any way, the old file stays, or none is there; the next run with the same spec
    finds the rows that were written. All datasets are laid out at the start, and a row counts only if it fits its
    checksum, so a kill during a write costs no more than the rows of that write.

    width: numbers per row; metadata: of all rows.
    Attributes: written: {row: digest} of the rows that are in the file; partial: the half-written file.
    """

    def __init__(self, path: Path, spec: CodesSpec, width: int, metadata: Metadata) -> None:
        self.path, self.spec, self.width, self.metadata = path, spec, width, metadata
        self.cache = cache_folder(path.parent)
        self.cache.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.partial = partial_path(path, spec, metadata)
        keep_complete(self.partial, self.cache / cached_name(spec))
        self.copied: list[tuple[int, np.ndarray, str]] = []
        with ExitStack() as stack:  # closes what was opened, in reverse order, if anything below fails
            self.stack = stack
            self.sink = CarefulFile(self.partial, "r+" if self.partial.exists() else "w+")
            stack.callback(self.sink.close)
            self.file = self._reopen() or self._create()
            self.datasets = {name: self.file[name] for name in ("values", "digests", "checksums")}
            self.own = EarlierRows(self.file)
            self.written = {row: digest for digest, row in self.own.rows.items()}
            self.sources = [self.own, *self._other_sources()]
            self.stack = stack.pop_all()

    def _reopen(self) -> h5py.File | None:
        """Open the half-written file that an interrupted run left, if its layout was complete."""
        with suppress(OSError, KeyError):
            file = h5py.File(self.sink, "r+")
            if file.attrs.get("laid out"):
                self.stack.callback(file.close)
                return file
            file.close()
        return None

    def _create(self) -> h5py.File:
        """Lay out all datasets at once, so that later writes change nothing but their rows."""
        self.sink.truncate(0)
        file = h5py.File(self.sink, "w")
        self.stack.callback(file.close)
        count = len(self.metadata.paths)
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        for name, shape, dtype in (
            ("values", (count, self.width), self.spec.dtype),
            ("digests", (count,), "S64"),
            ("checksums", (count,), "u4"),
        ):
            file.create_dataset(name, shape, dtype, dcpl=early)
        for name in ("labels", "paths", "splits", "classes"):
            file.create_dataset(name, data=getattr(self.metadata, name))
        file.attrs["spec"] = self.spec.to_json()
        file.flush()
        file.attrs["laid out"] = True
        file.flush()
        self.sink.check()
        return file

    def _other_sources(self) -> Iterator[EarlierRows]:
        """Open the last complete file of this spec, and the half-written ones that have other rows.

        Files that cannot be read are left out; their rows are computed.
        """
        for path in [self.cache / cached_name(self.spec), *self.cache.glob(f"{self.path.name}-*.partial")]:
            if path == self.partial or not path.exists():
                continue
            with suppress(OSError, KeyError, errors.PipelineError):
                file = self.stack.enter_context(h5py.File(path))
                if file.attrs["spec"] == self.spec.to_json():
                    yield EarlierRows(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    @property
    def fresh(self) -> bool:
        """Whether there are no rows of this spec from earlier runs."""
        return not any(source.rows for source in self.sources)

    def find(self, row: int, digest: str) -> bool:
        """Take a row's code from an earlier run, or from a copy of the image; return whether there is one.

        The codes are written in blocks, the last of them by `commit` at the latest.
        """
        key = digest.encode()
        if self.written.get(row) == key:
            return True
        source = next((source for source in self.sources if key in source.rows), None)
        if source is None:
            return False
        self.copied.append((row, source.read_code(key), digest))
        if len(self.copied) >= COPIED_AT_ONCE:
            self._write_copied()
        return True

    def _write_copied(self) -> None:
        """Write the codes that `find` took and that are not yet written."""
        if self.copied:
            rows, values, digests = zip(*self.copied, strict=True)
            self.copied.clear()
            self.write(rows, np.stack(values), digests)

    def write(self, rows: Sequence[int], values: np.ndarray, digests: Sequence[str]) -> None:
        """Write the (m, d) codes of some rows of the dataset, with the digests of their images, and flush them.

        Raises PipelineError if a value is not finite, and OSError if the disk is full.
        """
        if not np.isfinite(values).all():
            raise errors.PipelineError(
                f"Layer {self.spec.layer} of {self.spec.backbone} gives values that are not finite in "
                f"{self.spec.precision}, or in {self.spec.dtype}. Choose --precision fp32, --dtype float32, or other "
                "--weights."
            )
        keys, places = stored.encode_texts(digests), np.asarray(rows)
        checksums = stored.row_checksums(values, self.metadata.of_rows(places, keys))
        self._put(places, {"values": values, "digests": keys, "checksums": checksums})
        self.written |= zip(rows, keys.tolist(), strict=True)
        self.own.rows |= zip(keys.tolist(), rows, strict=True)

    def _put(self, places: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Write rows of some datasets, each run of consecutive rows at once, and flush them to the operating system.

        Rows that were written in part do not fit their checksums.
        """
        runs = np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1)
        for name, values in columns.items():
            for run in runs:
                self.datasets[name][int(places[run[0]]) : int(places[run[-1]]) + 1] = values[run]
        self.file.flush()
        self.sink.check()

    def commit(self, bad: Sequence[str], compress: bool = False) -> None:
        """Complete the file without the rows that were never written, and move it to its path.

        bad: images that were skipped, each with its reason; compress: the values, with LZF.
        """
        self._write_copied()
        if len(self.written) < len(self.metadata.paths):
            self._without_gaps().commit(bad, compress)
        else:
            self._finish(bad, compress)
        for leftover in self.cache.glob(f"{self.path.name}-*.partial"):
            leftover.unlink()

    def _without_gaps(self) -> CodesWriter:
        """Return a writer of the written rows alone, which are all written to its file."""
        rows = np.array(sorted(self.written), np.int64)
        writer = self.stack.enter_context(CodesWriter(self.path, self.spec, self.width, self.metadata.take(rows)))
        for start, stop in stored.block_bounds(self.file):
            first, last = (int(place) for place in np.searchsorted(rows, (start, stop)))
            if first < last:
                values = stored.read_values(self.file, start, stop)[rows[first:last] - start]
                digests = [self.written[row].decode() for row in rows[first:last].tolist()]
                writer.write(range(first, last), values, digests)
        return writer

    def _finish(self, bad: Sequence[str], compress: bool) -> None:
        """Close the complete file, put it into the cache, and move it to its path."""
        reasons = stored.encode_texts(bad)
        self.file.create_dataset("bad", data=reasons)
        classes = self.metadata.classes.tolist()
        self.file.attrs["checksum"] = stored.header_checksum(self.spec.to_json(), classes, reasons.tolist())
        del self.file.attrs["laid out"]
        self.file.attrs["format"] = stored.FORMAT
        self.file.close()
        self.sink.check()
        os.fsync(self.sink.fileno())
        if compress:
            compress_file(self.partial)
        files.link_or_copy(self.partial, self.cache / cached_name(self.spec))
        self.partial.replace(self.path)


def keep_complete(partial: Path, cached: Path) -> None:
    """Move a complete file into the cache that a killed run left under its temporary name, before it is reused."""
    complete = False
    with suppress(OSError, KeyError), h5py.File(partial) as file:
        complete = file.attrs.get("format") == stored.FORMAT
    if complete:
        partial.replace(cached)


def compress_file(path: Path) -> None:
    """Replace a complete file with a compressed one that has the same values and checksums.

    It uses LZF, which every h5py can read. (Zstandard packs a fifth better and is read twice as fast, but needs a
    plugin.)
    """
    smaller = path.with_suffix(".smaller.partial")
    with CarefulFile(smaller, "w+") as sink:
        with h5py.File(path) as source, h5py.File(sink, "w") as target:
            for name in source:
                if name != "values":
                    source.copy(name, target)
            values = source["values"]
            rows = max(1, min(len(values), CHUNK_BYTES // (values.dtype.itemsize * values.shape[1])))
            chunks = (rows, values.shape[1])
            packed = target.create_dataset("values", values.shape, values.dtype, chunks=chunks, compression="lzf")
            for start, stop in stored.block_bounds(source):
                packed[start:stop] = values[start:stop]
            target.attrs.update(source.attrs)
        sink.check()
        os.fsync(sink.fileno())
    smaller.replace(path)
