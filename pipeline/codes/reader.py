"""The HDF5 file of CNN codes: its spec, its checksums, and how it is read and verified."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline import errors
from pipeline.codes.spec import JOINED_FIELDS, LAYER_SEPARATOR, CodesSpec, join_codes, join_specs, validate_spec

FORMAT = "cnn-codes 5"

BLOCK_BYTES = 1 << 23
"""What is read at a time where a whole file may not fit into memory."""

COLUMNS = ("labels", "digests", "paths", "splits")
"""What stands beside the values, row by row."""


@dataclass(frozen=True)
class Codes:
    """CNN codes, one row an image.

    values: (n, d) float32, >= 0 after a ReLU, or (n, n_views × d), the views of an image side by side; labels: (n,)
    int64, indices into `classes`; paths, splits: n each; digests: n SHA-256 of the images' bytes, in hex; classes:
    sorted class names; spec: what the codes are. Of several labels an image they are (n, n_classes) uint8, 1 for each
    class that is there. The values may be `StoredRows`.
    """

    values: Any
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


class StoredRows:
    """The codes of some rows of an open file, (n, d) float32, read when a slice of them is asked for.

    Rows are checked against their checksums when they are first read. The last slice is kept: a pass that multiplies
    by a block and by its transpose reads it once.
    """

    def __init__(self, file: h5py.File, rows: np.ndarray) -> None:
        self.file, self.rows, self.checked = file, rows, np.zeros(len(rows), bool)
        self.last: tuple[slice, np.ndarray] = slice(0), np.empty(0)
        self.shape, self.dtype = (len(rows), file["values"].shape[1]), np.dtype(np.float32)

    def __getitem__(self, part: slice) -> np.ndarray:
        if self.last[0] != part:
            self.last = slice(0), np.empty(0)  # one block at a time is in memory
            self.last = part, self._read(part)
        return self.last[1]

    def _read(self, part: slice) -> np.ndarray:
        rows = self.rows[part]
        if not len(rows):
            return np.empty((0, self.shape[1]), np.float32)
        first, last = int(rows[0]), int(rows[-1]) + 1
        if self.checked[part].all():
            values = self.file["values"][first:last].astype(np.float32, copy=False)
        else:
            values, _ = read_rows(self.file, first, last)
            self.checked[part] = True
        return values if len(values) == len(rows) else values[rows - first]


def read(path: Path, expected: Mapping[str, Any], split: str | None = None) -> Codes:
    """Read the codes of one split (or all) from a file whose spec has the `expected` values; refuse any other."""
    with open_file(path, expected) as file:
        mask, spec, classes = _select_split(file, path, expected, split)
        rows = np.flatnonzero(mask)
        first, last = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        values, columns = read_rows(file, first, last)
        within = mask[first:last]
        columns = {name: column[within] for name, column in columns.items()}
        return _with_metadata(values if within.all() else values[within], columns, classes, spec)


@contextmanager
def open_codes(path: Path, expected: Mapping[str, Any], split: str, memory: int | None) -> Iterator[Codes]:
    """Lend what `read` gives; where the values would take more than `memory` bytes, they are `StoredRows`."""
    if LAYER_SEPARATOR in path.stem:
        if memory is not None:
            raise errors.PipelineError(
                "Codes of several layers are joined in memory. Leave --memory out, or take one layer."
            )
        yield read_layers(path, expected, split)
        return
    with ExitStack() as stack:
        with open_file(path, expected) as file:
            mask, spec, classes = _select_split(file, path, expected, split)
            if memory is None or 4 * int(mask.sum()) * file["values"].shape[1] <= memory:
                found = read(path, expected, split)
            else:
                columns = {name: file[name][()][mask] for name in COLUMNS}
                stored = StoredRows(stack.enter_context(h5py.File(path)), np.flatnonzero(mask))
                found = _with_metadata(stored, columns, classes, spec)
        yield found


def _select_split(
    file: h5py.File, path: Path, expected: Mapping[str, Any], split: str | None
) -> tuple[np.ndarray, CodesSpec, tuple[str, ...]]:
    """Return which rows of a file are of a split, (n,) bool, with the spec it must have, and its classes."""
    spec = read_spec(file, path)
    validate_spec(spec, expected, str(path))
    splits = file["splits"][()]
    mask = np.ones(len(splits), bool) if split is None else splits == split.encode()
    return mask, spec, decode_texts(file["classes"][()])


def _with_metadata(values: Any, columns: Mapping[str, np.ndarray], classes: tuple[str, ...], spec: CodesSpec) -> Codes:
    named = {name: decode_texts(columns[name]) for name in ("paths", "splits", "digests")}
    return Codes(values=values, labels=columns["labels"], classes=classes, spec=spec, **named)


def read_layers(path: Path, expected: Mapping[str, Any], split: str | None = None) -> Codes:
    """Read codes as `read` does; from a path like fc6+fc7.h5 those of several files, joined into one row an image."""
    names = path.stem.split(LAYER_SEPARATOR)
    if len(names) == 1:
        return read(path, expected, split)
    parts = []
    for number, name in enumerate(names):
        asked = {key: _expected_of_part(key, value, number) for key, value in expected.items()}
        parts.append(read(path.with_name(f"{name}{path.suffix}"), asked, split))
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        rows = [(one.paths, one.digests, one.splits, one.classes, one.labels.tolist()) for one in (part, first)]
        if rows[0] != rows[1]:
            raise errors.PipelineError(
                f"{name}.h5 and {names[0]}.h5 hold other images, or other labels. Extract all layers in one run."
            )
    spec = join_specs([part.spec for part in parts])
    return replace(first, values=join_codes([part.values for part in parts], spec), spec=spec)


def _expected_of_part(key: str, value: Any, number: int) -> Any:
    """Return what is expected of one of several layers."""
    return value.split(LAYER_SEPARATOR)[number] if key in JOINED_FIELDS and LAYER_SEPARATOR in value else value


def flatten_views(found: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the codes of all views, (n × n_views, d), with their labels and the numbers of their images.

    The numbers are None where each image has one view.
    """
    number, count = found.spec.n_views, len(found.labels)
    if number == 1 or not count:
        return found.values, found.labels, None
    values = found.values.reshape(count * number, -1)
    return values, np.repeat(found.labels, number), np.repeat(np.arange(count), number)


def read_index(path: Path, expected: Mapping[str, Any]) -> CodesIndex:
    """Read all but the values of a file whose spec has the `expected` values; refuse any other."""
    with open_file(path, expected) as file:
        spec = read_spec(file, path)
        validate_spec(spec, expected, str(path))
        paths, splits, digests, classes, bad = (
            decode_texts(file[name][()]) for name in ("paths", "splits", "digests", "classes", "bad")
        )
        width = file["values"].shape[1]
        return CodesIndex(path, file["labels"][()], paths, splits, digests, classes, spec, width, bad)


def blocks(path: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some of `rows` at a time with their (m, d) float32 values; one block at a time is in memory.

    rows: increasing int64 row numbers.
    """
    with open_file(path, {}) as file:
        for start, stop in block_bounds(file):
            first, last = np.searchsorted(rows, (start, stop))
            if first < last:
                yield rows[first:last], read_rows(file, start, stop)[0][rows[first:last] - start]


def block_bounds(file: h5py.File) -> Iterator[tuple[int, int]]:
    """Yield the first and last row of each block of about `BLOCK_BYTES`."""
    count, width = file["values"].shape
    step = max(1, BLOCK_BYTES // (file["values"].dtype.itemsize * width))
    yield from ((start, min(start + step, count)) for start in range(0, count, step))


def read_rows(file: h5py.File, first: int, last: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the (m, d) float32 values of some rows and what stands beside them, checked against their checksums."""
    values = file["values"][first:last]
    columns = {name: file[name][first:last] for name in COLUMNS}
    wrong = np.flatnonzero(row_checksums(values, columns) != file["checksums"][first:last])
    if len(wrong):
        raise errors.PipelineError(
            f"{file.filename} is damaged: {len(wrong)} of its rows do not fit their checksums, the first is row "
            f"{first + wrong[0]}. Run pipeline.extract again."
        )
    return values.astype(np.float32, copy=False), columns


def row_checksums(values: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (m,) uint32: for each row the CRC-32 of its values, label, digest, path and split together.

    So a flipped bit is found, and so is a row that stands beside another's label or path.
    """
    beside = zip(*(columns[name].tolist() for name in COLUMNS), strict=True)
    sums = [
        zlib.crc32(b"\0".join((str(label).encode(), *rest)), zlib.crc32(row))
        for row, (label, *rest) in zip(np.ascontiguousarray(values), beside, strict=True)
    ]
    return np.array(sums, dtype=np.uint32)


def header_checksum(spec: str, classes: Sequence[bytes], bad: Sequence[bytes]) -> int:
    """Return the CRC-32 of all that belongs to a file as a whole; spec: as JSON."""
    return zlib.crc32(repr((spec, list(classes), list(bad))).encode())


@contextmanager
def open_file(path: Path, expected: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Open a file of codes to read, and explain what is wrong with one that cannot be read."""
    if not path.exists():
        raise errors.PipelineError(
            f"There are no codes at {path}. Make them: python -m pipeline.extract{_flags(expected)}."
        )
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise errors.PipelineError(
            f"{path} is damaged, or no file of codes ({reason}). Run pipeline.extract again."
        ) from error


def _flags(expected: Mapping[str, Any]) -> str:
    return "".join(
        f" --{name} {str(expected[name]).replace(LAYER_SEPARATOR, ' ')}"
        for name in ("backbone", "layer")
        if name in expected
    )


def read_spec(file: h5py.File, path: Path) -> CodesSpec:
    """Return the spec of an open file of codes, checked against its checksum."""
    if file.attrs.get("format") != FORMAT:
        raise errors.PipelineError(
            f"{path} is an HDF5 file of another format than {FORMAT!r}. Run pipeline.extract again."
        )
    spec = file.attrs["spec"]
    if file.attrs["checksum"] != header_checksum(spec, file["classes"][()].tolist(), file["bad"][()].tolist()):
        raise errors.PipelineError(
            f"{path} is damaged: its spec does not fit its checksum. Run pipeline.extract again."
        )
    return CodesSpec.from_dict(json.loads(spec))


def decode_texts(column: np.ndarray) -> tuple[str, ...]:
    """Return a column of bytes as text; file names that are no UTF-8 keep their bytes (surrogateescape)."""
    return tuple(text.decode("utf-8", "surrogateescape") for text in column.tolist())


def encode_texts(column: Sequence[str]) -> np.ndarray:
    """Return a column of text as bytes of a fixed length, what `texts` undoes."""
    return np.array([text.encode("utf-8", "surrogateescape") for text in column], dtype="S")
