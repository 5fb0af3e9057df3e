"""Decode the bytes of an image file to an upright RGB image, or say why that fails."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""An image with more pixels is rejected: it may be a decompression bomb. (Pillow's own limit: 256 MiB of RGB.)"""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""The formats that are decoded. Pillow knows more formats, some of which start other programs (EPS)."""

# `decode` checks the pixel limit itself and raises an error where Pillow would only warn.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PILLOW, TORCHCODEC = DECODERS = ("pillow", "torchcodec")
"""The decoders of JPEG files: Pillow, or TorchCodec, which decodes and resizes on the network's device.

On a CPU both give the same pixels before resizing; on a GPU, TorchCodec uses nvJPEG, whose pixels differ a little.
"""


class BadImage(Exception):  # noqa: N818 - it is the image that is bad
    """A file that cannot be decoded to an image; the message is the reason."""


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _raise_bad_image() -> Iterator[None]:
    """Turn every exception of a decoder into a `BadImage` with the reason."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"no image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more pixels than the limit of {MAX_PIXELS:,}") from error
    except Exception as error:  # damaged bytes can make a decoder raise any exception
        raise BadImage(f"damaged or truncated: {' '.join(str(error).split()) or type(error).__name__}") from error


@_raise_bad_image()
def decode(data: bytes, min_side: int = 0) -> Image.Image:
    """Decode a file's bytes to an upright RGB image; raise `BadImage` with the reason if that fails.

    min_side: JPEG files may be decoded at a smaller scale whose sides have at least this many pixels, which is faster;
    0 for the full size.
    """
    if not data:
        raise BadImage("the file is empty (zero bytes)")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _validate_pixel_count(image)
    if min_side:
        image.draft(None, (min_side, min_side))
    return to_upright_rgb(image)


@_raise_bad_image()
def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as RGB, rotated by its EXIF orientation; raise `BadImage` if that fails.

    Transparent pixels are composited on white, 16-bit grey keeps its upper 8 bits, and an animation gives its first
    frame.
    """
    _validate_pixel_count(image)
    image.load()
    rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return _to_rgb(ImageOps.exif_transpose(image) if rotated else image)


def _validate_pixel_count(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} × {image.height} pixels, more than the limit of {MAX_PIXELS:,}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16_to_rgb(np.asarray(image))
    if image.mode == "F":
        raise BadImage("floating-point pixels have no fixed range to map to 0…255")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey16_to_rgb(grey: np.ndarray) -> Image.Image:
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise BadImage("grey values beyond 16 bits have no fixed range to map to 0…255")
    return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")


def read_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex; raise `BadImage` if the file cannot be read."""
    return digest(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; raise `BadImage` with the system's reason if the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from error
