"""Run images through a frozen network in batches, and write the CNN codes of its layers to HDF5."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import datasets, errors, experiment, images
from pipeline.codes import CodesWriter, claim
from pipeline.datasets import Manifest
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.images import BadImage, Transform

if TYPE_CHECKING:
    from pipeline.network import FrozenNetwork

EXAMPLE = "python -m pipeline.extract --backbone vgg16 --layer fc6 fc7"


@dataclass
class Extracted:
    """What became of the images: the manifest's rows as they were written, their digests, the bad ones' reasons."""

    rows: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def extract(
    manifest: Manifest, network: FrozenNetwork, files: Mapping[str, Path], batch_size: int, threads: int
) -> Extracted:
    """Write the codes of all images to one HDF5 file a layer. The files appear at the end, all of them complete."""
    extracted = Extracted()
    pictures = good_pictures(manifest, network.transform, extracted, threads, ahead=2 * batch_size)
    with ExitStack() as stack:
        writers = {
            layer: stack.enter_context(CodesWriter(path, network.specs[layer], network.widths[layer]))
            for layer, path in files.items()
        }
        while batch := list(islice(pictures, batch_size)):
            for layer, values in network.codes(np.stack(batch)).items():
                writers[layer].append(values)
        if not extracted.rows:
            path, reason = extracted.bad[0]
            raise PipelineError(
                f"None of the {len(extracted.bad)} images can be read; the first is {path!r}: {reason}."
            )
        for writer in writers.values():
            writer.commit(manifest.labels[extracted.rows], texts(manifest, extracted))
    return extracted


def good_pictures(
    manifest: Manifest, transform: Transform, extracted: Extracted, threads: int, ahead: int
) -> Iterator[np.ndarray]:
    """Yield the (3, crop, crop) uint8 picture of each image, in order, and note in `extracted` what became of it."""
    from tqdm import tqdm

    items = images.ordered_map(partial(images.read, transform=transform), manifest.files(), threads, ahead)
    for row, item in enumerate(tqdm(items, "extracting", len(manifest.paths), unit="image", disable=None)):
        if isinstance(item, BadImage):
            extracted.bad.append((manifest.paths[row], str(item)))
            continue
        picture, digest = item
        extracted.rows.append(row)
        extracted.digests.append(digest)
        yield picture


def texts(manifest: Manifest, extracted: Extracted) -> dict[str, Sequence[str]]:
    """Return the text columns that stand beside the codes."""
    return {
        "paths": [manifest.paths[row] for row in extracted.rows],
        "splits": [manifest.splits[row] for row in extracted.rows],
        "digests": extracted.digests,
        "classes": manifest.classes,
        "bad": [f"{path}: {reason}" for path, reason in extracted.bad],
    }


def choose_device(name: str) -> str:
    """Return the device asked for, if it is there; for "auto" CUDA, else Apple's, else the processor."""
    import torch

    present = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()] + ["cpu"]
    if name == "auto":
        return present[0]
    if name.split(":")[0] not in present:
        raise PipelineError(f"Device {name!r} is not here. Choose from: auto, {', '.join(present)}.")
    return name


def demand_space(folder: Path, images_count: int, widths: Mapping[str, int]) -> None:
    """Refuse to start where the codes will not fit on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * images_count * sum(widths.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise PipelineError(
            f"The codes need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Choose fewer layers, "
            "--pool avg, or another disk with --out."
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


def run(options: argparse.Namespace) -> None:
    """Extract what the options name."""
    if options.list is not None:
        print(listing(options.list or None))
        return
    address = Experiment(options.dataset, options.backbone)
    folder = options.out or address.features
    manifest = datasets.open_prepared(address.data, **experiment.section("prepare"))
    from pipeline.network import FrozenNetwork

    device = choose_device(options.device)
    network = FrozenNetwork(options.backbone, options.layer, options.weights, options.pool).to(device)
    demand_space(folder, len(manifest.paths), network.widths)
    layers = ", ".join(options.layer)
    print(f"{options.backbone} ({options.weights} weights) on {device}: {layers} of {len(manifest.paths)} images")
    files = {layer: folder / f"{layer}.h5" for layer in options.layer}
    with claim(folder):
        extracted = extract(manifest, network, files, options.batch_size, options.threads)
    for image, reason in extracted.bad:
        print(f"Set aside {image!r}: {reason}")
    for layer, file in files.items():
        print(f"{file}: {len(extracted.rows)} × {network.widths[layer]}, {len(extracted.bad)} images set aside")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
