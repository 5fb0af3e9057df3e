"""Image bytes become (3, H, W) uint8: decode, EXIF orientation, resize, crop; and what makes an image bad."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 89_478_485
"""Images of more pixels than this (Pillow's own limit: 256 MiB of RGB) are bad: they may be decompression bombs."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow knows more formats, some of which start other programs (EPS)."""

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# The pixel limit is checked by `decode`, which refuses what Pillow would only warn of.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Item = TypeVar("Item")
Result = TypeVar("Result")


class BadImage(Exception):  # noqa: N818 - it is the image that is bad
    """A file that gives no picture; the message is the reason, for the report."""


@dataclass(frozen=True)
class Transform:
    """What happens to a picture before the network sees it.

    resize: pixels of the shorter side (antialiased), crop: side of the central square, interpolation: a key of
    `RESAMPLING`; mean and std: per channel (RGB), of values in [0, 1].
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def digest(data: bytes) -> str:
    """Return the SHA-256 of the bytes of a file, in hex."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, enough: int = 0) -> Image.Image:
    """Decode a file's bytes to an upright RGB picture; raise `BadImage` with the reason if that fails.

    Transparent pixels are laid on white; 16-bit grey keeps its upper 8 bits; of an animation, the first frame.
    enough: pixels of both sides that suffice (0: all there are); JPEG is decoded faster at a scale near that.
    """
    if not data:
        raise BadImage("the file is empty (zero bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise BadImage(f"{image.width} × {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
        if enough:
            image.draft(None, (enough, enough))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"no image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more pixels than the limit of {MAX_PIXELS:,}") from error
    except Exception as error:  # a decoder fed with damaged bytes may raise anything; the reason is reported
        raise BadImage(f"damaged or truncated: {' '.join(str(error).split()) or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16_to_rgb(np.asarray(image))
    if image.mode == "F":
        raise BadImage("floating-point pixels have no fixed range to map to 0…255")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(grey: np.ndarray) -> Image.Image:
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise BadImage("grey values beyond 16 bits have no fixed range to map to 0…255")
    return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")


def shrink_and_crop(image: Image.Image, transform: Transform) -> np.ndarray:
    """Return the (3, crop, crop) uint8 centre of a picture whose shorter side was resized to `transform.resize`.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on the same Pillow image.
    """
    width, height = image.size
    shorter = min(width, height)
    size = (int(transform.resize * width / shorter), int(transform.resize * height / shorter))
    if size[0] * size[1] > MAX_PIXELS:
        raise BadImage(f"{width} × {height} pixels are too long and narrow: resized, they exceed {MAX_PIXELS:,}")
    if size != image.size:
        image = image.resize(size, RESAMPLING[transform.interpolation])
    left = round((size[0] - transform.crop) / 2)
    top = round((size[1] - transform.crop) / 2)
    image = image.crop((left, top, left + transform.crop, top + transform.crop))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read(path: Path, transform: Transform) -> tuple[np.ndarray, str]:
    """Return the (3, crop, crop) uint8 picture of a file and the digest of its bytes."""
    data = read_bytes(path)
    return shrink_and_crop(decode(data), transform), digest(data)


def read_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    return digest(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; one that cannot be read is a bad image, with the system's reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from error


def default_threads() -> int:
    """Return how many threads decode: the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result | BadImage]:
    """Yield `function(item)` for each item, in order, from threads; a `BadImage` it raises is yielded in its place.

    At most `ahead` results wait, so memory does not grow with the number of items. (Decoders release Python's
    lock, so threads suffice.)
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result | BadImage]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(_attempt, function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | BadImage:
    try:
        return function(item)
    except BadImage as bad:
        return bad
