"""Augmentation: training pictures cropped, shifted and flipped by chance, the same chance in every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images import decoding, transforms

Generator = np.random.Generator

MAX_ASPECT_RATIO = 4 / 3
"""The longer side of a random crop to the shorter."""


def resized(transform: transforms.Transform, side: int) -> transforms.Transform:
    """Return a transform whose crop has another side, and shows the same part of the picture."""
    return replace(transform, resize=round(transform.resize * side / transform.crop), crop=side)


def _none(data: bytes, transform: transforms.Transform, side: int, chance: Generator) -> np.ndarray:
    """Return what the network sees in evaluation."""
    return transforms.resize_and_crop(decoding.decode(data), resized(transform, side))


def _crop(data: bytes, transform: transforms.Transform, side: int, chance: Generator, least: float) -> np.ndarray:
    """Return a random rectangle of at least a share `least` of the picture, resized to a square.

    The share is drawn before the file is decoded: JPEG needs no more pixels than leave `side` in the rectangle.
    """
    share = chance.uniform(least, 1)
    ratio = MAX_ASPECT_RATIO ** chance.uniform(-1, 1)
    picture = decoding.decode(data, enough=math.ceil(side / math.sqrt(share * min(ratio, 1 / ratio))))
    area = share * picture.width * picture.height
    width, height = min(math.sqrt(area * ratio), picture.width), min(math.sqrt(area / ratio), picture.height)
    left, top = chance.uniform(0, picture.width - width), chance.uniform(0, picture.height - height)
    return _take(picture, (left, top, left + width, top + height), transform, side)


def _shift(data: bytes, transform: transforms.Transform, side: int, chance: Generator) -> np.ndarray:
    """Return a random square of what evaluation sees, its border first reflected outwards by an eighth.

    The square's side is 58/64 to 80/64 of the crop's.
    """
    crop = transform.crop
    pixels = _none(data, transform, crop, chance).transpose(1, 2, 0)
    padded = Image.fromarray(np.pad(pixels, ((crop // 8,) * 2, (crop // 8,) * 2, (0, 0)), "reflect"))
    square = min(chance.uniform(58 / 64, 80 / 64) * crop, padded.width)
    left, top = chance.uniform(0, padded.width - square, 2)
    return _take(padded, (left, top, left + square, top + square), transform, side)


def _take(
    picture: Image.Image, box: tuple[float, float, float, float], transform: transforms.Transform, side: int
) -> np.ndarray:
    filtering = transforms.RESAMPLING[transform.interpolation]
    return np.asarray(picture.resize((side, side), filtering, box)).transpose(2, 0, 1)


AUGMENTATIONS: dict[str, Callable[[bytes, transforms.Transform, int, Generator], np.ndarray]] = {
    "none": _none,
    "crop": partial(_crop, least=0.08),
    "gentle": partial(_crop, least=0.35),
    "shift": _shift,
}
"""What becomes of the bytes of a training image: (3, side, side) uint8."""


def read_augmented(
    path: Path, transform: transforms.Transform, augment: str, flip: float, side: int, seed: tuple[int, ...]
) -> np.ndarray:
    """Return the (3, side, side) uint8 picture of a file, augmented by the chance that `seed` stands for.

    flip: the probability of a mirror image.
    """
    chance = np.random.default_rng(seed)
    mirrored = chance.uniform() < flip
    picture = AUGMENTATIONS[augment](decoding.read_bytes(path), transform, side, chance)
    return np.ascontiguousarray(picture[..., ::-1] if mirrored else picture)
