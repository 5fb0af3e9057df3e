"""Train on more codes than fit into memory, in a process whose memory is limited; measure its peak and its time."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.classifiers import options, persistence, search
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader, shards, stored
from pipeline.codes.spec import CodesSpec
from pipeline.codes.writer import CodesWriter, Metadata
from pipeline.images.transforms import Transform

BLOCK = 4096
TEST, IN_MEMORY = 0.02, 200_000
"""The share of test rows, and how many training rows are learned from in memory beside all of them."""

SPEC = CodesSpec(
    backbone="synthetic",
    layer="fc7",
    node="fc7",
    weights="none",
    weights_sha256="00" * 32,
    transform=Transform(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    pool="none",
    precision="fp32",
)


def write(path: Path, n: int, d: int, n_classes: int, n_shards: int = 1) -> None:
    """Write synthetic codes (n, d), sparse and with overlapping classes, to one file or to shards and their index."""
    rng = np.random.default_rng(0)
    labels = rng.integers(n_classes, size=n)
    splits = np.where(rng.random(n) < TEST, b"test", b"train")
    names = stored.encode_texts([f"{row:07}.png" for row in range(n)])
    columns = Metadata(names, labels, splits, stored.encode_texts([f"{k:03}" for k in range(n_classes)]))
    made = Blocks(rng, n_classes, d)
    if n_shards < 2:
        write_file(path, columns, made)
        return
    parts = [shards.shard_name(number, n_shards, "made-up") for number in range(n_shards)]
    for part, rows in zip(parts, np.array_split(np.arange(n), n_shards), strict=True):
        write_file(shards.folder_of(path) / part, columns.take(rows), made)
    shards.write_index(path, parts)


class Blocks:
    """Makes codes of some labels; all blocks have the same noise."""

    def __init__(self, rng: np.random.Generator, n_classes: int, d: int) -> None:
        self.rng, self.d = rng, d
        self.centres = 0.4 * rng.standard_normal((n_classes, 64), np.float32)
        self.projection = rng.standard_normal((64, d), np.float32) / 8
        self.noise = rng.standard_normal((BLOCK, d), np.float32) - np.float32(0.8)

    def make(self, labels: np.ndarray) -> np.ndarray:
        """Return codes (m, d) of m labels."""
        latent = self.centres[labels] + self.rng.standard_normal((len(labels), 64), np.float32)
        values = latent @ self.projection + self.noise[: len(labels)]
        return np.maximum(values, 0, out=values)


def write_file(path: Path, columns: Metadata, made: Blocks) -> None:
    """Write one file of codes."""
    with CodesWriter(path, SPEC, made.d, columns) as writer:
        for start in range(0, len(columns.labels), BLOCK):
            rows = range(start, min(start + BLOCK, len(columns.labels)))
            digests = [
                name.decode().removesuffix(".png").zfill(64) for name in columns.paths[start : rows.stop].tolist()
            ]
            writer.write(rows, made.make(columns.labels[rows.start : rows.stop]), digests)
        writer.commit([])


def read_rate(path: Path) -> dict[str, float]:
    """Return how fast a pass over all codes is, with checksums, over reading the bytes of the files; in one run."""
    parts, rates = shards.files_of(path), {}
    for name, read in (("bytes", read_bytes), ("codes", read_codes)):
        forget(parts)
        start = time.perf_counter()
        read(path, parts)
        rates[name] = sum(part.stat().st_size for part in parts) / (time.perf_counter() - start) / 1e6
    return {"MB_per_s": round(rates["codes"]), "disk_MB_per_s": round(rates["bytes"])}


def forget(parts: Sequence[Path]) -> None:
    """Take files out of the system's memory, so that they are read from the disk."""
    for part in parts:
        with part.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes(path: Path, parts: Sequence[Path]) -> None:
    """Read files as they are."""
    for part in parts:
        with part.open("rb", buffering=0) as file:
            while file.read(1 << 23):
                pass


def read_codes(path: Path, parts: Sequence[Path]) -> None:
    """Read codes block by block, as training does in later passes."""
    with reader.open_file(path, {}) as file:
        for start, stop in stored.block_bounds(file):
            stored.read_values(file, start, stop)


def train(path: Path, memory: str, grid: str, search_images: int) -> dict[str, float]:
    """Train in a process whose data are limited to `memory` bytes, and return its peak memory and its time."""
    limit = options.parse_bytes(memory)
    command = [sys.executable, "-m", "pipeline.classify", "--codes", str(path), "--backbone", "synthetic"]
    command += [
        "--grid",
        grid,
        "--memory",
        memory,
        "--folds",
        "3",
        "--extend-grid",
        "0",
        "--search-images",
        str(search_images),
        "--out",
        str(path.with_suffix(".skops")),
    ]
    start = time.perf_counter()
    child = subprocess.Popen(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"The training ended with status {status}.")
    return {"seconds": round(time.perf_counter() - start, 1), "peak": 1024 * usage.ru_maxrss}


def score(path: Path) -> dict[str, float]:
    """Return the accuracy on the test rows: of the classifier, and of one that learned in memory from what fits."""
    test = reader.read(path, {}, "test")
    saved = persistence.load(path.with_suffix(".skops"))
    chosen = persistence.read_metadata(path.with_suffix(".skops")).facts["chosen"]
    with reader.open_codes(path, {}, "train", 1) as codes:
        part = TrainingData.of_independent(codes.values, codes.labels).sample(IN_MEMORY, 1, 0)
        pipeline, _ = search.refit(part, "svm", chosen["normalisation"], chosen["parameters"])
    right = {"accuracy": saved.pipeline, "in_memory": pipeline}
    found = {name: round(float((one.predict(test.values) == test.labels).mean()), 4) for name, one in right.items()}
    return found | {"n_test": len(test.labels), "n_in_memory": len(part.y)}


def main() -> None:
    """Write the codes, train on them, and print memory and time as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500_000, help="rows (default: 500000)")
    parser.add_argument("--d", type=int, default=4096, help="width of the codes (default: 4096)")
    parser.add_argument("--classes", type=int, default=10, help="number of classes (default: 10)")
    parser.add_argument("--memory", default="2GB", help="memory of the training (default: 2GB)")
    parser.add_argument(
        "--grid", default="{l2: {C: [0.01, 0.1]}}", help="grid of the search (default: {l2: {C: [0.01, 0.1]}})"
    )
    parser.add_argument("--shards", type=int, default=1, help="files that the codes are cut into (default: 1)")
    parser.add_argument(
        "--search-images", type=int, default=0, help="images on which C is chosen, 0 for all (default: 0)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the codes are written (default: the system's folder for temporary files)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name, "features", "fc7.h5")
        start = time.perf_counter()
        write(path, options.n, options.d, options.classes, options.shards)
        size, written = (
            sum(part.stat().st_size for part in shards.files_of(path)),
            round(time.perf_counter() - start, 1),
        )
        print(f"{size / 1e9:.2f} GB of codes, written in {written} s", flush=True)
        rates = read_rate(path)
        print(f"{rates['MB_per_s']} MB/s of codes beside {rates['disk_MB_per_s']} MB/s of bytes", flush=True)
        costs = train(path, options.memory, options.grid, options.search_images) | rates | score(path)
    print(f"trained in {costs['seconds']} s, peak {costs['peak'] / 1e9:.2f} GB of {options.memory}")
    print(json.dumps({"n": options.n, "d": options.d, "bytes": size, "memory": options.memory} | costs))


if __name__ == "__main__":
    main()
