"""Codes for other tools: Parquet, NumPy's own format, CSV, Zarr and one HDF5 file, written block by block."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from pipeline import errors, files
from pipeline.codes.reader import Codes, CodesStream
from pipeline.codes.zarr_store import write_zarr

if TYPE_CHECKING:
    import pyarrow

FORMAT = "cnn-codes-table 1"
"""Name and version of the tables, in their metadata."""

METADATA_KEY = "cnn-codes"
"""The key under which Parquet's metadata hold ours."""

COLUMNS = ("path", "label", "split", "digest")
"""What stands beside the codes of each image: label has semicolons between several, and is empty without any."""


def metadata_of(codes: CodesStream) -> dict[str, object]:
    """Return what holds for all rows: the format, the spec of the codes, and the names of the classes."""
    return {"format": FORMAT, "spec": codes.spec.to_dict(), "classes": codes.classes}


def columns_of(codes: Codes[np.ndarray]) -> list[list[str]]:
    """Return the columns of `COLUMNS`."""
    return [list(codes.paths), codes.label_names(), list(codes.splits), list(codes.digests)]


def write_parquet(path: Path, codes: CodesStream) -> list[Path]:
    """Write one Parquet file: `COLUMNS`, and the codes as lists of fixed size; a row group per block."""
    errors.require_packages("To write Parquet", ["pyarrow"], "-e '.[parquet]'")
    import pyarrow
    from pyarrow import parquet

    fields = [*((name, pyarrow.string()) for name in COLUMNS), ("codes", pyarrow.list_(pyarrow.float32(), codes.width))]
    schema = pyarrow.schema(fields, {METADATA_KEY: json.dumps(metadata_of(codes))})
    with (
        files.replacing(path) as partial,
        parquet.ParquetWriter(partial, schema, use_dictionary=["label", "split"]) as writer,
    ):
        for block in codes.blocks:
            writer.write_batch(_arrow_batch(block, schema))
    return [path]


def _arrow_batch(block: Codes[np.ndarray], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    """Return a block of codes in Arrow's memory."""
    import pyarrow

    try:
        columns = [pyarrow.array(column, pyarrow.string()) for column in columns_of(block)]
    except UnicodeEncodeError as error:
        raise errors.PipelineError(
            f"The name {error.object!r} is not valid UTF-8, as all text in Parquet is. Rename it and prepare the "
            "images again, or write npy."
        ) from error
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.values.ravel()), block.values.shape[1])
    return pyarrow.record_batch([*columns, values], schema=schema)


def write_npy(path: Path, codes: CodesStream) -> list[Path]:
    """Write the codes as an array that NumPy can map into memory, and beside it a CSV of `COLUMNS` and the metadata."""
    rows, described = path.with_name(f"{path.stem}-images.csv"), path.with_suffix(".json")
    header = {"descr": "<f4", "fortran_order": False, "shape": (codes.n, codes.width)}
    with files.replacing(path) as partial, partial.open("wb") as array, files.replacing(rows) as table:
        np.lib.format.write_array_header_1_0(array, header)
        with table.open("w", **files.UTF8) as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            for block in codes.blocks:
                array.write(np.ascontiguousarray(block.values, "<f4").data)
                writer.writerows(zip(*columns_of(block), strict=True))
        files.write_json(described, metadata_of(codes))
    return [path, rows, described]


def write_csv(path: Path, codes: CodesStream) -> list[Path]:
    """Write one CSV file, `COLUMNS` and a column per feature, and beside it the metadata."""
    described = path.with_suffix(".json")
    features = (f"{codes.spec.layer}_{number}" for number in range(codes.width))
    files.write_csv(path, (*COLUMNS, *features), _csv_rows(codes.blocks))
    files.write_json(described, metadata_of(codes))
    return [path, described]


def _csv_rows(blocks: Iterable[Codes[np.ndarray]]) -> Iterator[list[Any]]:
    """Yield the cells of each row; a float32 is written with as many digits as tell it from its neighbours."""
    for block in blocks:
        for *texts, values in zip(*columns_of(block), block.values, strict=True):
            yield [*texts, *values]


def write_h5(path: Path, codes: CodesStream) -> list[Path]:
    """Write one file like those of `extract`, as from codes in several; it has the same rows and checksums."""
    file = codes.file
    with files.replacing(path) as partial, h5py.File(partial, "w") as target:
        for name in ("labels", "paths", "splits", "digests", "checksums", "classes", "bad"):
            target[name] = file[name][()]
        values = target.create_dataset("values", (codes.n, codes.width), codes.spec.dtype)
        start = 0
        for block in codes.blocks:  # whose rows fit their checksums
            values[start : start + len(block.values)] = block.values
            start += len(block.values)
        target.attrs.update({name: file.attrs[name] for name in ("spec", "checksum", "format")})
    return [path]


WRITERS: dict[str, Callable[[Path, CodesStream], list[Path]]] = {
    "parquet": write_parquet,
    "npy": write_npy,
    "csv": write_csv,
    "zarr": write_zarr,
    "h5": write_h5,
}
"""The formats by name, which is also the suffix: each writes the codes and returns the files that it wrote."""
