"""Measure the report of many images and classes, and how soon its page opens in Chromium."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer

from pipeline.classifiers import persistence, solvers
from pipeline.codes import stored
from pipeline.codes.spec import CodesSpec
from pipeline.codes.writer import CodesWriter, Metadata
from pipeline.command_line import run_command
from pipeline.images.transforms import Transform

ADDRESS = ("--dataset", "many", "--backbone", "tinyvgg", "--layer", "fc7", "--model", "softmax")
SPEC = CodesSpec(
    *("tinyvgg", "fc7", "classifier.4", "default", "ab" * 32),
    Transform(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    *("none", "fp32"),
)
IMAGE_FILES = 256


def write_images(folder: Path, names: list[str]) -> None:
    """Write a few noisy images of 96 × 64 pixels, and link every name to one of them."""
    rng = np.random.default_rng(0)
    for number in range(IMAGE_FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        coarse.resize((96, 64)).save(folder / f"image-{number}.jpg")
    for number, name in enumerate(names):
        os.link(folder / f"image-{number % IMAGE_FILES}.jpg", folder / name)


def make(n_train: int, n_test: int, n_classes: int, width: int) -> None:
    """Write the codes, images, classifier and scores of a synthetic dataset on which mistakes are frequent."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((n_classes, width), np.float32)
    labels = np.arange(n_train + n_test) % n_classes
    names = [f"{number:07}.jpg" for number in range(len(labels))]
    classes = [f"class {number:04}" for number in range(n_classes)]
    folder = Path("data/many")
    folder.mkdir(parents=True)
    write_images(folder, names)
    splits = stored.encode_texts(["train"] * n_train + ["test"] * n_test)
    columns = Metadata(stored.encode_texts(names), labels, splits, stored.encode_texts(classes))
    with CodesWriter(Path("features/many/tinyvgg/fc7.h5"), SPEC, width, columns) as writer:
        for rows in np.array_split(np.arange(len(labels)), max(1, len(labels) // 5000)):
            values = np.maximum(centres[labels[rows]] + 4.4 * rng.standard_normal((len(rows), width), np.float32), 0)
            writer.write(rows.tolist(), values, [f"{row:064x}" for row in rows])
        writer.commit([])
    model = solvers.Softmax()
    model.coef_, model.intercept_ = np.maximum(centres, 0), np.zeros(n_classes, np.float32)
    model.classes_, model.n_features_in_ = np.arange(n_classes), width
    pipeline = Pipeline([("normalise", Normalizer().fit(centres[:2])), ("classify", model)])
    facts = {"cv": [], "chosen": {}, "n_train": n_train}
    persistence.save(
        Path("models/many/tinyvgg/fc7-softmax.skops"),
        persistence.SavedClassifier(pipeline, SPEC, tuple(classes)),
        facts,
    )
    run_command("evaluate", ADDRESS)


def opening(page: Path) -> float:
    """Return the seconds from the request of the page until it is drawn and has answered a click."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto("about:blank")
        start = time.perf_counter()
        tab.goto(page.resolve().as_uri())
        tab.locator("[data-pick='0']").click()
        tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds = time.perf_counter() - start
        browser.close()
    return seconds


def main() -> None:
    """Make the dataset, write the report, open it, and print times and sizes, as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=100_000, help="number of training images")
    parser.add_argument("--test", type=int, default=100_000, help="number of test images")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes")
    parser.add_argument("--width", type=int, default=512, help="width of the codes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make(options.train, options.test, options.classes, options.width)
        with h5py.File("features/many/tinyvgg/fc7.h5") as file:
            size = file["values"].nbytes
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline.report"], check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        of_cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6
        page = Path("reports/index.html")
        print(
            f"{options.train} training and {options.test} test images, {options.classes} classes, {size / 1e6:.0f} MB"
        )
        megabytes = page.stat().st_size / 1e6
        print(f"report: {seconds:.1f} s, {of_cpu:.1f} s of CPU, peak {peak:.2f} GB; page {megabytes:.1f} MB")
        opened = opening(page)
        print(f"opens in {opened:.2f} s")
    facts = {"train": options.train, "test": options.test, "classes": options.classes, "width": options.width}
    costs = {"seconds": seconds, "CPU_seconds": of_cpu, "peak_GB": peak, "seconds_to_open": opened}
    print(json.dumps(facts | {name: round(value, 2) for name, value in costs.items()}))


if __name__ == "__main__":
    main()
