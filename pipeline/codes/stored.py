"""What an HDF5 file of codes holds: rows with their metadata and checksums, and a header with the spec."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from pipeline import errors
from pipeline.codes.spec import CodesSpec, extract_settings, validate_spec
from pipeline.texts import BLOCK, Texts

FORMAT = "cnn-codes 5"

BLOCK_BYTES = 1 << 23
"""Bytes of codes that are read at a time where a whole file may not fit into memory."""

TEXTS = ("paths", "splits", "digests")
"""The columns of text."""


class StoredCodes(Protocol):
    """An open file of codes: an HDF5 file, or several that are shown as one."""

    filename: str

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The spec as JSON, the format, and the checksum of the header."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a column, which is read when it is sliced."""


@dataclass(frozen=True)
class RowMetadata:
    """The metadata of m rows as HDF5 stores it.

    labels: (m,) int64, or (m, n_classes) uint8; digests, paths, splits: (m,) bytes.
    """

    labels: np.ndarray
    digests: np.ndarray
    paths: np.ndarray
    splits: np.ndarray

    @classmethod
    def read(cls, file: StoredCodes, first: int, last: int) -> RowMetadata:
        """Read the metadata of the rows from `first` to before `last`."""
        return cls(*(file[name][first:last] for name in ("labels", "digests", "paths", "splits")))

    def take(self, rows: np.ndarray) -> RowMetadata:
        """Return the metadata of some of the rows."""
        return RowMetadata(self.labels[rows], self.digests[rows], self.paths[rows], self.splits[rows])


def read_spec(file: StoredCodes, path: Path, expected: Mapping[str, object]) -> CodesSpec:
    """Return the spec of an open file of codes; expected, and what is raised, as for `read`."""
    if file.attrs.get("format") != FORMAT:
        raise errors.PipelineError(
            f"{path} is an HDF5 file of another format than {FORMAT!r}. Extract again.", fix=extraction(path, expected)
        )
    text = file.attrs["spec"]
    if file.attrs["checksum"] != header_checksum(text, file["classes"][()].tolist(), file["bad"][()].tolist()):
        raise errors.PipelineError(
            f"{path} is damaged: its spec does not fit its checksum. Extract again.", fix=extraction(path, expected)
        )
    spec = CodesSpec.from_dict(json.loads(text))
    validate_spec(spec, expected, str(path))
    return spec


def block_bounds(*files: StoredCodes) -> Iterator[tuple[int, int]]:
    """Yield the first row of each block of about `BLOCK_BYTES` of all files together, and the row after its last."""
    count = len(files[0]["values"])
    step = max(1, BLOCK_BYTES // sum(file["values"].dtype.itemsize * file["values"].shape[1] for file in files))
    yield from ((start, min(start + step, count)) for start in range(0, count, step))


def read_values(file: StoredCodes, first: int, last: int) -> np.ndarray:
    """Return the (m, d) values of some rows in the type in which they are stored, without looking at checksums."""
    column = file["values"]
    if not isinstance(column, h5py.Dataset) or first >= last:
        rows: np.ndarray = column[first:last]
        return rows
    values = np.empty((last - first, *column.shape[1:]), column.dtype)
    column.read_direct(values, np.s_[first:last])  # slicing fills the array with zeros first
    return values


def read_rows(file: StoredCodes, first: int, last: int) -> tuple[np.ndarray, RowMetadata]:
    """Return the (m, d) float32 values of some rows and their metadata; raise PipelineError if a checksum is wrong."""
    values, metadata = read_values(file, first, last), RowMetadata.read(file, first, last)
    wrong = np.flatnonzero(row_checksums(values, metadata) != file["checksums"][first:last])
    if len(wrong):
        raise errors.PipelineError(
            f"{file.filename} is damaged: {len(wrong)} of its rows do not fit their checksums, the first is row "
            f"{first + wrong[0]}. Extract again.",
            fix=extraction(Path(file.filename), json.loads(file.attrs["spec"])),
        )
    return values.astype(np.float32, copy=False), metadata


def read_texts(file: StoredCodes, rows: np.ndarray) -> Iterator[Texts]:
    """Yield the columns of text of some rows in the order of `TEXTS`; rows: (m,) increasing int64 row numbers."""
    parts: dict[str, list[Texts]] = {name: [] for name in TEXTS}
    for start in range(0, len(file["values"]), BLOCK):
        first, last = np.searchsorted(rows, (start, start + BLOCK))
        chosen = rows[first:last] - start
        for name in TEXTS:
            parts[name].append(Texts.of_column(file[name][start : start + BLOCK][chosen]))
    yield from (Texts.joined(parts.pop(name)) for name in TEXTS)


def row_checksums(values: np.ndarray, metadata: RowMetadata) -> np.ndarray:
    """Return (m,) uint32: for each row the CRC-32 of its values, label, digest, path and split together.

    It finds a flipped bit, and a row that has another's label or path.
    """
    columns = (metadata.labels, metadata.digests, metadata.paths, metadata.splits)
    rows = zip(np.ascontiguousarray(values), *(column.tolist() for column in columns), strict=True)
    checksums = [
        zlib.crc32(b"\0".join((str(label).encode(), *texts)), zlib.crc32(code)) for code, label, *texts in rows
    ]
    return np.array(checksums, dtype=np.uint32)


def header_checksum(spec: str, classes: Sequence[bytes], bad: Sequence[bytes]) -> int:
    """Return the CRC-32 of all that belongs to a file as a whole; spec: as JSON."""
    return zlib.crc32(repr((spec, list(classes), list(bad))).encode())


def extraction(path: Path, expected: Mapping[str, object]) -> list[errors.Fix]:
    """Return the command that writes the codes at a path; none where `extract` gives its file another name."""
    settings = {"layer": path.stem, **extract_settings(expected), "out": path.parent}
    return [errors.Fix("extract", settings)] if path.name == f"{settings['layer']}.h5" else []


def decode_texts(column: np.ndarray) -> tuple[str, ...]:
    """Return a column of bytes as text; file names that are not valid UTF-8 keep their bytes (surrogateescape)."""
    return tuple(text.decode("utf-8", "surrogateescape") for text in column.tolist())


def encode_texts(column: Sequence[str]) -> np.ndarray:
    """Return a column of text as bytes of a fixed length, the inverse of `decode_texts`."""
    return np.array([text.encode("utf-8", "surrogateescape") for text in column], dtype="S")
