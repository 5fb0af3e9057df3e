"""What proves right and faster on some of the images: a lower precision, another decoder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.extraction import memory
from pipeline.extraction.engine import MIN_COSINE, Engine, batch_size_for, concatenate, lowest_cosine, time_forward
from pipeline.images import decoding, torchcodec

MIN_SPEEDUP = 1.2
"""How many times as fast as fp32 a lower precision must be, and TorchCodec as Pillow."""

MIN_IMAGES_FOR_DECODER = 2000
"""Images that a run must have before TorchCodec is tried on `DECODED` of them."""

DECODER_IMAGES = 256


def low_precision(device: torch.device) -> str:
    """Return the lower precision that comes into question on a device: bf16, or fp16 on GPUs too old for that."""
    return "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else "bf16"


@torch.inference_mode()
def choose_precision(network: FrozenNetwork, pictures: Sequence[np.ndarray]) -> tuple[str, str]:
    """Return the precision to compute in, and why, from a trial on some of the images.

    A lower one is taken if each of their codes keeps a cosine of 0.999 to its fp32, and if it is 1.2 times as fast.
    """
    memory.keep_freed()
    device = network.mean.device
    low = low_precision(device)
    from pipeline.networks.frozen import PRECISIONS

    if not pictures:
        return "fp32", f"there is no image to try {low} on"
    if (gain := matmul_speedup(device, PRECISIONS[low])) < MIN_SPEEDUP:
        return "fp32", f"{low} multiplies matrices {gain:.2f} times as fast here"
    batch = torch.from_numpy(np.stack(pictures)).to(device)
    lower = network.at(precision=low)
    found = lowest_cosine(lower(batch), network(batch))
    gain = time_forward(network, batch) / time_forward(lower, batch)
    choice = low if found >= MIN_COSINE and gain >= MIN_SPEEDUP else "fp32"
    return choice, f"{low} is {gain:.2f} times as fast, its cosine to fp32 ≥ {found:.5f}"


def choose_decoder(network: FrozenNetwork, files: Sequence[Path], threads: int) -> tuple[str, str]:
    """Return what is to decode the JPEGs among some files, and why.

    It is TorchCodec where a GPU waits for Pillow: if that makes a run over some of the files 1.2 times as fast, and
    each of their codes keeps a cosine of 0.999.
    """
    if network.mean.device.type != "cuda":
        return decoding.PILLOW, "without a GPU, TorchCodec is taken only if asked for"
    if len(files) < MIN_IMAGES_FOR_DECODER:
        return decoding.PILLOW, f"so few images ({len(files)}) do not repay a trial of TorchCodec"
    try:
        torchcodec.validate_usable(network.transform, network.mean.device)
        return compare_decoders(network, files[:: len(files) // DECODER_IMAGES], threads)
    except (
        errors.PipelineError,
        RuntimeError,
    ) as error:  # whatever a GPU's decoder fails at, Pillow goes on, and it is said
        return decoding.PILLOW, torchcodec.reason_of(error)


def compare_decoders(network: FrozenNetwork, files: Sequence[Path], threads: int) -> tuple[str, str]:
    """Return the better decoder of some files, and why, from a run with each."""
    (slow, exact), (fast, found) = (run_through(network.at(decoder=name), files, threads) for name in decoding.DECODERS)
    both = exact.keys() & found.keys()
    cosine = min((lowest_cosine(found[digest], exact[digest]) for digest in both), default=-1.0)
    choice = decoding.TORCHCODEC if cosine >= MIN_COSINE and fast >= MIN_SPEEDUP * slow else decoding.PILLOW
    gain = f"TorchCodec makes the run {fast / slow:.2f} times as fast"
    return choice, f"{gain}, its codes' cosine to Pillow's ≥ {cosine:.5f}"


def run_through(
    network: FrozenNetwork, files: Sequence[Path], threads: int
) -> tuple[float, dict[str, dict[str, torch.Tensor]]]:
    """Return the images a second of a second run over some files, and {digest: the codes of one image}."""
    engine = Engine(network, min(64, batch_size_for(network.mean.device, network.transform.size)), compiling="no")
    for _ in range(2):
        start, digests, waiting = time.perf_counter(), [], []
        good = (item for item in engine.pictures(files, threads) if not isinstance(item, decoding.BadImage))
        while batch := list(islice(good, engine.batch_size)):
            digests += [digest for _, digest in batch]
            waiting.append(engine.launch([picture for picture, _ in batch]))
        outputs = [wait() for wait in waiting]
        seconds = time.perf_counter() - start
    values = {layer: torch.from_numpy(codes) for layer, codes in concatenate(outputs).items()} if outputs else {}
    rows = {
        digest: {layer: codes[row : row + 1] for layer, codes in values.items()} for row, digest in enumerate(digests)
    }
    return len(files) / seconds, rows


def matmul_speedup(device: torch.device, kind: torch.dtype) -> float:
    """Return how many times as fast as in float32 a device multiplies matrices of a type."""
    full = torch.ones(1024, 1024, device=device)
    low = full.to(kind)
    return time_forward(lambda x: {"": x @ x}, full) / time_forward(lambda x: {"": x @ x}, low)
