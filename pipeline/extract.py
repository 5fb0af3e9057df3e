"""Run images through a frozen network in batches, and write the CNN codes of its layers to HDF5.

Example: python -m pipeline.extract --backbone vgg16 --layer fc6 fc7
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("extract")

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from pipeline import errors, params
from pipeline.codes import shards
from pipeline.codes.writer import claim_folder, has_earlier_rows
from pipeline.config import Extract
from pipeline.data import digits
from pipeline.data.manifest import read_manifest
from pipeline.extraction import autotune, memory, runner, sharded
from pipeline.extraction.shard_worker import has_earlier_shards
from pipeline.extraction.sharded import Sharding
from pipeline.images import decoding, parallel, torchcodec, transforms
from pipeline.networks import weights
from pipeline.networks.frozen import PRECISIONS, FrozenNetwork, choose_device
from pipeline.networks.listing import listing
from pipeline.paths import TASK_SEPARATOR, Experiment, folder_of_task, is_task, read_tasks

AUTO = "auto"


def choose_settings(
    network: FrozenNetwork, extraction: runner.Extraction, folder: Path, requested: Mapping[str, str]
) -> tuple[FrozenNetwork, str]:
    """Return the network with the chosen precision and decoder, and a line per choice with its reason.

    requested: {"precision": name, "decoder": name}. "auto" takes the choice of an earlier run, so that its codes are
    found again, or else tries the choices on some of the images.
    """
    fixed = {name: value for name, value in requested.items() if value != AUTO}
    if fixed.get("decoder") == decoding.TORCHCODEC:
        torchcodec.validate_usable(network.transform, network.mean.device)
    earlier, reason = earlier_choices(network, extraction, folder, fixed) if len(fixed) < len(requested) else ({}, "")
    choices = earlier | fixed
    reasons = dict.fromkeys(earlier, reason) | dict.fromkeys(fixed, "as asked")
    if "precision" not in choices:
        images = extraction.first_images(network)
        choices["precision"], reasons["precision"] = autotune.choose_precision(network, images)
    network = network.at(precision=choices["precision"])
    if "decoder" not in choices:
        files = extraction.manifest.files()
        choices["decoder"], reasons["decoder"] = autotune.choose_decoder(network, files, extraction.threads)
    lines = [f"Precision {choices['precision']}: {reasons['precision']}"]
    if choices["decoder"] != decoding.PILLOW or network.mean.is_cuda:
        lines.append(f"JPEGs by {choices['decoder']}: {reasons['decoder']}")
    return network.at(decoder=choices["decoder"]), "\n".join(lines)


def earlier_choices(
    network: FrozenNetwork, extraction: runner.Extraction, folder: Path, fixed: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """Return the precision and the decoder of codes from an earlier run, or of fine-tuned weights, and the reason.

    fixed: the choices that the user made, which the codes must have. Returns ({}, "") where there is nothing earlier.
    """
    metadata = runner.metadata_of(extraction.manifest)
    for precision, decoder in product(PRECISIONS, decoding.DECODERS):
        choices = {"precision": precision, "decoder": decoder}
        if all(choices[name] == value for name, value in fixed.items()):
            for layer, spec in network.specs.items():
                transform = replace(spec.transform, decoder=decoder)
                spec = replace(spec, precision=precision, transform=transform)
                if has_earlier_rows(folder / f"{layer}.h5", spec, metadata) or has_earlier_shards(folder, spec):
                    return choices, "as in an earlier run"
    tuned = weights.read_spec(next(iter(network.specs.values())).weights)
    if tuned is None:
        return {}, ""
    return {"precision": tuned.precision, "decoder": tuned.transform.decoder}, "as the weights were tuned"


def show(name: str) -> str:
    """Return what --list shows of all backbones (""), of those that fit a pattern, or of one."""
    return listing(name)


def run(settings: Extract) -> None:
    """Extract what the settings name."""
    memory.keep_freed()
    if settings.list is not None:
        print(show(settings.list))
        return
    address = Experiment(settings.dataset, settings.backbone)
    folder = settings.out or address.features
    manifest = digits.open_prepared(address.data, **params.split_settings())
    device = choose_device(settings.device)
    framing = transforms.Framing.sized(**settings.framing(manifest.max_value))
    network = FrozenNetwork(settings.backbone, settings.layer, settings.weights, settings.pool, framing, settings.relu)
    network = network.to(device).at(dtype=settings.dtype)
    runner.validate_disk_space(folder, len(manifest.paths) * network.dtype.itemsize, network.widths)
    threads = settings.threads or parallel.default_threads()
    extraction = runner.Extraction(
        manifest,
        settings.batch_size,
        threads,
        settings.compile,
        settings.max_bad,
        settings.compress,
    )
    sharding = sharding_of(settings)
    asked = {"precision": settings.precision, "decoder": settings.decoder}
    network, why = choose_settings(network, extraction, folder, asked)
    layers, images = ", ".join(settings.layer), errors.counted(len(manifest.paths), "image")
    print(f"{settings.backbone} ({settings.weights} weights) on {device}: {layers} of {images}")
    print(why)
    extract_to(extraction, network, folder, sharding)
    for task in read_tasks(address.data)[1:] if settings.out is None and not is_task(address.data) else ():
        manifest = read_manifest(folder_of_task(address.data, task))
        other = Experiment(f"{address.name}{TASK_SEPARATOR}{task}", address.backbone)
        extract_to(extraction.of(manifest), network, other.features, sharding)


def sharding_of(settings: Extract) -> Sharding | None:
    """Return how the run is shared out, None where one process writes one file."""
    if settings.shards:
        return Sharding(settings.shards, settings.engine, settings.workers, settings.address)
    for name, value in (
        ("engine", settings.engine == "ray"),
        ("workers", settings.workers),
        ("address", settings.address),
    ):
        if value:
            raise errors.PipelineError(f"--{name} is for codes in several files. Say how many with --shards.", name)
    return None


def extract_to(extraction: runner.Extraction, network: FrozenNetwork, folder: Path, sharding: Sharding | None) -> None:
    """Extract to a folder, and say what was done."""
    with claim_folder(folder):
        if sharding:
            sharded.extract(extraction, network, folder, sharding)
        else:
            runner.extract(extraction, network, folder)
            for layer in network.specs:
                shards.remove(folder / f"{layer}.h5")
    for line in (*extraction.notes, *(f"Skipped {path!r}: {reason}" for path, reason in extraction.bad.items())):
        print(line)
    count = len(extraction.manifest.paths) - len(extraction.bad)
    skipped = f", {errors.counted(len(extraction.bad), 'image')} skipped" if extraction.bad else ""
    for layer, width in network.widths.items():
        print(f"{folder / layer}.h5: {count} × {width}{skipped}")
    others = ", the others were there from earlier runs or are copies" if extraction.forwarded < count else ""
    print(f"{errors.counted(extraction.forwarded, 'image')} went through the network{others}")
