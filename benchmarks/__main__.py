"""Run a short version of all benchmarks, and print one table.

The figures of a short version are rough: few images, one round. `benchmarks/README.md` has those of the long ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.finetune import write_photos
from pipeline.command_line import run_command

PHOTOS, CODES = "PHOTOS", "CODES"
"""What stands in the flags below for a folder of photographs, and for a file of codes."""

EFFICIENTNET = ("--backbone", "efficientnet_lite0", "--compile", "onnxruntime")


class Benchmark(NamedTuple):
    """A module, the flags of its short version, and the figures of its JSON that the table shows."""

    module: str
    flags: Sequence[str]
    figures: Sequence[str]


SHORT = (
    Benchmark("startup", ("--rounds", "1"), ("slowest_help", "predict_one_image", "import_torch")),
    Benchmark(
        "extract",
        ("--images", PHOTOS, "--count", "64", "--rounds", "1", *EFFICIENTNET),
        ("end_to_end_over_forward", "end_to_end_over_serial", "end_to_end_over_dataloader"),
    ),
    Benchmark(
        "large_photos",
        ("--images", PHOTOS, "--count", "12", "--rounds", "1", "--compile", "onnxruntime"),
        ("decode_ratio", "end_to_end_ratio", "lowest_cosine"),
    ),
    Benchmark("classify", ("--n", "400", "--d", "1280", "--classes", "10", "--density", "dense"), ("svm", "softmax")),
    Benchmark("finetune", ("--count", "24", "--batch", "4", "--rounds", "1"), ("modern_over_the_tutorials_batch",)),
    Benchmark("memory", ("--counts", "500", "2000"), ("over_first",)),
    Benchmark("on_disk", ("--n", "40000", "--d", "512", "--memory", "1GB"), ("seconds", "peak")),
    Benchmark("tables", ("--n", "50000"), ("seconds", "peak_MB", "rows_that_differ")),
    Benchmark("report", ("--train", "1000", "--test", "1000", "--classes", "20"), ("seconds", "seconds_to_open")),
    Benchmark("audit", (CODES, "--draws", "1", "--shares", "0.1"), ("precision", "recall")),
    Benchmark("suggest", (CODES, "--rounds", "3", "--draws", "1"), ("labels_for_95%",)),
)


def digits_codes(folder: Path) -> Path:
    """Extract the embedded digits, and return the file of their codes."""
    with redirect_stdout(StringIO()):
        run_command("prepare", ["--quiet", "--out", str(folder / "digits")])
        run_command("extract", ["--quiet", "--dataset", str(folder / "digits"), "--out", str(folder)])
    return folder / "fc7.h5"


def run(benchmark: Benchmark, inputs: dict[str, str]) -> dict[str, Any]:
    """Run a benchmark in a process of its own, and return the JSON of its last line."""
    flags = [inputs.get(flag, flag) for flag in benchmark.flags]
    command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", *flags]
    print(f"$ python -m benchmarks.{benchmark.module} {' '.join(flags)}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result | ratios(result) if benchmark.module == "classify" else result


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return how many times as fast as the faster of scikit-learn's our search is, for each model."""
    seconds = {row["name"]: row["seconds"] for row in result["runs"]}
    return {
        model: round(min(value for name, value in seconds.items() if name.startswith(f"{model}: L")) / ours, 2)
        for model, ours in ((name.partition(":")[0], value) for name, value in seconds.items() if "ours" in name)
    }


def main() -> None:
    """Run all, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--images", type=Path, help="folder with JPEG photos (default: made ones)")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name:
        photos = options.images or write_photos(Path(name, "photos"), 64)
        inputs = {PHOTOS: str(photos.resolve()), CODES: str(digits_codes(Path(name)))}
        for benchmark in SHORT:
            start = time.perf_counter()
            result = run(benchmark, inputs)
            figures = ", ".join(f"{figure} {result[figure]}" for figure in benchmark.figures)
            lines.append(f"{benchmark.module:<13} {time.perf_counter() - start:6.0f} s  {figures}")
    print("benchmark      took    figures (ratios: how many times as fast, or as much)")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
