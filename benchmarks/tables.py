"""Write the codes of many images as Parquet; measure peak memory and time, and compare what comes back bit for bit."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pyarrow import parquet

from benchmarks import on_disk
from pipeline.codes import reader
from pipeline.codes.tables import COLUMNS, columns_of

CODES = Path("features/many/synthetic/fc7.h5")
OUT = Path("exports/many/synthetic/fc7.parquet")


def export() -> dict[str, float]:
    """Export in a process of its own; return its peak memory in MB and its time in seconds."""
    command = [sys.executable, "-m", "pipeline.export", "--codes", "parquet", "--dataset", "many"]
    start = time.perf_counter()
    subprocess.run([*command, "--backbone", "synthetic", "--layer", "fc7"], check=True)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "peak_MB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000),
        "codes_MB": round(CODES.stat().st_size / 1e6),
        "parquet_MB": round(OUT.stat().st_size / 1e6),
    }


def differing_rows() -> int:
    """Return how many rows of the Parquet file differ in any bit of the codes, or in path, label, split or digest."""
    file, different = parquet.ParquetFile(OUT), 0
    tables = (file.read_row_group(number) for number in range(file.num_row_groups))
    with reader.open_stream(CODES, {}) as codes:
        for table, block in zip(tables, codes.blocks, strict=True):
            values = table["codes"].combine_chunks().flatten().to_numpy().reshape(block.values.shape)
            wrong = (values.view(np.uint32) != block.values.view(np.uint32)).any(1)
            for name, column in zip(COLUMNS, columns_of(block), strict=True):
                wrong |= np.array(table[name].to_pylist()) != np.array(column)
            different += int(wrong.sum())
    return different


def main() -> None:
    """Write codes, export them, read them back, and print the figures as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="rows (default: 1000000)")
    parser.add_argument("--d", type=int, default=512, help="width of the codes (default: 512)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        on_disk.write(CODES, options.n, options.d, n_classes=10)
        costs = export()
        print(json.dumps({"n": options.n, "d": options.d} | costs | {"rows_that_differ": differing_rows()}))


if __name__ == "__main__":
    main()
