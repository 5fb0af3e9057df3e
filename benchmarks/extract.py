"""Time the extraction, from JPEG files to a closed HDF5 file, against its forward pass and against two plain loops."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import cycle, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as tv

from pipeline.codes.writer import CodesWriter
from pipeline.data.manifest import Manifest
from pipeline.extraction import autotune, memory, runner
from pipeline.extraction.engine import Engine, synchronize, time_forward
from pipeline.images import decoding, parallel, transforms
from pipeline.networks import backbones
from pipeline.networks.frozen import FrozenNetwork, choose_device
from pipeline.texts import Texts

SIDE = 2048
"""Size of the square matrices whose product gives the peak rate of arithmetic."""

GEMM_SECONDS = 0.3
"""Where a product of smaller matrices takes so long, larger ones are not multiplied: some CPUs have no bf16."""

FORWARD_IMAGES = 128
"""Number of images for which the forward pass is timed, in batches."""


def find_photos(folder: Path, count: int) -> Iterator[Path]:
    """Yield the JPEG files below a folder, from the first on again until there are `count`."""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not photos:
        raise SystemExit(f"There are no JPEG files below {folder}.")
    return islice(cycle(photos), count)


def copy_photos(folder: Path, count: int, into: Path) -> Manifest:
    """Copy JPEG photos until there are `count`; each gets a different tail, as equal files are computed once."""
    names = [f"{number:06}.jpg" for number in range(count)]
    for number, (name, path) in enumerate(zip(names, find_photos(folder, count), strict=True)):
        (into / name).write_bytes(path.read_bytes() + number.to_bytes(4, "little"))
    digests = Texts.of(str(decoding.read_digest(into / name)) for name in names)
    splits = Texts.of(["train"] * count)
    return Manifest(into, Texts.of(names), np.zeros(count, np.int64), splits, ("all",), digests)


def gemm(device: torch.device, kind: torch.dtype) -> float:
    """Return the GFLOP/s of a matrix product, within about ten seconds on any device."""
    side, seconds = 128, 0.0
    while side < SIDE and seconds < GEMM_SECONDS:
        side *= 2
        square = torch.ones(side, side, device=device, dtype=kind)
        seconds = min(time_forward(lambda x: {"": x @ x}, square) for _ in range(3 if side == SIDE else 1))
    return 2 * side**3 / seconds / 1e9


def gflop(network: FrozenNetwork) -> float:
    """Return the GFLOP of one image; a multiplication and an addition count as two operations."""
    network = network.at(precision="fp32")
    size = network.transform.crop
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=network.mean.device))
    return counter.get_total_flops() / 1e9


def decoding_rate(manifest: Manifest, engine: Engine) -> float:
    """Return the images per second of decoding alone, with the engine's decoder."""
    start = time.perf_counter()
    count = sum(1 for _ in engine.loader(parallel.default_threads()).load(manifest.files()))
    if engine.copy_stream:
        engine.copy_stream.synchronize()
    return count / (time.perf_counter() - start)


@torch.inference_mode()  # for the batch as well, or the compiled network would be compiled again
def forward(engine: Engine) -> float:
    """Return the images per second of the network alone, on a batch in the device's memory."""
    size = engine.network.transform.crop
    batch = torch.randint(256, (engine.batch_size, 3, size, size), dtype=torch.uint8, device=engine.device)
    batches = max(1, FORWARD_IMAGES // len(batch))
    start = time.perf_counter()
    for _ in range(batches):
        outputs = engine.forward(batch)
    synchronize(outputs)
    return batches * len(batch) / (time.perf_counter() - start)


def end_to_end(manifest: Manifest, engine: Engine, folder: Path) -> float:
    """Return the images per second from image files to a closed HDF5 file, with a network that is ready."""
    start = time.perf_counter()
    extraction = runner.Extraction(manifest, 0, parallel.default_threads())
    ((layer, spec),) = engine.network.specs.items()
    with CodesWriter(
        folder / f"{layer}.h5", spec, engine.network.widths[layer], runner.metadata_of(manifest)
    ) as writer:
        extraction.compute(range(len(manifest.paths)), engine, [writer])
        writer.commit([])
    return extraction.forwarded / (time.perf_counter() - start)


class Photos(Dataset[torch.Tensor]):
    """Photos for the plain loops, opened with Pillow and transformed with torchvision."""

    def __init__(self, paths: Sequence[Path], transform: transforms.Transform) -> None:
        self.paths = paths
        self.steps = tv.Compose(
            [
                tv.Resize(transform.resize),
                tv.CenterCrop(transform.crop),
                tv.ToTensor(),
                tv.Normalize(transform.mean, transform.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return self.steps(image.convert("RGB"))


class Hooked:
    """A whole network in float32 with a hook that keeps the output of one module in memory, as plain extractors do."""

    def __init__(self, name: str, node: str, device: torch.device) -> None:
        self.model, self.device = backbones.load(backbones.get(name), "random")[0].to(device), device
        self.outputs: list[np.ndarray] = []
        module = self.model.get_submodule("avgpool" if node == "flatten" else node)
        module.register_forward_hook(
            lambda module, inputs, output: self.outputs.append(output.flatten(1).cpu().numpy())
        )

    @torch.no_grad()
    def rate(self, batches: Iterable[torch.Tensor]) -> float:
        """Return the images per second."""
        start, count = time.perf_counter(), 0
        for batch in batches:
            self.model(batch.to(self.device))
            count += len(batch)
        self.outputs.clear()
        return count / (time.perf_counter() - start)


@lru_cache(1)
def hooked(name: str, node: str, device: torch.device) -> Hooked:
    """Return the network of the plain loops, the same in each round."""
    return Hooked(name, node, device)


def serial(photos: Photos, *network: Any) -> float:
    """Return the images per second of a loop with one image per forward pass."""
    return hooked(*network).rate(photos[row][None] for row in range(len(photos)))


def dataloader(photos: Photos, start: str, *network: Any) -> float:
    """Return the images per second of a loop over a DataLoader with one worker per core.

    start: the method by which the workers start, "fork" for instance.
    """
    loader: Any = DataLoader(photos, batch_size=32, num_workers=os.cpu_count() or 1, multiprocessing_context=start)
    return hooked(*network).rate(loader)


def build_parser() -> argparse.ArgumentParser:
    """Return the benchmark's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.extract",
        description=__doc__,
        epilog="example: python -m benchmarks.extract --images photos --backbone vgg16 --layer fc7",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEG photos, in subfolders or not")
    parser.add_argument("--backbone", default="resnet50", help="network, with random weights")
    parser.add_argument("--layer", default="avgpool", help="layer whose codes are extracted")
    parser.add_argument("--early", default="", help="earlier layer whose time is compared with its FLOPs")
    parser.add_argument("--count", type=int, default=256, help="number of photos of an end-to-end run")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds, of which the medians are reported")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="precision of our extraction"
    )
    parser.add_argument(
        "--decoder",
        choices=("auto", *decoding.DECODERS),
        default="auto",
        help="decoder of our extraction for JPEG files",
    )
    parser.add_argument(
        "--compile",
        choices=("torch", "onnxruntime", "no"),
        default="torch",
        help="who compiles our network, before anything is timed",
    )
    parser.add_argument("--device", default="auto", help="device of all loops")
    return parser


def report(name: str, value: float) -> float:
    """Print a measurement as it is made, and return it."""
    print(f"  {name:<28} {value:.4g}", file=sys.stderr, flush=True)
    return value


class Contest:
    """All measurements, on one device, with one set of photos in a temporary folder.

    The plain loops run in another process: ours changes how the allocator keeps memory for all of its process. All of
    the measurements alternate.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        memory.keep_freed()
        self.plain = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.options, self.folder, self.device = options, folder, choose_device(options.device)
        (folder / "photos").mkdir()
        self.manifest = copy_photos(options.images, options.count, folder / "photos")
        self.transform = backbones.native_transform(backbones.get(options.backbone))
        self.trial = [transforms.load_image(path, self.transform) for path in self.manifest.files()[:16]]
        self.why = "set by a flag"
        start = time.perf_counter()
        self.engine = self.ready(options.layer, options.precision, options.decoder)
        self.prepared = time.perf_counter() - start
        chosen = self.engine.network
        self.early = self.ready(options.early, chosen.precision, chosen.transform.decoder) if options.early else None

    def ready(self, layer: str, precision: str, decoder: str) -> Engine:
        """Return an engine whose precision, decoder and batch size are chosen, and whose network is compiled."""
        network = FrozenNetwork(self.options.backbone, [layer], "random", "avg").to(self.device)
        chosen = autotune.choose_precision(network, self.trial)[0] if precision == "auto" else precision
        network = network.at(precision=chosen)
        if decoder == "auto":
            files = list(islice(cycle(self.manifest.files()), autotune.MIN_IMAGES_FOR_DECODER))
            decoder, self.why = autotune.choose_decoder(network, files, parallel.default_threads())
        engine = Engine(network.at(decoder=decoder), compiler=self.options.compile)
        engine.codes(list(islice(cycle(self.trial), engine.batch_size)))
        engine.compilers = []
        return engine

    def measures(self) -> dict[str, Callable[[], float]]:
        """Return the measurements of a round, by their keys in the JSON."""
        photos = Photos(self.manifest.files()[: max(32, self.options.count // 4)], self.transform)
        start = multiprocessing.get_start_method()  # this process's, as that of the plain loops was spawned
        network = self.options.backbone, self.engine.network.nodes[self.options.layer], self.engine.device
        early = {"early_ips": partial(forward, self.early)} if self.early else {}
        return {
            "gemm_fp32_gflops": lambda: gemm(self.engine.device, torch.float32),
            "gemm_bf16_gflops": lambda: gemm(self.engine.device, torch.bfloat16),
            "decode_ips": lambda: decoding_rate(self.manifest, self.engine),
            "forward_ips": lambda: forward(self.engine),
            "end_to_end_ips": lambda: end_to_end(self.manifest, self.engine, Path(tempfile.mkdtemp(dir=self.folder))),
            "serial_ips": lambda: self.plain.submit(serial, photos, *network).result(),
            "dataloader_ips": lambda: self.plain.submit(dataloader, photos, start, *network).result(),
            **early,
        }

    def result(self) -> dict[str, Any]:
        """Return the medians over the rounds of the rates, and of their ratios within each round."""
        measures = self.measures()
        rounds = []
        for number in range(self.options.rounds):
            print(f"round {number + 1} of {self.options.rounds}", file=sys.stderr)
            rounds.append({name: report(name, rate()) for name, rate in measures.items()})
        cost, precision = gflop(self.engine.network), self.engine.network.precision
        peak = "gemm_fp32_gflops" if precision == "fp32" else "gemm_bf16_gflops"
        ratios: dict[str, Callable[[dict[str, float]], float]] = {
            **{name: itemgetter(name) for name in measures},
            "end_to_end_over_forward": lambda once: once["end_to_end_ips"] / once["forward_ips"],
            "end_to_end_over_serial": lambda once: once["end_to_end_ips"] / once["serial_ips"],
            "end_to_end_over_dataloader": lambda once: once["end_to_end_ips"] / once["dataloader_ips"],
            "end_to_end_over_roof": lambda once: once["end_to_end_ips"] / min(once["forward_ips"], once["decode_ips"]),
            "forward_over_gemm": lambda once: once["forward_ips"] * cost / once[peak],
        }
        if self.early:
            ratios["early_share_of_time"] = lambda once: once["forward_ips"] / once["early_ips"]
        medians = {name: statistics.median(map(ratio, rounds)) for name, ratio in ratios.items()}
        if self.early:
            medians["early_share_of_flop"] = gflop(self.early.network) / cost
        return {name: float(f"{value:.4g}") for name, value in medians.items()} | self.facts(cost)

    def facts(self, cost: float) -> dict[str, Any]:
        """Return the circumstances of the measurements."""
        settings = {name: getattr(self.options, name) for name in ("backbone", "layer", "early", "count", "rounds")}
        return settings | {
            "precision": self.engine.network.precision,
            "decoder": self.engine.network.transform.decoder,
            "why_decoder": self.why,
            "notes": self.engine.notes,
            "gflop_per_image": round(cost, 3),
            "seconds_to_prepare": round(self.prepared, 1),
            "device": self.device,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }


def main() -> None:
    """Measure; print a table, and JSON on the last line."""
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(build_parser().parse_args(), Path(folder))
        result = contest.result()
        contest.plain.shutdown()
    for name, value in result.items():
        print(f"{name:<28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
