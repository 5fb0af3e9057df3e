"""Augmentation: training images cropped, shifted and mirrored at random, in the same way in every run with a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images import decoding
from pipeline.images.transforms import RESAMPLING, Transform, resize_and_crop

Generator = np.random.Generator

MAX_ASPECT_RATIO = 4 / 3
"""The largest ratio of a random crop's longer side to its shorter side."""


def at_side(transform: Transform, side: int) -> Transform:
    """Return a transform whose crop has another side, in pixels, and covers the same part of the image."""
    return replace(transform, resize=round(transform.resize * side / transform.crop), crop=side)


def _evaluation_crop(data: bytes, transform: Transform, side: int, rng: Generator) -> np.ndarray:
    """Return what the network sees in evaluation."""
    return resize_and_crop(decoding.decode(data, max_value=transform.max_value), at_side(transform, side))


def _random_crop(data: bytes, transform: Transform, side: int, rng: Generator, min_area: float) -> np.ndarray:
    """Return a random rectangle with at least a fraction `min_area` of the image's area, resized to a square.

    The fraction is drawn before the file is decoded, since a JPEG file may then be decoded at a smaller scale.
    """
    fraction = rng.uniform(min_area, 1)
    ratio = MAX_ASPECT_RATIO ** rng.uniform(-1, 1)
    min_side = math.ceil(side / math.sqrt(fraction * min(ratio, 1 / ratio)))
    image = decoding.decode(data, min_side, transform.max_value)
    area = fraction * image.width * image.height
    width, height = min(math.sqrt(area * ratio), image.width), min(math.sqrt(area / ratio), image.height)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return _resize_box(image, (left, top, left + width, top + height), transform, side)


def _random_shift(data: bytes, transform: Transform, side: int, rng: Generator) -> np.ndarray:
    """Return a random square of what evaluation sees, whose border is first extended by an eighth by reflection.

    The square's side is 58/64 to 80/64 of the crop's.
    """
    crop = transform.crop
    pixels = _evaluation_crop(data, transform, crop, rng).transpose(1, 2, 0)
    padded = Image.fromarray(np.pad(pixels, ((crop // 8,) * 2, (crop // 8,) * 2, (0, 0)), "reflect"))
    square = min(rng.uniform(58 / 64, 80 / 64) * crop, padded.width)
    left, top = rng.uniform(0, padded.width - square, 2)
    return _resize_box(padded, (left, top, left + square, top + square), transform, side)


def _resize_box(
    image: Image.Image, box: tuple[float, float, float, float], transform: Transform, side: int
) -> np.ndarray:
    resampling = RESAMPLING[transform.interpolation]
    return np.asarray(image.resize((side, side), resampling, box)).transpose(2, 0, 1)


AUGMENTATIONS: dict[str, Callable[[bytes, Transform, int, Generator], np.ndarray]] = {
    "none": _evaluation_crop,
    "crop": partial(_random_crop, min_area=0.08),
    "gentle": partial(_random_crop, min_area=0.35),
    "shift": _random_shift,
}
"""The augmentations by name; each maps the bytes of an image file to (3, side, side) uint8."""


def load_augmented(
    path: Path, transform: Transform, augment: str, flip: float, side: int, seed: tuple[int, ...]
) -> np.ndarray:
    """Return the augmented (3, side, side) uint8 image of a file; raise `BadImage` if it cannot be decoded.

    augment: a key of `AUGMENTATIONS`; flip: the probability of a mirror image; side: in pixels; seed: determines all
    random numbers.
    """
    rng = np.random.default_rng(seed)
    mirrored = rng.uniform() < flip
    pixels = AUGMENTATIONS[augment](decoding.read_bytes(path), transform, side, rng)
    return np.ascontiguousarray(pixels[..., ::-1] if mirrored else pixels)
