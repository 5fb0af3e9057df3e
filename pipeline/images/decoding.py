"""Image bytes become (3, H, W) uint8: decode, EXIF orientation, resize, crop; and what makes an image bad."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 89_478_485
"""Images of more pixels than this (Pillow's own limit: 256 MiB of RGB) are bad: they may be decompression bombs."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow knows more formats, some of which start other programs (EPS)."""

# The pixel limit is checked by `decode`, which refuses what Pillow would only warn of.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PILLOW, TORCHCODEC = DECODERS = ("pillow", "torchcodec")
"""What decodes JPEG files and resizes them: Pillow, or TorchCodec and torch on the network's device (`jpegs`).

On a processor TorchCodec's pixels are Pillow's before they are resized; on a GPU, by nvJPEG, they differ a little.
"""


class BadImage(Exception):  # noqa: N818 - it is the image that is bad
    """A file that gives no picture; the message is the reason, for the report."""


def digest(data: bytes) -> str:
    """Return the SHA-256 of the bytes of a file, in hex."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever a decoder raises into a `BadImage` with the reason."""
    try:
        yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"no image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more pixels than the limit of {MAX_PIXELS:,}") from error
    except Exception as error:  # a decoder fed with damaged bytes may raise anything; the reason is reported
        raise BadImage(f"damaged or truncated: {' '.join(str(error).split()) or type(error).__name__}") from error


@_explained()
def decode(data: bytes, enough: int = 0) -> Image.Image:
    """Decode a file's bytes to an upright RGB picture; raise `BadImage` with the reason if that fails.

    enough: pixels of both sides that suffice (0: all there are); JPEG is decoded faster at a scale near that.
    """
    if not data:
        raise BadImage("the file is empty (zero bytes)")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _validate_pixel_count(image)
    if enough:
        image.draft(None, (enough, enough))
    return upright(image)


@_explained()
def upright(image: Image.Image) -> Image.Image:
    """Return an opened picture as RGB, the way its EXIF orientation says; raise `BadImage` if that fails.

    Transparent pixels are laid on white; 16-bit grey keeps its upper 8 bits; of an animation, the first frame.
    """
    _validate_pixel_count(image)
    image.load()
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return _to_rgb(ImageOps.exif_transpose(image) if turned else image)


def _validate_pixel_count(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} × {image.height} pixels, more than the limit of {MAX_PIXELS:,}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16_to_rgb(np.asarray(image))
    if image.mode == "F":
        raise BadImage("floating-point pixels have no fixed range to map to 0…255")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey16_to_rgb(grey: np.ndarray) -> Image.Image:
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise BadImage("grey values beyond 16 bits have no fixed range to map to 0…255")
    return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")


def read_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    return digest(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; one that cannot be read is a bad image, with the system's reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from error
