"""Writing codes: row by row beside the final file, resumed after anything, moved in when complete."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from filelock import FileLock, Timeout

from pipeline import errors
from pipeline.codes import reader
from pipeline.codes.spec import CodesSpec

FOUND_AT_ONCE = 256

CHUNK_BYTES = 1 << 19
"""What is compressed together: readers take it apart again as a whole, within HDF5's cache of 1 MiB."""


@dataclass(frozen=True)
class Metadata:
    """What a dataset says of its images, n of each; bytes, as HDF5 keeps them. classes: sorted class names."""

    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    classes: np.ndarray

    def take(self, rows: np.ndarray) -> Metadata:
        """Return some of the rows."""
        return Metadata(self.paths[rows], self.labels[rows], self.splits[rows], self.classes)

    def key(self, spec: CodesSpec) -> str:
        """Return a short digest that tells whether a half-written file is one of these rows and this spec."""
        total = hashlib.sha256(spec.to_json().encode())
        for column in (self.paths, self.labels, self.splits, self.classes):
            total.update(column.tobytes() + str(column.dtype).encode())
        return total.hexdigest()[:12]


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Make sure that one run at a time writes codes to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise errors.PipelineError(
            f"Another run is writing to {folder}. Wait until it ends, or choose another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def cache_folder(folder: Path) -> Path:
    """Return where the work on a folder of codes is kept: beside it, since DVC empties the folder before each run.

    It holds half-written files (`.partial`), and hard links to the complete ones, which cost no space.
    """
    return folder.parent / ".store" / folder.name


def cached_name(spec: CodesSpec) -> str:
    """Return the name of the complete file of a spec in the store."""
    return f"{spec.layer}-{hashlib.sha256(spec.to_json().encode()).hexdigest()[:12]}.h5"


def has_earlier_rows(path: Path, spec: CodesSpec, columns: Metadata) -> bool:
    """Whether an earlier run wrote codes of that spec, all of them or some of these rows."""
    store = cache_folder(path.parent)
    return (store / cached_name(spec)).exists() or partial_path(path, spec, columns).exists()


def partial_path(path: Path, spec: CodesSpec, columns: Metadata) -> Path:
    """Return where the half-written file lies that is to become `path`."""
    return cache_folder(path.parent) / f"{path.name}-{columns.key(spec)}.partial"


class CarefulFile(io.FileIO):
    """A file for HDF5 to write to that keeps the first error, a full disk or an interrupt, until it is asked for.

    HDF5 cannot close a file that it cannot write: it hangs or crashes when the program ends. So what follows an error
    is dropped, HDF5 closes in peace, and whoever owns the file raises the error.
    """

    error: BaseException | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the bytes, or remember why not."""
        rest = memoryview(data).cast("B")
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's size, or remember why not."""
        try:
            if self.error is None:
                super().truncate(size)
        except BaseException as error:
            self.error = error
        return size or 0

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.error is not None:
            raise self.error


class Donor:
    """A file with rows of the same spec, from which codes are copied instead of computed."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.rows: dict[bytes, int] = {}
        for first, last in reader.block_bounds(file):
            digests = file["digests"][first:last]
            if not (digests != b"").any():
                continue
            values = file["values"][first:last]
            columns = {name: file[name][first:last] for name in reader.COLUMNS}
            sound = reader.row_checksums(values, columns) == file["checksums"][first:last]
            self.rows |= {digests[row]: first + row for row in np.flatnonzero(sound & (digests != b""))}

    def values(self, digest: bytes) -> np.ndarray:
        """Return the (d,) code of the image with that digest."""
        return self.file["values"][self.rows[digest]]


class CodesWriter:
    """Write one layer's codes, row by row of the dataset, and move the file in when it is complete.

    Whatever ends the program before that leaves the old file, or none; the rows written so far are found again by the
    next run with the same spec. All datasets are laid out at the start, and a row counts only if it fits its checksum,
    so a kill in the midst of a write costs no more than the rows of that write.
    """

    def __init__(self, path: Path, spec: CodesSpec, width: int, columns: Metadata) -> None:
        self.path, self.spec, self.width, self.columns = path, spec, width, columns
        self.store = cache_folder(path.parent)
        self.store.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.partial = partial_path(path, spec, columns)
        self.found: list[tuple[int, np.ndarray, str]] = []
        with ExitStack() as stack:  # what was opened is closed in this order if anything below fails
            self.stack = stack
            self.sink = CarefulFile(self.partial, "r+" if self.partial.exists() else "w+")
            stack.callback(self.sink.close)
            self.file = self._reopen() or self._create()
            self.opened = {name: self.file[name] for name in ("values", "digests", "checksums")}
            self.own = Donor(self.file)
            self.written = {row: digest for digest, row in self.own.rows.items()}
            self.donors = [self.own, *self._other_donors()]
            self.stack = stack.pop_all()

    def _reopen(self) -> h5py.File | None:
        """Open what an interrupted run left of this very file, if its layout was complete."""
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
        count = len(self.columns.paths)
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        for name, shape, kind in (
            ("values", (count, self.width), self.spec.dtype),
            ("digests", (count,), "S64"),
            ("checksums", (count,), "u4"),
        ):
            file.create_dataset(name, shape, kind, dcpl=early)
        for name in ("labels", "paths", "splits", "classes"):
            file.create_dataset(name, data=getattr(self.columns, name))
        file.attrs["spec"] = self.spec.to_json()
        file.flush()
        file.attrs["laid out"] = True
        file.flush()
        self.sink.check()
        return file

    def _other_donors(self) -> Iterator[Donor]:
        """Open the last complete file of this spec, and what interrupted runs left of it with other rows."""
        for path in [self.store / cached_name(self.spec), *self.store.glob(f"{self.path.name}-*.partial")]:
            if path == self.partial or not path.exists():
                continue
            with suppress(
                OSError, KeyError, errors.PipelineError
            ):  # what cannot be read is no donor; its rows are computed
                file = self.stack.enter_context(h5py.File(path))
                if file.attrs["spec"] == self.spec.to_json():
                    yield Donor(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    @property
    def fresh(self) -> bool:
        """Whether there are no rows of this spec from earlier runs."""
        return not any(donor.rows for donor in self.donors)

    def find(self, row: int, digest: str) -> bool:
        """Take a row's code from an earlier run, or from a copy of the image, if there is one; return whether.

        What was found is written by and by, and all of it by `settle`.
        """
        key = digest.encode()
        if self.written.get(row) == key:
            return True
        donor = next((donor for donor in self.donors if key in donor.rows), None)
        if donor is None:
            return False
        self.found.append((row, donor.values(key), digest))
        if len(self.found) >= FOUND_AT_ONCE:
            self.settle()
        return True

    def settle(self) -> None:
        """Write what `find` found."""
        if self.found:
            rows, values, digests = zip(*self.found, strict=True)
            self.found.clear()
            self.write(rows, np.stack(values), digests)

    def write(self, rows: Sequence[int], values: np.ndarray, digests: Sequence[str]) -> None:
        """Write (m, d) codes, all of them finite, to rows of the dataset, and commit them."""
        if not np.isfinite(values).all():
            raise errors.PipelineError(
                f"Layer {self.spec.layer} of {self.spec.backbone} gives values that are not finite in "
                f"{self.spec.precision}, or in {self.spec.dtype}. Choose --precision fp32, --dtype float32, or other "
                "--weights."
            )
        keys, places = reader.encode_texts(digests), np.asarray(rows)
        columns = {name: getattr(self.columns, name)[places] for name in ("labels", "paths", "splits")}
        checksums = reader.row_checksums(values, {**columns, "digests": keys})
        self._put(places, {"values": values, "digests": keys, "checksums": checksums})
        self.written |= zip(rows, keys.tolist(), strict=True)
        self.own.rows |= zip(keys.tolist(), rows, strict=True)

    def _put(self, places: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Write rows of some columns, run by run, and hand them to the system; half-written ones fail a checksum."""
        runs = np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1)
        for name, values in columns.items():
            for run in runs:
                self.opened[name][int(places[run[0]]) : int(places[run[-1]]) + 1] = values[run]
        self.file.flush()
        self.sink.check()

    def commit(self, bad: Sequence[str], compress: bool = False) -> None:
        """Complete the file without the rows never written, and move it in; bad: what was set aside, and why."""
        if len(self.written) < len(self.columns.paths):
            self._without_gaps().commit(bad, compress)
        else:
            self._finish(bad, compress)
        for leftover in self.store.glob(f"{self.path.name}-*.partial"):
            leftover.unlink()

    def _without_gaps(self) -> CodesWriter:
        rows = np.array(sorted(self.written))
        writer = self.stack.enter_context(CodesWriter(self.path, self.spec, self.width, self.columns.take(rows)))
        for place, row in enumerate(rows.tolist()):
            if not writer.find(place, self.written[row].decode()):
                raise RuntimeError(f"Row {row} of {self.partial} was written and is not found.")
        writer.settle()
        return writer

    def _finish(self, bad: Sequence[str], compress: bool) -> None:
        reasons = reader.encode_texts(bad)
        self.file.create_dataset("bad", data=reasons)
        self.file.attrs["checksum"] = reader.header_checksum(
            self.spec.to_json(), self.columns.classes.tolist(), reasons.tolist()
        )
        del self.file.attrs["laid out"]
        self.file.attrs["format"] = reader.FORMAT
        self.file.close()
        self.sink.check()
        os.fsync(self.sink.fileno())
        if compress:
            compress_file(self.partial)
        stored = self.store / cached_name(self.spec)
        stored.unlink(missing_ok=True)
        os.link(self.partial, stored)
        self.partial.replace(self.path)


def compress_file(path: Path) -> None:
    """Put a compressed file in the place of a complete one; its values and checksums are the same.

    By LZF, since every h5py can read that. (Zstandard packs a fifth better and is read twice as fast, by those who have
    its plugin.)
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
            for start, stop in reader.block_bounds(source):
                packed[start:stop] = values[start:stop]
            target.attrs.update(source.attrs)
        sink.check()
        os.fsync(sink.fileno())
    smaller.replace(path)
