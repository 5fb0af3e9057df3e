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
from pathlib import Path

import numpy as np

from pipeline.classifiers import options
from pipeline.codes import stored
from pipeline.codes.spec import CodesSpec
from pipeline.codes.writer import CodesWriter, Metadata
from pipeline.images.transforms import Transform

BLOCK = 4096
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


def write(path: Path, n: int, d: int, n_classes: int) -> None:
    """Write synthetic codes (n, d), sparse and with overlapping classes; all blocks have the same noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(n_classes, size=n)
    names = stored.encode_texts([f"{row:07}.png" for row in range(n)])
    columns = Metadata(names, labels, np.full(n, b"train"), stored.encode_texts([f"{k:03}" for k in range(n_classes)]))
    centres = 0.4 * rng.standard_normal((n_classes, 64), np.float32)
    projection = rng.standard_normal((64, d), np.float32) / 8
    noise = rng.standard_normal((BLOCK, d), np.float32) - np.float32(0.8)
    with CodesWriter(path, SPEC, d, columns) as writer:
        for start in range(0, n, BLOCK):
            rows = range(start, min(start + BLOCK, n))
            latent = centres[labels[rows]] + rng.standard_normal((len(rows), 64), np.float32)
            values = latent @ projection + noise[: len(rows)]
            writer.write(rows, np.maximum(values, 0, out=values), [f"{row:064x}" for row in rows])
        writer.commit([])


def train(path: Path, memory: str, grid: str) -> dict[str, float]:
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
        "--out",
        str(path.with_suffix(".skops")),
    ]
    start = time.perf_counter()
    child = subprocess.Popen(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"The training ended with status {status}.")
    return {"seconds": round(time.perf_counter() - start, 1), "peak": 1024 * usage.ru_maxrss}


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
    parser.add_argument(
        "--folder", type=Path, help="where the codes are written (default: the system's folder for temporary files)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name, "features", "fc7.h5")
        start = time.perf_counter()
        write(path, options.n, options.d, options.classes)
        size, written = path.stat().st_size, round(time.perf_counter() - start, 1)
        print(f"{size / 1e9:.2f} GB of codes, written in {written} s", flush=True)
        costs = train(path, options.memory, options.grid)
    print(f"trained in {costs['seconds']} s, peak {costs['peak'] / 1e9:.2f} GB of {options.memory}")
    print(json.dumps({"n": options.n, "d": options.d, "bytes": size, "memory": options.memory} | costs))


if __name__ == "__main__":
    main()
