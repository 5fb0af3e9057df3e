"""Whether advice is good and cheap: its layer beside the best by test accuracy, all layers' cost, what views bring."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from pipeline import advise, classify, evaluate, extract, prepare
from pipeline.data.manifest import read_manifest
from pipeline.extraction import runner
from pipeline.images import parallel
from pipeline.networks import backbones
from pipeline.networks.frozen import FrozenNetwork

GRID = "{l2: {C: [1, 10, 100, 1000]}}"
VIEWS = (("one", ()), ("ten", ("--resize", "73")), ("cnnaug", ()))


def call(stage: object, *arguments: str) -> None:
    """Run a command in this process, without what it prints."""
    with redirect_stdout(StringIO()):
        if stage.main(list(arguments)):  # type: ignore[attr-defined]
            raise SystemExit(f"{arguments} failed.")


def test_score(dataset: str, backbone: str, layer: str, grid: str = GRID) -> dict[str, float]:
    """Train and score an SVM on a layer that was extracted."""
    address = ("--dataset", dataset, "--backbone", backbone, "--layer", layer, "--model", "svm")
    call(classify, *address, "--folds", "3", "--grid", grid)
    call(evaluate, *address)
    return json.loads(Path("reports", dataset, backbone, f"{layer}-svm", "metrics.json").read_text())


def compare_layers(dataset: str, backbone: str, weights: str, pool: str) -> None:
    """Print the layer that advise names, and the test accuracy of every layer."""
    shared = ("--dataset", dataset, "--backbone", backbone, "--weights", weights, "--pool", pool)
    call(advise, *shared, "--images", "2000", "--folds", "3")
    told = json.loads(Path("reports", dataset, backbone, "advice", "advice.json").read_text())
    layers = [layer["layer"] for layer in told["layers"]]
    call(extract, *shared, "--layer", *layers)
    found = {layer: test_score(dataset, backbone, layer) for layer in layers}
    best = max(found, key=lambda layer: found[layer]["top1"])
    named = told["advice"]["layer"]
    for layer in layers:
        m = found[layer]
        print(f"  {layer:<8} {m['top1']:.4f} ({m['top1_low']:.4f}–{m['top1_high']:.4f}), n = {m['n']}")
    inside = found[named]["top1"] >= found[best]["top1_low"]
    print(f"{dataset}, {backbone} ({weights}): names {named}, best is {best}; within its interval: {inside}")
    print("  " + "\n  ".join(told["advice"]["sentences"]), flush=True)


def compare_views(dataset: str, layer: str) -> None:
    """Print the test accuracy with one, ten and sixteen views of each image, L2-normalised and with square roots."""
    for views, flags in VIEWS:
        call(extract, "--dataset", dataset, "--layer", layer, "--views", views, *flags)
        for grid in (GRID, GRID.replace("l2", "sqrt")):
            m = test_score(dataset, "tinyvgg", layer, grid)
            span = f"{m['top1_low']:.4f}–{m['top1_high']:.4f}"
            print(
                f"  {dataset} {layer}, views {views}, {grid[1:5]}: {m['top1']:.4f} ({span}), n = {m['n']}", flush=True
            )


def time_extraction(dataset: str, network: FrozenNetwork) -> float:
    """Return the seconds that the codes of all of a network's layers take, from files to files."""
    manifest = read_manifest(Path("data", dataset))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        start = time.perf_counter()
        runner.extract(runner.Extraction(manifest, 0, parallel.default_threads(), "no"), network, Path(folder, "codes"))
        return time.perf_counter() - start


def compare_costs(dataset: str, backbone: str, weights: str, rounds: int) -> None:
    """Print what all layers cost beside the deepest alone, in turns."""
    layers = backbones.friendly_layers(backbones.get(backbone))
    networks = [FrozenNetwork(backbone, some, weights, "avg") for some in (layers, layers[-1:])]
    seconds = [[time_extraction(dataset, network) for network in networks] for _ in range(rounds)]
    every, deepest = (min(column) for column in zip(*seconds, strict=True))
    print(
        f"{dataset}, {backbone}: all {len(layers)} layers {every:.2f} s, {layers[-1]} alone {deepest:.2f} s, ratio "
        f"{every / deepest:.3f} (the best of {rounds}, in turns)",
        flush=True,
    )


def main() -> None:
    """Run what is asked for in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("layers", "costs", "views"))
    parser.add_argument("--photos", type=Path, required=True, help="a folder of images, split into train and test")
    parser.add_argument("--rounds", type=int, default=4, help="of the costs")
    options = parser.parse_args()
    photos = options.photos.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        call(prepare, "--dataset", str(photos))
        call(prepare, "--dataset", "digits")
        if options.what == "layers":
            for dataset in (photos.name, "digits"):
                compare_layers(dataset, "tinyvgg", "default", "avg4")
                compare_layers(dataset, "resnet18", "random", "avg")
        elif options.what == "views":
            compare_views(photos.name, "fc7")
            compare_views("digits", "fc7")
        else:
            compare_costs("digits", "tinyvgg", "default", options.rounds)
            compare_costs(photos.name, "tinyvgg", "default", options.rounds)
            compare_costs(photos.name, "resnet18", "random", options.rounds)


if __name__ == "__main__":
    main()
