"""Run images through a frozen network in batches, and write the CNN codes of its layers to HDF5."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline import datasets, errors, experiment, images
from pipeline.codes import encoded
from pipeline.codes_writer import CodesWriter, Columns, claim, store_of
from pipeline.datasets import Manifest
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.images import BadImage, Framing

if TYPE_CHECKING:
    from pipeline.network import FrozenNetwork

EXAMPLE = "python -m pipeline.extract --backbone vgg16 --layer fc6 fc7"

Item = TypeVar("Item")


Batch = dict[str, tuple[np.ndarray, list[int]]]
"""{digest: (picture, the rows of the dataset that have it)}."""


@dataclass
class Extraction:
    """One run over a dataset: forwarded counts the images that went through the network; bad: {path: reason}."""

    manifest: Manifest
    batch_size: int
    threads: int
    forwarded: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def find_missing(self, writers: Mapping[str, CodesWriter]) -> dict[str, list[int]]:
        """Take over what earlier runs computed of the same bytes; return {layer: rows that are to be computed}."""
        every = range(len(self.manifest.paths))
        if all(writer.fresh for writer in writers.values()):
            return {layer: list(every) for layer in writers}
        missing: dict[str, list[int]] = {layer: [] for layer in writers}
        for row, digest in self._each(every, images.read_digest, "comparing"):
            for layer, writer in writers.items():
                if not writer.find(row, digest):
                    missing[layer].append(row)
        for writer in writers.values():
            writer.settle()
        return missing

    def compute(self, rows: Sequence[int], network: FrozenNetwork, writers: Sequence[CodesWriter]) -> None:
        """Run the images of some rows through the network in batches, and commit each; the same bytes run once."""
        seen: set[str] = set()
        batch: Batch = {}
        read = partial(images.read, transform=network.transform)
        for row, (picture, digest) in self._each(rows, read, "extracting"):
            if digest in seen:
                for writer in writers:
                    writer.find(row, digest)
                continue
            batch.setdefault(digest, (picture, []))[1].append(row)
            if len(batch) == self.batch_size:
                seen |= self._commit(batch, network, writers)
                batch = {}
        if batch:
            self._commit(batch, network, writers)
        for writer in writers:
            writer.settle()

    def _commit(self, batch: Batch, network: FrozenNetwork, writers: Sequence[CodesWriter]) -> set[str]:
        """Compute a batch and write it to all of its rows; return its digests."""
        outputs = network.codes(np.stack([picture for picture, _ in batch.values()]))
        self.forwarded += len(batch)
        places = [(row, place, digest) for place, (digest, (_, rows)) in enumerate(batch.items()) for row in rows]
        rows, order, digests = zip(*sorted(places), strict=True)
        for writer in writers:
            writer.write(rows, outputs[writer.spec.layer][list(order)], digests)
            writer.settle()
        return set(batch)

    def _each(self, rows: Sequence[int], read: Callable[[Path], Item], doing: str) -> Iterator[tuple[int, Item]]:
        """Yield (row, what `read` gives of its file), in order, and note the bad images."""
        from tqdm import tqdm

        files = (self.manifest.file(row) for row in rows)
        items = images.ordered_map(read, files, self.threads, ahead=max(2 * self.batch_size, 16 * self.threads))
        for row, item in zip(rows, tqdm(items, doing, len(rows), unit="image", disable=None), strict=True):
            if isinstance(item, BadImage):
                self.bad[self.manifest.paths[row]] = str(item)
            else:
                yield row, item


def extract(manifest: Manifest, network: FrozenNetwork, folder: Path, batch_size: int, threads: int) -> Extraction:
    """Write the codes of all images to `<layer>.h5` in a folder, computing only those that no earlier run has.

    The files appear at the end, all of them complete; a run that does not get there is continued by the next.
    """
    extraction = Extraction(manifest, batch_size, threads)
    columns = columns_of(manifest)
    with ExitStack() as stack:
        writers = {
            layer: stack.enter_context(CodesWriter(folder / f"{layer}.h5", spec, network.widths[layer], columns))
            for layer, spec in network.specs.items()
        }
        missing = extraction.find_missing(writers)
        lacking = [layer for layer in writers if missing[layer]]
        if lacking:
            rows = sorted(set().union(*missing.values()))
            extraction.compute(rows, network.only(lacking), [writers[layer] for layer in lacking])
        if len(extraction.bad) == len(manifest.paths):
            path, reason = next(iter(extraction.bad.items()))
            raise PipelineError(
                f"None of the {len(manifest.paths)} images can be read; the first is {path!r}: {reason}."
            )
        for writer in writers.values():
            writer.commit([f"{path}: {reason}" for path, reason in extraction.bad.items()])
    return extraction


def columns_of(manifest: Manifest) -> Columns:
    """Return what stands beside the codes, as HDF5 keeps it."""
    paths, splits, classes = (encoded(column) for column in (manifest.paths, manifest.splits, manifest.classes))
    return Columns(paths, manifest.labels, splits, classes)


def demand_space(folder: Path, images_count: int, widths: Mapping[str, int]) -> None:
    """Refuse to start where the codes will not fit on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * images_count * sum(widths.values()), shutil.disk_usage(folder).free
    begun = sum(512 * path.stat().st_blocks for path in store_of(folder).glob("*.partial"))
    if needed > free + begun:
        raise PipelineError(
            f"The codes need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Choose fewer layers, "
            "--pool avg, fewer --views, or another disk with --out."
        )


def listing(name: str | None) -> str:
    """Return the backbones' names, or one backbone's layers with their nodes, sizes and code widths."""
    from pipeline import backbones, network

    if name is None:
        return "\n".join(backbones.registry())
    backbone = backbones.get(name)
    lines = [f"{'layer':<28} {'node':<28} {'output':<14} {'avg':>8} {'avg4':>8} {'flatten':>8}"]
    for layer, (node, shape) in backbones.layer_shapes(backbone).items():
        if len(shape) in (1, 3):
            widths = " ".join(f"{network.width(shape, pool):>8}" for pool in ("avg", "avg4", "flatten"))
            lines.append(f"{layer:<28} {node:<28} {'×'.join(map(str, shape)):<14} {widths}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags, with defaults from params.yaml."""
    parser = experiment.command("extract", __doc__, EXAMPLE, ("dataset", "backbone"))
    parser.add_argument("--layer", nargs="+", default=["fc7"], help="one or several, in one pass")
    parser.add_argument(
        "--weights", default="default", help="torchvision's name, a .pth or .safetensors file, random or random:SEED"
    )
    parser.add_argument(
        "--pool", default="avg", help="how maps become vectors: avg, max, flatten, or avgN/maxN for N×N cells"
    )
    parser.add_argument("--size", help="pixels the network sees: 320, or 448x336 for height x width (default: its own)")
    parser.add_argument(
        "--resize", type=int, help="pixels of the shorter side before the crop (default: in proportion)"
    )
    parser.add_argument(
        "--crop", choices=("center", "none"), default="center", help="none: the whole picture, resized to --size"
    )
    parser.add_argument(
        "--views", default="one", help="of each image: one, flips, five, ten, cnnaug (16), random:K or random:K:SEED"
    )
    parser.add_argument(
        "--relu", choices=("post", "pre"), default="post", help="codes after or before the layer's ReLU"
    )
    parser.add_argument("--precision", choices=("fp32",), default="fp32", help="of the forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--batch-size", type=int, default=32, help="images a forward pass")
    parser.add_argument("--threads", type=int, default=images.default_threads(), help="that decode")
    parser.add_argument("--out", type=Path, help="the folder for LAYER.h5 (default: features/DATASET/BACKBONE)")
    parser.add_argument(
        "--list", nargs="?", const="", metavar="BACKBONE", help="show the backbones, or one's layers, and end"
    )
    parser.set_defaults(**experiment.section("extract"))
    return parser


def framing_of(options: argparse.Namespace) -> Framing:
    """Return what the options say of sizes."""
    size = images.parse_size(str(options.size)) if options.size else None
    return Framing(size, options.resize, "whole" if options.crop == "none" else "crop", str(options.views))


def run(options: argparse.Namespace) -> None:
    """Extract what the options name."""
    if options.list is not None:
        print(listing(options.list or None))
        return
    address = Experiment(options.dataset, options.backbone)
    folder = options.out or address.features
    manifest = datasets.open_prepared(address.data, **experiment.section("prepare"))
    from pipeline.network import FrozenNetwork, choose_device

    device = choose_device(options.device)
    network = FrozenNetwork(
        options.backbone, options.layer, options.weights, options.pool, framing_of(options), options.relu
    )
    network = network.to(device)
    demand_space(folder, len(manifest.paths), network.widths)
    layers = ", ".join(options.layer)
    print(f"{options.backbone} ({options.weights} weights) on {device}: {layers} of {len(manifest.paths)} images")
    with claim(folder):
        extracted = extract(manifest, network, folder, options.batch_size, options.threads)
    for image, reason in extracted.bad.items():
        print(f"Set aside {image!r}: {reason}")
    count = len(manifest.paths) - len(extracted.bad)
    for layer, width in network.widths.items():
        print(f"{folder / layer}.h5: {count} × {width}, {len(extracted.bad)} images set aside")
    print(
        f"{extracted.forwarded} images went through the network, the others were there from earlier runs or are copies"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
