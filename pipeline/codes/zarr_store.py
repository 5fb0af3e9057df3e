"""Codes as Zarr, which is read chunk by chunk: the data sets of the HDF5 file, by their names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zarr

import numpy as np

from pipeline import errors, files
from pipeline.codes.reader import Codes, CodesStream
from pipeline.codes.spec import CodesSpec
from pipeline.codes.stored import TEXTS
from pipeline.texts import Texts

FORMAT = "cnn-codes-zarr 1"
SUFFIX = ".zarr"
ARRAYS = ("values", "labels", *TEXTS)


def write_zarr(path: Path, codes: CodesStream) -> list[Path]:
    """Write a Zarr group: an array per name of `ARRAYS`, chunked by rows, a block at a time in memory.

    The attributes hold the format, the spec and the names of the classes, to which `labels` are indices; they are
    written last, and without them the group is not read.
    """
    _require_zarr()
    import zarr

    with files.replacing_folder(path, mark="zarr.json"):
        group, start = zarr.open_group(path, mode="w"), 0
        arrays: dict[str, zarr.Array[Any]] = {}
        for block in codes.blocks:
            arrays = arrays or _create_arrays(group, block, codes.n)
            _write_block(arrays, block, start)
            start += len(block.values)
        group.attrs.update({"format": FORMAT, "spec": codes.spec.to_dict(), "classes": list(codes.classes)})
    return [path]


def _require_zarr() -> None:
    errors.require_packages("For Zarr", ["zarr"], "-e '.[zarr]'")


def _create_arrays(group: zarr.Group, block: Codes[np.ndarray], n: int) -> dict[str, zarr.Array[Any]]:
    """Create the arrays for n rows in chunks of as many as a block has; each chunk has a checksum, and is written."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return {
        name: group.create_array(
            name,
            shape=(n, *column.shape[1:]),
            chunks=column.shape,
            dtype=str if name in TEXTS else column.dtype,
            compressors=[ZstdCodec(), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        for name, column in _columns(block)
    }


def _columns(codes: Codes[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    yield "values", codes.values
    yield "labels", codes.labels
    for name in TEXTS:
        yield name, np.array(getattr(codes, name), dtype=object)


def _write_block(arrays: Mapping[str, zarr.Array[Any]], block: Codes[np.ndarray], start: int) -> None:
    try:
        for name, column in _columns(block):
            arrays[name][start : start + len(column)] = column
    except UnicodeEncodeError as error:
        raise errors.PipelineError(
            f"The name {error.object!r} is not valid UTF-8, as all text in Zarr is. Rename it and prepare the images "
            "again, or write npy."
        ) from error


def read_zarr(path: Path) -> Codes[np.ndarray]:
    """Read what `write_zarr` wrote, equal bit for bit; raises PipelineError if it is no such group, or damaged."""
    _require_zarr()
    import zarr

    if not path.exists():
        raise errors.PipelineError(f"There are no codes at {path}.{errors.beside(path)} Export them.")
    try:
        group = zarr.open_group(path, mode="r")
        if group.attrs.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        spec = CodesSpec.from_dict(json.loads(json.dumps(group.attrs["spec"])))
        classes = tuple(map(str, group.attrs["classes"]))  # type: ignore[arg-type]
        values, labels, *texts = (_read_array(group, name) for name in ARRAYS)
        paths, splits, digests = (Texts.of(map(str, column)) for column in texts)
        if len({len(column) for column in (values, labels, *texts)}) > 1:
            raise ValueError("its arrays have different numbers of rows")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise errors.PipelineError(
            f"{path} is damaged, or no Zarr group of codes ({errors.first_line(error)}). Export it again."
        ) from error
    return Codes(values, labels, paths, splits, digests, classes, spec)


def _read_array(group: zarr.Group, name: str) -> np.ndarray:
    """Return an array; a chunk that is missing, which zarr takes for zeros, is an error."""
    import zarr

    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no array")
    if array.nchunks_initialized != array.nchunks:
        raise ValueError(f"{array.nchunks - array.nchunks_initialized} chunks of {name} are missing")
    return np.asarray(array[:])
