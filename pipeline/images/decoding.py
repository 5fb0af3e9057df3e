"""Decode the bytes of an image file to an upright RGB image, or say why that fails."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.images import formats, metadata

MAX_PIXELS = 89_478_485
"""An image with more pixels is rejected: it may be a decompression bomb. (Pillow's own limit: 256 MiB of RGB.)"""

# `decode` checks the pixel limit itself and raises an error where Pillow would only warn.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow warns of damaged metadata, which is not used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

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
        raise BadImage(f"no image of a known format ({', '.join(formats.FORMATS)})") from error
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
    readable = formats.readable_formats(data)
    if not readable:
        raise BadImage(formats.refusal(data))
    try:
        return _decode(data, readable, min_side)
    except (BadImage, Image.DecompressionBombError):
        raise
    except Exception:  # metadata can be the reason, and metadata do not count
        stripped = metadata.strip(data)
        if stripped is None:
            raise
    return _decode_stripped(*stripped, readable, min_side)


def _decode(data: bytes, readable: tuple[str, ...], min_side: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=readable)
    _validate_pixel_count(image)
    if min_side:
        image.draft(None, (min_side, min_side))
    return _to_upright_rgb(image)


def _decode_stripped(data: bytes, orientation: int, readable: tuple[str, ...], min_side: int) -> Image.Image:
    """Return the image of a file whose metadata were taken away; they gave its orientation."""
    try:
        return _transpose(_decode(data, readable, min_side), orientation)
    except UnidentifiedImageError as error:  # its first bytes are those of a known format
        raise BadImage("damaged or truncated: its header cannot be read") from error


@_raise_bad_image()
def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as RGB, rotated by its EXIF orientation; raise `BadImage` if that fails.

    Transparent pixels are composited on white, 16-bit grey keeps its upper 8 bits, an animation gives its first frame,
    and all metadata but the orientation are ignored.
    """
    return _to_upright_rgb(image)


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    _validate_pixel_count(image)
    image.load()
    return _transpose(_to_rgb(image), metadata.orientation_of(image))


def _transpose(image: Image.Image, orientation: int) -> Image.Image:
    method = metadata.TRANSPOSES.get(orientation)
    return image if method is None else image.transpose(method)


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
