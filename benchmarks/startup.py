"""Time how soon commands answer: `--help` of each, and `predict` of one image with a classifier that is there."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from benchmarks import ENVIRONMENT
from benchmarks.finetune import write_photos
from pipeline.command_line import run_command
from pipeline.config import COMMANDS


def seconds(*arguments: str) -> float:
    """Return the wall-clock seconds of a command in a process of its own."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *arguments],
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def train() -> None:
    """Make a dataset of photographs and a classifier, in the working folder."""
    write_photos(Path("photos"), 24)
    with redirect_stdout(StringIO()):
        for command, *flags in (("prepare",), ("extract",), ("classify", "--folds", "2")):
            if run_command(command, ["--dataset", "photos", "--quiet", *flags]):
                raise SystemExit(f"{command} failed.")


def main() -> None:
    """Measure, and print the figures as JSON on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the medians are reported (default: 3)")
    rounds = range(parser.parse_args().rounds)
    times = {
        command: statistics.median(seconds(f"pipeline.{command}", "--help") for _ in rounds) for command in COMMANDS
    }
    torch = statistics.median(seconds("timeit", "-n1", "-r1", "import torch") for _ in rounds)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        train()
        flags = ("--classifier", "models/photos/tinyvgg/fc7-svm.skops", "photos/class0/0.jpg")
        predict = statistics.median(seconds("pipeline.predict", *flags) for _ in rounds)
    for command, value in times.items():
        print(f"{command} --help {value:.2f} s")
    slowest = max(times.values())
    figures = {"slowest_help": slowest, "predict_one_image": predict, "import_torch": torch}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
