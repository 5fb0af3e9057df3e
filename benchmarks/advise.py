"""Check the advice against test accuracy, and measure the cost of all layers and the gain from several views."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from pipeline.command_line import run_command
from pipeline.data.manifest import read_manifest
from pipeline.extraction import runner
from pipeline.images import parallel
from pipeline.networks import backbones, layer_nodes
from pipeline.networks.frozen import FrozenNetwork

GRID = "{l2: {C: [1, 10, 100, 1000]}}"
VIEWS = (("one", ()), ("ten", ("--resize", "73")), ("cnnaug", ()))


def call(stage: str, *arguments: str) -> None:
    """Run a command in this process and drop its output."""
    with redirect_stdout(StringIO()):
        if run_command(stage, arguments):
            raise SystemExit(f"{arguments} failed.")


def test_score(dataset: str, backbone: str, layer: str, grid: str = GRID) -> dict[str, float]:
    """Train an SVM on the codes of an extracted layer and return its test metrics."""
    address = ("--dataset", dataset, "--backbone", backbone, "--layer", layer, "--model", "svm")
    call("classify", *address, "--folds", "3", "--grid", grid)
    call("evaluate", *address)
    return json.loads(Path("reports", dataset, backbone, f"{layer}-svm", "metrics.json").read_text())


def compare_layers(dataset: str, backbone: str, weights: str, pool: str) -> None:
    """Print the layer that advise recommends, and the test accuracy of every layer."""
    shared = ("--dataset", dataset, "--backbone", backbone, "--weights", weights, "--pool", pool)
    call("advise", *shared, "--images", "2000", "--folds", "3")
    advice = json.loads(Path("reports", dataset, backbone, "advice", "advice.json").read_text())
    layers = [layer["layer"] for layer in advice["layers"]]
    call("extract", *shared, "--layer", *layers)
    scores = {layer: test_score(dataset, backbone, layer) for layer in layers}
    best = max(scores, key=lambda layer: scores[layer]["top1"])
    recommended = advice["advice"]["layer"]
    for layer in layers:
        m = scores[layer]
        print(f"  {layer:<8} {m['top1']:.4f} ({m['top1_low']:.4f}–{m['top1_high']:.4f}), n = {m['n']}")
    inside = scores[recommended]["top1"] >= scores[best]["top1_low"]
    print(f"{dataset}, {backbone} ({weights}): recommends {recommended}, best is {best}; within its interval: {inside}")
    print("  " + "\n  ".join(advice["advice"]["sentences"]), flush=True)


def compare_views(dataset: str, layer: str) -> None:
    """Print the test accuracy with one, ten and sixteen views per image, for two normalisations of the codes."""
    for views, flags in VIEWS:
        call("extract", "--dataset", dataset, "--layer", layer, "--views", views, *flags)
        for grid in (GRID, GRID.replace("l2", "sqrt")):
            m = test_score(dataset, "tinyvgg", layer, grid)
            span = f"{m['top1_low']:.4f}–{m['top1_high']:.4f}"
            print(
                f"  {dataset} {layer}, views {views}, {grid[1:5]}: {m['top1']:.4f} ({span}), n = {m['n']}", flush=True
            )


def time_extraction(dataset: str, network: FrozenNetwork) -> float:
    """Return the seconds from image files to the files of codes of all layers of a network."""
    manifest = read_manifest(Path("data", dataset))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        start = time.perf_counter()
        runner.extract(runner.Extraction(manifest, 0, parallel.default_threads(), "no"), network, Path(folder, "codes"))
        return time.perf_counter() - start


def compare_costs(dataset: str, backbone: str, weights: str, rounds: int) -> None:
    """Print the time for all layers and for the deepest alone; the two alternate."""
    layers = list(layer_nodes.named_layers(backbones.get(backbone)))
    networks = [FrozenNetwork(backbone, names, weights, "avg") for names in (layers, layers[-1:])]
    seconds = [[time_extraction(dataset, network) for network in networks] for _ in range(rounds)]
    all_layers, deepest = (min(column) for column in zip(*seconds, strict=True))
    print(
        f"{dataset}, {backbone}: all {len(layers)} layers {all_layers:.2f} s, {layers[-1]} alone {deepest:.2f} s, "
        f"ratio {all_layers / deepest:.3f} (the best of {rounds} rounds)",
        flush=True,
    )


def main() -> None:
    """Run one of the measurements in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurement", choices=("layers", "costs", "views"))
    parser.add_argument("--photos", type=Path, required=True, help="a folder of images, split into train and test")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the costs (default: 4)")
    options = parser.parse_args()
    photos = options.photos.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        call("prepare", "--dataset", str(photos))
        call("prepare", "--dataset", "digits")
        if options.measurement == "layers":
            for dataset in (photos.name, "digits"):
                compare_layers(dataset, "tinyvgg", "default", "avg4")
                compare_layers(dataset, "resnet18", "random", "avg")
        elif options.measurement == "views":
            compare_views(photos.name, "fc7")
            compare_views("digits", "fc7")
        else:
            compare_costs("digits", "tinyvgg", "default", options.rounds)
            compare_costs(photos.name, "tinyvgg", "default", options.rounds)
            compare_costs(photos.name, "resnet18", "random", options.rounds)


if __name__ == "__main__":
    main()
