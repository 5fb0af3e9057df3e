"""The HDF5 file of CNN codes: its spec, writing, reading; the only importer of h5py."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from filelock import FileLock, Timeout

from pipeline.errors import PipelineError

FORMAT = "cnn-codes 1"
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 1 << 23
"""What `blocks` reads at a time."""


@dataclass(frozen=True)
class CodesSpec:
    """What makes two codes comparable: the network up to the layer, what it saw, and how its maps became vectors.

    weights_sha256: digest of names, shapes and values of the state dict, however it was stored;
    resize, crop, interpolation, mean, std: as in `images.Transform`; pool: "none" where the layer gives a vector.
    """

    backbone: str
    layer: str
    node: str
    weights: str
    weights_sha256: str
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pool: str
    precision: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Codes:
    """CNN codes, one row an image.

    values: (n, d) float32, >= 0 after a ReLU; labels: (n,) int64, indices into `classes`; paths, splits: n each;
    digests: n SHA-256 of the images' bytes, in hex; classes: sorted class names; spec: what the codes are.
    """

    values: np.ndarray
    labels: np.ndarray
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    digests: tuple[str, ...]
    classes: tuple[str, ...]
    spec: CodesSpec


@dataclass(frozen=True)
class CodesIndex:
    """What stands beside the values in a file of codes, as in `Codes`: small where the values are large.

    path: the file; width: values a row; bad: what was set aside, each with its reason.
    """

    path: Path
    labels: np.ndarray
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    digests: tuple[str, ...]
    classes: tuple[str, ...]
    spec: CodesSpec
    width: int
    bad: tuple[str, ...]


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make sure that one run at a time writes codes to a folder; clear away what a killed one left half-written."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise PipelineError(
            f"Another run is writing to {folder}. Wait until it ends, or choose another --out."
        ) from None
    try:
        for leftover in folder.glob(".*.h5.partial"):
            leftover.unlink()
        yield
    finally:
        lock.release()


class CarefulFile(io.FileIO):
    """A file for HDF5 to write to that keeps the first error, a full disk or an interrupt, until it is asked for.

    HDF5 cannot close a file that it cannot write: it hangs or crashes when the program ends. So what follows an error
    is dropped, HDF5 closes in peace, and whoever owns the file raises the error and throws the file away.
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


class CodesWriter:
    """Write one layer's codes batch by batch beside `path`; `commit` completes the file and moves it in.

    Whatever ends the program before that leaves the old file, or none. The values lie in chunks of about 1 MiB with
    a Fletcher-32 checksum each, so that a damaged block is found when it is read.
    """

    def __init__(self, path: Path, spec: CodesSpec, width: int) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.sink = CarefulFile(self.partial, "w+")
        self.file = h5py.File(self.sink, "w")
        rows = max(1, CHUNK_BYTES // (4 * width))
        self.values = self.file.create_dataset(
            "values", (0, width), "f4", maxshape=(None, width), chunks=(rows, width), fletcher32=True
        )
        self.file.attrs["format"] = FORMAT
        self.file.attrs.update(asdict(spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.sink.close()
        self.partial.unlink(missing_ok=True)

    def append(self, values: np.ndarray) -> None:
        """Add (n, width) float32 rows, all of them finite."""
        if not np.isfinite(values).all():
            spec = self.file.attrs
            raise PipelineError(
                f"Layer {spec['layer']} of {spec['backbone']} gives values that are not finite. Choose other --weights."
            )
        start = len(self.values)
        self.values.resize(start + len(values), axis=0)
        self.values[start:] = values
        self.sink.check()

    def commit(self, labels: np.ndarray, texts: Mapping[str, Sequence[str]]) -> None:
        """Write the labels and the other columns (`paths`, `splits`, `digests`, `classes`), and move the file in."""
        assert len(labels) == len(self.values) == len(texts["paths"]) == len(texts["digests"]) == len(texts["splits"])
        self.file.create_dataset("labels", data=labels, fletcher32=True)
        for name, column in texts.items():
            encoded = np.array([text.encode("utf-8", "surrogateescape") for text in column], dtype="S")
            self.file.create_dataset(name, data=encoded, fletcher32=len(column) > 0)
        self.file.close()
        self.sink.check()
        os.fsync(self.sink.fileno())
        self.partial.replace(self.path)


def read(path: Path, expected: Mapping[str, Any], split: str | None = None) -> Codes:
    """Read the codes of one split (or all) from a file whose spec has the `expected` values; refuse any other."""
    with _opened(path, expected) as file:
        spec = _read_spec(file, path)
        demand_same(spec, expected, str(path))
        return _read_rows(file, spec, split)


def read_index(path: Path, expected: Mapping[str, Any]) -> CodesIndex:
    """Read all but the values of a file whose spec has the `expected` values; refuse any other."""
    with _opened(path, expected) as file:
        spec = _read_spec(file, path)
        demand_same(spec, expected, str(path))
        paths, splits, digests, classes, bad = (
            tuple(_texts(file[name])) for name in ("paths", "splits", "digests", "classes", "bad")
        )
        width = file["values"].shape[1]
        return CodesIndex(path, file["labels"][()], paths, splits, digests, classes, spec, width, bad)


def blocks(path: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some of `rows` at a time with their (m, d) float32 values; one block at a time is in memory.

    rows: increasing int64 row numbers.
    """
    with _opened(path, {}) as file:
        values = file["values"]
        step = max(1, BLOCK_BYTES // (4 * values.shape[1]))
        for start in range(0, len(values), step):
            first, last = np.searchsorted(rows, (start, start + step))
            if first < last:
                yield rows[first:last], values[start : start + step][rows[first:last] - start]


@contextmanager
def _opened(path: Path, expected: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Open a file of codes to read, and explain what is wrong with one that cannot be read."""
    if not path.exists():
        raise PipelineError(f"There are no codes at {path}. Make them: python -m pipeline.extract{_flags(expected)}.")
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(
            f"{path} is damaged, or no file of codes ({reason}). Run pipeline.extract again."
        ) from error


def _flags(expected: Mapping[str, Any]) -> str:
    return "".join(f" --{name} {expected[name]}" for name in ("backbone", "layer") if name in expected)


def demand_same(spec: CodesSpec, expected: Mapping[str, Any], where: str) -> None:
    """Raise an error that names each difference between a spec and the values expected of it."""
    found = asdict(spec)
    differences = [
        f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value
    ]
    if differences:
        raise PipelineError(
            f"The codes in {where} have another spec than asked: {'; '.join(differences)}. "
            "Ask for what they are, or run pipeline.extract again."
        )


def _read_spec(file: h5py.File, path: Path) -> CodesSpec:
    if file.attrs.get("format") != FORMAT:
        raise PipelineError(f"{path} is an HDF5 file of another format than {FORMAT!r}. Run pipeline.extract again.")
    return CodesSpec(**{field.name: _plain(file.attrs[field.name]) for field in fields(CodesSpec)})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


def _read_rows(file: h5py.File, spec: CodesSpec, split: str | None) -> Codes:
    splits = np.array(_texts(file["splits"]))
    mask = np.ones(len(splits), bool) if split is None else splits == split
    rows = np.flatnonzero(mask)
    first, last = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
    within = mask[first:last]

    def column(name: str) -> tuple[str, ...]:
        return tuple(np.array(_texts(file[name]))[rows])

    return Codes(
        values=file["values"][first:last][within],
        labels=file["labels"][first:last][within],
        paths=column("paths"),
        splits=column("splits"),
        digests=column("digests"),
        classes=tuple(_texts(file["classes"])),
        spec=spec,
    )


def _texts(column: h5py.Dataset) -> list[str]:
    return [text.decode("utf-8", "surrogateescape") for text in column[()].tolist()]
