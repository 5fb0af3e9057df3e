"""Time the extraction from photos of many megapixels, decoded at full size and at a fraction of it."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from PIL import Image

from benchmarks.extract import copy_photos, decoding_rate, end_to_end, find_photos
from pipeline.extraction import memory
from pipeline.extraction.autotune import evenly, time_run
from pipeline.extraction.engine import Engine, lowest_cosine
from pipeline.images import decoding, parallel, transforms
from pipeline.networks.frozen import FrozenNetwork

FULL, SCALED = decoding.PILLOW, decoding.SCALED

COSINE_IMAGES = 64
"""Number of photos whose codes by both decoders are compared."""


def enlarge_photos(folder: Path, count: int, megapixels: float, into: Path) -> None:
    """Enlarge JPEG photos to some megapixels, as phones take them, until there are `count` files."""
    for number, path in enumerate(find_photos(folder, count)):
        with Image.open(path) as image:
            factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            size = round(image.width * factor), round(image.height * factor)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(into / f"{number:06}.jpg", quality=90)


def build_parser() -> argparse.ArgumentParser:
    """Return the benchmark's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_photos",
        description=__doc__,
        epilog="example: python -m benchmarks.large_photos --images photos --backbone resnet50",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEG photos, which are enlarged")
    parser.add_argument("--megapixels", type=float, default=12, help="size of the enlarged photos")
    parser.add_argument("--count", type=int, default=200, help="number of photos")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default", help="weights of the backbone; random is enough for times")
    parser.add_argument("--layer", default="avgpool")
    parser.add_argument(
        "--compile", choices=("torch", "onnxruntime", "no"), default="no", help="who compiles the network"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds, of which the medians are reported")
    return parser


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Return the medians over the rounds of the rates and of their ratios within each round, and the lowest cosine."""
    for name in ("large", "photos"):
        (folder / name).mkdir()
    enlarge_photos(options.images, options.count, options.megapixels, folder / "large")
    manifest = copy_photos(folder / "large", options.count, folder / "photos")
    network = FrozenNetwork(options.backbone, [options.layer], options.weights, "avg")
    engines = {name: Engine(network.at(decoder=name), compiler=options.compile) for name in (FULL, SCALED)}
    threads = parallel.default_threads()
    for engine in engines.values():  # compiled before anything is timed
        engine.codes([transforms.load_image(manifest.file(0), engine.network.transform)] * engine.batch_size)
    sample = evenly(manifest.files(), min(COSINE_IMAGES, options.count))
    codes = {name: time_run(engine.network, sample, threads)[1] for name, engine in engines.items()}
    rounds = []
    for number in range(options.rounds):
        once = {f"decode_{name}_ips": decoding_rate(manifest, engine) for name, engine in engines.items()}
        for name, engine in engines.items():
            once[f"{name}_ips"] = end_to_end(manifest, engine, Path(tempfile.mkdtemp(dir=folder)))
        once["decode_ratio"] = once[f"decode_{SCALED}_ips"] / once[f"decode_{FULL}_ips"]
        once["end_to_end_ratio"] = once[f"{SCALED}_ips"] / once[f"{FULL}_ips"]
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:.3g}" for name, value in once.items()), flush=True)
        rounds.append(once)
    medians = {name: statistics.median(once[name] for once in rounds) for name in rounds[0]}
    cosines = [lowest_cosine(codes[SCALED][file], codes[FULL][file]) for file in sample]
    facts = {"lowest_cosine": min(cosines), "cores": os.cpu_count(), "torch": torch.__version__}
    settings = {name: getattr(options, name) for name in ("backbone", "layer", "megapixels", "count", "rounds")}
    return {name: float(f"{value:.4g}") for name, value in medians.items()} | facts | settings


def main() -> None:
    """Measure; print a table, and JSON on the last line."""
    memory.keep_freed()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(build_parser().parse_args(), Path(folder))
    for name, value in result.items():
        print(f"{name:<28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
