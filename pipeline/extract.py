"""Run images through a frozen network in batches, and write the CNN codes of its layers to HDF5."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import datasets, errors, experiment, images
from pipeline.codes_writer import begun, claim
from pipeline.experiment import Experiment
from pipeline.extraction import Extraction, columns_of, demand_space, extract
from pipeline.images import TORCHCODEC, Framing

if TYPE_CHECKING:
    from pipeline.network import FrozenNetwork

AUTO = "auto"
EXAMPLE = "python -m pipeline.extract --backbone vgg16 --layer fc6 fc7"


def settle(
    network: FrozenNetwork, extraction: Extraction, folder: Path, asked: Mapping[str, str]
) -> tuple[FrozenNetwork, str]:
    """Return the network in the precision and with the decoder to use, and a line a choice, with the reason.

    "auto" stays with what was chosen before, so that its codes are found again, or else tries some images.
    """
    from pipeline import jpegs
    from pipeline.trials import choose_decoder, choose_precision

    fixed = {name: value for name, value in asked.items() if value != AUTO}
    if fixed.get("decoder") == TORCHCODEC:
        jpegs.demand_usable(network.transform, network.mean.device)
    before: dict[str, str] = {}
    why = ""
    if AUTO in asked.values():
        before, why = chosen_before(network, extraction, folder, fixed)
    choices = before | fixed
    reasons = dict.fromkeys(before, why) | dict.fromkeys(fixed, "as asked")
    if "precision" not in choices:
        choices["precision"], reasons["precision"] = choose_precision(network, extraction.first_pictures(network))
    network = network.at(precision=choices["precision"])
    if "decoder" not in choices:
        files = extraction.manifest.files()
        choices["decoder"], reasons["decoder"] = choose_decoder(network, files, extraction.threads)
    lines = [f"Precision {choices['precision']}: {reasons['precision']}"]
    if choices["decoder"] == TORCHCODEC or network.mean.is_cuda:
        lines.append(f"JPEGs by {choices['decoder']}: {reasons['decoder']}")
    return network.at(decoder=choices["decoder"]), "\n".join(lines)


def chosen_before(
    network: FrozenNetwork, extraction: Extraction, folder: Path, fixed: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """Return the precision and the decoder of codes that are there, of all images or some, or of fine-tuned weights."""
    from pipeline import weights
    from pipeline.network import PRECISIONS

    columns = columns_of(extraction.manifest)
    for precision, decoder in product(PRECISIONS, images.DECODERS):
        found = {"precision": precision, "decoder": decoder}
        if all(found[name] == value for name, value in fixed.items()):
            for layer, spec in network.specs.items():
                if begun(folder / f"{layer}.h5", replace(spec, precision=precision, decoder=decoder), columns):
                    return found, "as in an earlier run"
    validated = weights.spec_within(next(iter(network.specs.values())).weights)
    known = {"precision": tuple(PRECISIONS), "decoder": images.DECODERS}
    return {name: validated[name] for name in known if validated.get(name) in known[name]}, "as the weights were tuned"


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
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the forward pass; auto takes bf16 (old GPUs: fp16) where a trial shows it right and faster",
    )
    parser.add_argument(
        "--decoder",
        choices=(AUTO, *images.DECODERS),
        default=AUTO,
        help="of JPEGs; auto takes torchcodec on a GPU that would wait for pillow, where a trial shows it right",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--batch-size", type=int, default=0, help="images committed together; 0: what suits the device")
    parser.add_argument(
        "--compile",
        choices=("auto", "yes", "no"),
        default="auto",
        help="compile the network; auto does where the run is long enough to repay it",
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="what codes are stored as")
    parser.add_argument("--compress", action="store_true", help="the finished files, with LZF")
    parser.add_argument(
        "--max-bad", type=float, default=0.1, metavar="SHARE", help="of bad images beyond which the run fails"
    )
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
    experiment.demand_least(options, batch_size=0, threads=1, max_bad=0)
    address = Experiment(options.dataset, options.backbone)
    folder = options.out or address.features
    manifest = datasets.open_prepared(address.data, **experiment.section("prepare"))
    from pipeline.network import FrozenNetwork, choose_device

    device = choose_device(options.device)
    network = FrozenNetwork(
        options.backbone, options.layer, options.weights, options.pool, framing_of(options), options.relu
    )
    network = network.to(device).at(dtype=options.dtype)
    demand_space(folder, len(manifest.paths) * network.dtype.itemsize, network.widths)
    extraction = Extraction(
        manifest, options.batch_size, options.threads, options.compile, options.max_bad, options.compress
    )
    asked = {"precision": options.precision, "decoder": options.decoder}
    network, why = settle(network, extraction, folder, asked)
    layers = ", ".join(options.layer)
    print(f"{options.backbone} ({options.weights} weights) on {device}: {layers} of {len(manifest.paths)} images")
    print(why)
    with claim(folder):
        extract(extraction, network, folder)
    for line in (*extraction.notes, *(f"Set aside {path!r}: {reason}" for path, reason in extraction.bad.items())):
        print(line)
    count = len(manifest.paths) - len(extraction.bad)
    for layer, width in network.widths.items():
        print(f"{folder / layer}.h5: {count} × {width}, {len(extraction.bad)} images set aside")
    print(
        f"{extraction.forwarded} images went through the network, the others were there from earlier runs or are copies"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
