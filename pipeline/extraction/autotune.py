"""Choose the precision and the decoder for a run by trying them on some of its images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.extraction.engine import MIN_COSINE, Engine, batch_size_for, lowest_cosine, time_forward
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, torchcodec
from pipeline.images.transforms import SCALED_MARGIN

MIN_SPEEDUP = 1.2
"""How many times as fast as fp32 a lower precision must be, and as fast as Pillow another decoder must be."""

HOPELESS = 0.1
"""A precision that multiplies small matrices less than so many times as fast as fp32 is not tried further."""

MIN_IMAGES_FOR_DECODER = 2000
"""The number of images in a run from which TorchCodec is tried."""

DECODER_IMAGES = 256
"""The number of images on which TorchCodec is tried."""

MIN_IMAGES_FOR_SCALED = 200
"""The number of images in a run from which scaled decoding is tried."""

SCALED_IMAGES = 12
"""The number of images on which scaled decoding is tried; half of them must be large."""

ImageCodes = dict[Path, dict[str, torch.Tensor]]
"""{file: {layer: (1, width)}}"""


def low_precision(device: torch.device) -> str:
    """Return the lower precision that a device may be faster in: bf16, or fp16 on GPUs too old for bf16."""
    return "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else "bf16"


@torch.inference_mode()
def choose_precision(network: FrozenNetwork, images: Sequence[np.ndarray]) -> tuple[str, str]:
    """Return the precision to compute in, and the reason, after trying a lower one on a few of the images.

    The lower precision is chosen if each image's codes have a cosine of at least 0.999 to its codes in fp32, and if it
    is at least 1.2 times as fast.
    """
    from pipeline.networks.frozen import PRECISIONS

    device = network.mean.device
    low = low_precision(device)
    if not images:
        return "fp32", f"there is no image to try {low} on"
    if (speedup := matmul_speedup(device, PRECISIONS[low])) < MIN_SPEEDUP:
        return "fp32", f"{low} multiplies matrices {speedup:.2f} times as fast here"
    batch = torch.from_numpy(np.stack(images)).to(device)
    lower = network.at(precision=low)
    cosine = lowest_cosine(lower(batch), network(batch))
    speedup = time_forward(network, batch) / time_forward(lower, batch)
    choice = low if cosine >= MIN_COSINE and speedup >= MIN_SPEEDUP else "fp32"
    return choice, f"{low} is {speedup:.2f} times as fast, its cosine to fp32 ≥ {cosine:.5f}"


class NotTried(Exception):  # noqa: N818 - it is no error
    """A decoder is not tried on a run's images; the message is the reason."""


def choose_decoder(network: FrozenNetwork, files: Sequence[Path], threads: int) -> tuple[str, str]:
    """Return the decoder for the JPEGs among some files, and the reason.

    Another decoder than Pillow is chosen if it makes a run over some of the files 1.2 times as fast, and each image's
    codes have a cosine of at least 0.999 to those by Pillow.
    """
    candidates, reasons = {}, []
    for decoder, sample in ((decoding.SCALED, sample_for_scaled), (decoding.TORCHCODEC, sample_for_torchcodec)):
        try:
            candidates[decoder] = sample(network, files)
        except NotTried as reason:
            reasons.append(str(reason))
    if not candidates:
        return decoding.PILLOW, "; ".join(reasons)
    try:
        return compare_decoders(network, list(candidates), max(candidates.values(), key=len), threads)
    except (errors.PipelineError, RuntimeError) as error:  # Pillow works wherever a GPU's decoder does not
        return decoding.PILLOW, torchcodec.reason_of(error)


def sample_for_scaled(network: FrozenNetwork, files: Sequence[Path]) -> list[Path]:
    """Return files to try scaled decoding on; raise `NotTried` with the reason where it cannot pay."""
    if network.transform.views != "one":
        raise NotTried("views need all pixels")
    if len(files) < MIN_IMAGES_FOR_SCALED:
        raise NotTried(f"{len(files)} images are too few to repay trying others")
    sample = evenly(files, SCALED_IMAGES)
    min_side = SCALED_MARGIN * network.transform.longer_resize
    if sum(decoding.is_reducible(file, min_side) for file in sample) < len(sample) / 2:
        raise NotTried("few are large enough to be decoded at a fraction of their size")
    return sample


def sample_for_torchcodec(network: FrozenNetwork, files: Sequence[Path]) -> list[Path]:
    """Return files to try TorchCodec on; raise `NotTried` with the reason where it cannot pay or does not work."""
    if network.mean.device.type != "cuda":
        raise NotTried("without a GPU, TorchCodec is taken only if asked for")
    if len(files) < MIN_IMAGES_FOR_DECODER:
        raise NotTried(f"{len(files)} images are too few to repay trying TorchCodec")
    try:
        torchcodec.validate_usable(network.transform, network.mean.device)
    except errors.PipelineError as error:
        raise NotTried(torchcodec.reason_of(error)) from error
    return evenly(files, DECODER_IMAGES)


def evenly(files: Sequence[Path], count: int) -> list[Path]:
    """Return `count` of at least so many files, at even distances."""
    return [files[number * len(files) // count] for number in range(count)]


def compare_decoders(
    network: FrozenNetwork, candidates: Sequence[str], files: Sequence[Path], threads: int
) -> tuple[str, str]:
    """Return the best of Pillow and other decoders for some files, and the reason, after a run with each."""
    slow, pillow = time_run(network.at(decoder=decoding.PILLOW), files, threads)
    best, most, reasons = decoding.PILLOW, MIN_SPEEDUP, []
    for decoder in candidates:
        rate, codes = time_run(network.at(decoder=decoder), files, threads)
        both = pillow.keys() & codes.keys()
        cosine = min((lowest_cosine(codes[file], pillow[file]) for file in both), default=-1.0)
        reasons.append(
            f"{decoder} makes the run {rate / slow:.2f} times as fast, its codes' cosine to pillow's ≥ {cosine:.5f}"
        )
        if cosine >= MIN_COSINE and rate / slow >= most:
            best, most = decoder, rate / slow
    return best, "; ".join(reasons)


def time_run(network: FrozenNetwork, files: Sequence[Path], threads: int) -> tuple[float, ImageCodes]:
    """Return the images per second of the second of two runs over some files, and the codes of each image."""
    engine = Engine(network, min(64, batch_size_for(network.mean.device, network.transform.size)), compiler="no")
    for _ in range(2):
        start = time.perf_counter()
        results = list(compute_codes(engine, ((file, file) for file in files), threads))
        seconds = time.perf_counter() - start
    codes = {
        file: {layer: torch.from_numpy(values[row : row + 1]) for layer, values in batch.codes.items()}
        for batch in results
        if isinstance(batch, CodesBatch)
        for row, file in enumerate(batch.keys)
    }
    return len(files) / seconds, codes


@cache  # it is a fact of the machine, and takes seconds where it is bad news
def matmul_speedup(device: torch.device, dtype: torch.dtype) -> float:
    """Return how many times as fast as in float32 a device multiplies matrices of a dtype.

    Where it is far slower in small matrices, as some CPUs are, large ones are not tried: they would take minutes.
    """
    for side in (256, 1024):
        full = torch.ones(side, side, device=device)
        low = full.to(dtype)
        speedup = time_forward(lambda x: {"": x @ x}, full) / time_forward(lambda x: {"": x @ x}, low)
        if speedup < HOPELESS:
            break
    return speedup
