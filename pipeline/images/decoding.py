"""Decode the bytes of an image file to an upright RGB image, or say why that fails."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""An image with more pixels is rejected: it may be a decompression bomb. (Pillow's own limit: 256 MiB of RGB.)"""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""The formats that are decoded. Pillow knows more formats, some of which start other programs (EPS)."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

CONTAINERS = (
    ((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC image"),
    ((b"avif", b"avis"), "an AVIF image"),
    ((b"crx ",), "a RAW photo (CR3)"),
)
"""Formats that share the container of MP4, by the brand in their first bytes."""

RAW_STARTS = {
    b"II*\0\x10\0\0\0CR": "a RAW photo (CR2)",
    b"FUJIFILMCCD-RAW": "a RAW photo (RAF)",
    b"IIU\0": "a RAW photo (RW2)",
    b"IIRO": "a RAW photo (ORF)",
    b"IIRS": "a RAW photo (ORF)",
}
"""RAW formats by their first bytes."""

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
    if kind := _kind_of(data):
        raise BadImage(f"{kind}, which is not read: convert it to JPEG or PNG first")
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
    method = TRANSPOSITIONS.get(orientation(image))
    return _to_rgb(image if method is None else image.transpose(method))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 where it has none, or one that cannot be read.

    No other tag is looked at: a photo is good if its pixels are, whatever its other metadata holds.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata may be damaged in any way, and pixels decide
        return 1
    return value if isinstance(value, int) else 1


def _kind_of(data: bytes) -> str:
    """Return the name of a format that is known and not read, with the package that reads it; "" for all others."""
    if data[4:8] == b"ftyp":
        return next((kind for brands, kind in CONTAINERS if data[8:12] in brands), "")
    return next((kind for start, kind in RAW_STARTS.items() if data.startswith(start)), "")


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
