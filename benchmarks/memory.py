"""Measure the peak memory of an extraction at several numbers of images, each in a separate process."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import ENVIRONMENT


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG files of noise, 96 × 72 pixels each, in two classes."""
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8))
        image.save(folder / ("one", "other")[number % 2] / f"{number}.jpg")


def peak(stage: str, *flags: str, cwd: Path) -> int:
    """Run a stage of the pipeline and return its peak resident memory, in bytes."""
    os.chdir(cwd)
    command = [sys.executable, "-m", f"pipeline.{stage}", *flags]
    child = os.posix_spawn(sys.executable, command, ENVIRONMENT)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"pipeline.{stage} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure, and print the figures as a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[2000, 20000], help="numbers of images (default: 2000 20000)"
    )
    parser.add_argument("--layer", default="pool3", help="layer of tinyvgg (default: pool3)")
    options = parser.parse_args()
    peaks = {}
    for count in options.counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_photos(folder / "photos", count)
            peak("prepare", "--dataset", "photos", cwd=folder)
            flags = ("--dataset", "photos", "--layer", options.layer, "--compile", "no")
            peaks[count] = peak("extract", *flags, cwd=folder)
    first = peaks[options.counts[0]]
    print(json.dumps({"peak_bytes": peaks, "over_first": {n: round(value / first, 4) for n, value in peaks.items()}}))


if __name__ == "__main__":
    main()
