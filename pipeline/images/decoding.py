"""Decode the bytes of an image file to an upright RGB image, or say why that fails."""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.images import depth, formats, metadata

MAX_PIXELS = 89_478_485
"""An image with more pixels is rejected: it may be a decompression bomb. (Pillow's own limit: 256 MiB of RGB.)"""

MAX_BYTES = 1 << 31
"""A file with more bytes is rejected before it is read: no image within the limit of pixels takes so many."""

# `decode` checks the pixel limit itself and raises an error where Pillow would only warn.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow warns of damaged metadata, which is not used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

PILLOW, SCALED, TORCHCODEC = DECODERS = ("pillow", "pillow-scaled", "torchcodec")
"""The decoders of JPEG files: Pillow at full size; Pillow at a half, a quarter or an eighth of the size, where that is
still large enough; or TorchCodec, which decodes and resizes on the network's device.

The pixels of scaled files differ a little. On a CPU, TorchCodec gives Pillow's pixels before resizing; on a GPU it uses
nvJPEG, whose pixels differ a little.
"""

SMALLEST = 1
"""The least side that lets a JPEG file be decoded at an eighth of its size; all of its data are read nevertheless."""


DAMAGED = "damaged or truncated"
"""How the reason begins, before a colon and what the decoder says, where a file's pixels cannot be decoded."""


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
    except depth.UnusableValuesError as error:
        raise BadImage(str(error)) from error
    except UnidentifiedImageError as error:
        raise BadImage(f"no image of a known format ({', '.join(formats.FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more pixels than the limit of {MAX_PIXELS:,}") from error
    except Exception as error:  # damaged bytes can make a decoder raise any exception
        raise BadImage(f"{DAMAGED}: {' '.join(str(error).split()) or type(error).__name__}") from error


Pixels = Image.Image | np.ndarray
"""A decoded image: an array as `depth.values_of` gives it for more than 8 bits, else an image of Pillow's."""


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels."""


class Decoded(NamedTuple):
    """The pixels of a file, its EXIF orientation, the box that the image fills, and its shorter side at full size."""

    pixels: Pixels
    orientation: int
    box: Box
    shorter_side: int

    @classmethod
    def of_values(cls, values: np.ndarray, orientation: int) -> Decoded:
        """Return an image of more than 8 bits."""
        height, width = values.shape[:2]
        return cls(values, orientation, (0, 0, width, height), min(width, height))


@dataclass(frozen=True, slots=True)
class Facts:
    """What a sound file is.

    shorter_side: in pixels; values: the range of an image of more than 8 bits, None for other images; several: whether
    the file holds more images than the first, as an animation or as pages; content: the digest of its upright pixels,
    for JPEG files as they are stored, whatever the metadata beside them.
    """

    shorter_side: int
    values: depth.Range | None
    several: bool
    content: str


@_raise_bad_image()
def decode(data: bytes, min_side: int = 0, max_value: float = depth.WHITE) -> Image.Image:
    """Decode a file's bytes to an upright RGB image; raise `BadImage` with the reason if that fails.

    min_side: JPEG files may be decoded at a smaller scale whose sides have at least this many pixels, which is faster;
    0 for the full size; max_value: the value that is white in images of more than 8 bits.
    """
    return decode_with_box(data, min_side, max_value)[0]


@_raise_bad_image()
def decode_with_box(data: bytes, min_side: int = 0, max_value: float = depth.WHITE) -> tuple[Image.Image, Box]:
    """Return what `decode` does, and the box that the image fills.

    At a quarter of the size, an image 999 pixels wide has 250 columns, of which it fills 249.75.
    """
    pixels, orientation, box, _ = _read(data, min_side)
    stored = _to_rgb(pixels, max_value)
    image = _transpose(stored, orientation)
    margins = (box[0], box[1], stored.width - box[2], stored.height - box[3])
    left, top, right, bottom = (margins[edge] for edge in metadata.EDGES.get(orientation, range(4)))
    return image, (left, top, image.width - right, image.height - bottom)


def is_reducible(path: Path, min_side: int) -> bool:
    """Return whether a file is a JPEG so large that half of its size has sides of at least `min_side` pixels."""
    try:
        with Image.open(path, formats=("JPEG", "MPO")) as image:
            return min(image.size) >= 2 * min_side
    except Exception:  # `decode` says what is wrong with the file
        return False


@_raise_bad_image()
def examine(data: bytes) -> Facts:
    """Decode a file's bytes, and return what they hold; raise `BadImage` with the reason if that fails."""
    pixels, orientation, _, shorter_side = _read(data, SMALLEST)
    values = depth.range_of(pixels) if isinstance(pixels, np.ndarray) else None
    upright = pixels if isinstance(pixels, np.ndarray) else _transpose(_to_rgb(pixels, depth.WHITE), orientation)
    return Facts(shorter_side, values, _holds_several(data), _digest_content(data, np.asarray(upright)))


def _digest_content(data: bytes, upright: np.ndarray) -> str:
    """Return the digest of what a file shows: see `Facts`; upright: its pixels, which may be reduced for JPEG files."""
    if data.startswith(metadata.JPEG):
        stored, orientation = metadata.strip(data) or (data, 1)
        return digest(stored + bytes([orientation]))
    return digest(repr(upright.shape).encode() + upright.tobytes())


def _holds_several(data: bytes) -> bool:
    """Return whether a file is an animation, or has pages; the previews beside a JPEG photo do not count."""
    if data.startswith(metadata.JPEG):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=formats.FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # what is damaged after the first image does not matter
        return False


@_raise_bad_image()
def validate_depth(data: bytes, known: depth.Depths, white: float) -> None:
    """Raise `BadImage` for a file whose depth no training image has, as `depth.validate_depth` does.

    Files of 8 bits are not decoded for that, and what cannot be opened is left to `decode`, which knows why.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep = depth.is_deep(image, data)
    except Exception:  # damaged metadata, for instance, without which the image may be read
        deep = True
    depth.validate_depth(examine(data).values if deep else None, known, white)


def depth_validator(known: depth.Depths | None, white: float) -> Callable[[bytes], None] | None:
    """Return `validate_depth` for images of these depths; None where nobody knows them, so that all are let through."""
    return partial(validate_depth, known=known, white=white) if known else None


def _read(data: bytes, min_side: int) -> Decoded:
    """Decode a file, if need be without its metadata but the orientation."""
    if not data:
        raise BadImage("the file is empty (zero bytes)")
    readable = formats.readable_formats(data)
    if not readable:
        raise BadImage(formats.refusal(data))
    try:
        return _read_once(data, readable, min_side)
    except (BadImage, depth.UnusableValuesError, Image.DecompressionBombError):
        raise
    except Exception:  # metadata can be the reason, and metadata do not count
        if formats.unusual_pixels(data):
            raise BadImage(formats.refusal(data)) from None
        stripped = metadata.strip(data)
        if stripped is None:
            raise
    return _read_stripped(*stripped, readable, min_side)


def _read_once(data: bytes, readable: tuple[str, ...], min_side: int) -> Decoded:
    image = Image.open(io.BytesIO(data), formats=readable)
    _validate_pixel_count(image.width, image.height)
    values = depth.values_of(image, data)
    if values is not None:
        return Decoded.of_values(values, metadata.stored_orientation(image, data))
    shorter_side = min(image.size)
    reduced = image.draft(None, (min_side, min_side)) if min_side else None
    image.load()
    return Decoded(image, metadata.orientation_of(image), reduced[1] if reduced else (0, 0, *image.size), shorter_side)


def _read_stripped(data: bytes, orientation: int, readable: tuple[str, ...], min_side: int) -> Decoded:
    """Decode a file whose metadata were taken away, which gave its orientation."""
    try:
        return _read_once(data, readable, min_side)._replace(orientation=orientation)
    except UnidentifiedImageError as error:  # its first bytes are those of a known format
        if not data.startswith(metadata.TIFF):
            raise BadImage(f"{DAMAGED}: its header cannot be read") from error
    _validate_pixel_count(*metadata.size_of_tiff(data))
    return Decoded.of_values(depth.colour_values(data), orientation)


@_raise_bad_image()
def to_upright_rgb(image: Image.Image, max_value: float = depth.WHITE) -> Image.Image:
    """Return an opened image as RGB, rotated by its EXIF orientation; raise `BadImage` if that fails.

    Transparent pixels are composited on white, images of more than 8 bits are scaled so that `max_value` becomes 255,
    an animation gives its first frame, and all metadata but the orientation are ignored.
    """
    _validate_pixel_count(image.width, image.height)
    image.load()
    values = depth.values_of(image, b"")
    return _transpose(_to_rgb(image if values is None else values, max_value), metadata.orientation_of(image))


def _transpose(image: Image.Image, orientation: int) -> Image.Image:
    method = metadata.TRANSPOSES.get(orientation)
    return image if method is None else image.transpose(method)


def _validate_pixel_count(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} × {height} pixels, more than the limit of {MAX_PIXELS:,}")


def _to_rgb(image: Pixels, max_value: float) -> Image.Image:
    if isinstance(image, np.ndarray):
        return depth.to_rgb(image, max_value)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex; raise `BadImage` if the file cannot be read."""
    return digest(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; raise `BadImage` with the reason if the file cannot be read, or is too large."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadImage(f"{size:,} bytes, more than the limit of {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from error
