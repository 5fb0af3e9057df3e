"""Images of more than 8 bits: their values as the file holds them, and how these become 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline import errors
from pipeline.images import metadata

WHITE = 65535.0
"""The value that is white in images of more than 8 bits, where nothing else is known."""

INTEGER_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""The values that may be white in a dataset of integers: 8, 10, 12, 14 and 16 bits."""

FLOAT_WHITES = (1.0, 255.0)
"""The values that may be white in a dataset of floating-point numbers."""

BITS_PER_SAMPLE, PLANAR = 258, 284
"""Tags of TIFF files."""
UNSPECIFIED = 0
"""What a TIFF file says of a channel beside its colours that is no transparency: infrared light, for one."""

PNG_DEPTH = 24
"""Where in a PNG file its number of bits per channel is."""


class UnusableValuesError(ValueError):
    """The values of an image cannot become 8 bits; the message is the reason."""


@dataclass(frozen=True)
class Range:
    """Which values images of more than 8 bits hold; is_float: whether these are floating-point numbers."""

    is_float: bool
    lowest: float
    highest: float


def range_of(values: np.ndarray) -> Range:
    """Return the range of the colours of an image; values: (h, w) or (h, w, c) as `values_of` gives them."""
    colours = _split_alpha(values)[0]
    return Range(values.dtype.kind == "f", float(colours.min()), float(colours.max()))


@dataclass(frozen=True)
class Depths:
    """How many bits the images of a dataset have, with which those of new images are compared.

    eight_bit: whether some have 8 bits or fewer; deep: the range of all others, None for no others; darkest: the
    smallest of their highest values.
    """

    eight_bit: bool
    deep: Range | None = None
    darkest: float = 0.0

    @classmethod
    def of(cls, ranges: Sequence[Range | None]) -> Depths:
        """Return the depths of images with these ranges, None for one of 8 bits or fewer."""
        deep = [one for one in ranges if one is not None]
        return cls(len(deep) < len(ranges), join_ranges(deep), min((one.highest for one in deep), default=0.0))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Depths:
        """Return what `to_dict` was made from; raise KeyError, TypeError or ValueError for anything else."""
        deep = data["deep"]
        values = None if deep is None else Range(bool(deep["is_float"]), float(deep["lowest"]), float(deep["highest"]))
        return cls(bool(data["eight_bit"]), values, float(data["darkest"]))

    def to_dict(self) -> dict[str, Any]:
        """Return the depths as plain JSON types."""
        return asdict(self)


def validate_depth(values: Range | None, known: Depths, white: float) -> None:
    """Raise UnusableValuesError for an image whose depth no training image has: what is white in it is unknown.

    values: its range, None for 8 bits or fewer; known: of the training images; white: the value that is white in these.
    """
    if reason := _odd_depth(values, known, white):
        raise UnusableValuesError(f"{reason}, so the value that is white in it is unknown (give it with --range)")


def _odd_depth(values: Range | None, known: Depths, white: float) -> str:
    """Say in what the depth of an image differs from those of all training images; "" if in nothing."""
    deep = known.deep
    if values is None:
        return "" if known.eight_bit else "it has 8 bits per channel, and all training images have more"
    if deep is None:
        return f"its values are {values.lowest:g}…{values.highest:g}, and all training images have 8 bits per channel"
    if values.is_float != deep.is_float:
        return f"its values are {_kind(values)}, and those of the training images are {_kind(deep)}"
    if values.highest > max(white, deep.highest) or values.lowest < min(0, deep.lowest):
        return f"its values are {values.lowest:g}…{values.highest:g}, and in the training images {white:g} is white"
    if _usual_white(values.highest, values.is_float) < _usual_white(known.darkest, deep.is_float):
        return f"its values end at {values.highest:g}, and those of each training image reach {known.darkest:g} or more"
    return ""


def _kind(values: Range) -> str:
    return "floating-point numbers" if values.is_float else "integers"


def _usual_white(highest: float, is_float: bool) -> float:
    """Return the smallest usual value of white that is not exceeded, infinity if all are."""
    return next((white for white in (FLOAT_WHITES if is_float else INTEGER_WHITES) if highest <= white), np.inf)


def join_ranges(ranges: list[Range]) -> Range | None:
    """Return the range that holds several; None for no range. Raise PipelineError for integers beside floats."""
    if not ranges:
        return None
    if len({one.is_float for one in ranges}) > 1:
        raise errors.PipelineError(
            "Some images hold floating-point numbers and others integers of more than 8 bits, so no value is white in "
            "both. Convert them to one kind."
        )
    lowest, highest = min(one.lowest for one in ranges), max(one.highest for one in ranges)
    return Range(ranges[0].is_float, lowest, highest)


def white_of(values: Range) -> float:
    """Return the value that is white in a dataset: the smallest usual one that holds its largest value.

    Raises PipelineError where no usual range holds its values.
    """
    white = _usual_white(values.highest, values.is_float)
    if white == np.inf or values.lowest < 0:
        raise errors.PipelineError(
            f"The images hold {_kind(values)} of {values.lowest:g}…{values.highest:g}, so the value that is white is "
            "unknown. Give it with --range VALUE."
        )
    return white


def describe(values: Range, white: float) -> str:
    """Return a sentence on the images of more than 8 bits of a dataset."""
    if values.is_float:
        kind = "Floating-point images"
    elif white in INTEGER_WHITES:
        kind = f"{int(white).bit_length()}-bit images"
    else:
        kind = "Images of more than 8 bits"
    return f"{kind}: {white:g} is white (their values are {values.lowest:g}…{values.highest:g})."


def values_of(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the values of an opened image of more than 8 bits; None for an image of 8 bits or fewer.

    Returns (h, w), or (h, w, c) of 2 channels for grey with alpha, 3 for RGB, or 4 for RGB with alpha. data: the bytes
    of its file, b"" for an image in memory. Raises UnusableValuesError for values that mean nothing, and ValueError
    where the file cannot be decoded.
    """
    if not is_deep(image, data):
        return None
    if image.mode.startswith("I") or image.mode == "F":
        image.load()
        return _validate_finite(np.asarray(image))
    return colour_values(data)


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Return whether an opened image has more than 8 bits, by its header; data: as in `values_of`."""
    return image.mode.startswith("I") or image.mode == "F" or _has_deep_colours(image, data)


def _has_deep_colours(image: Image.Image, data: bytes) -> bool:
    """Return whether a file has 16 bits per channel, of which Pillow would keep the upper 8."""
    if image.format == "PNG":
        return data[PNG_DEPTH : PNG_DEPTH + 1] == b"\x10" and image.mode in ("RGB", "RGBA", "LA")
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    return bool(data) and max(bits) > 8 and image.mode in ("RGB", "RGBA", "RGBX", "LA")


def colour_values(data: bytes) -> np.ndarray:
    """Return the values of a PNG or TIFF file by OpenCV, which keeps all of their bits, unlike Pillow.

    The channels are in the order of `values_of`, which says what is raised.
    """
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the reason is told by what is raised
    tags = metadata.read_tags(data) if data.startswith(metadata.TIFF) else {}
    if tags.get(PLANAR) == 2:
        raise UnusableValuesError(
            "its channels of 16 bits lie in separate planes, so save it with interleaved channels"
        )
    stripped, _ = metadata.strip(data) or (data, 1)
    values = cv2.imdecode(np.frombuffer(stripped, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("the pixels cannot be decoded")
    if values.ndim == 3 and values.shape[2] >= 3:
        kept = 3 if tags.get(metadata.EXTRA_SAMPLES) == UNSPECIFIED else values.shape[2]
        values = values[..., [2, 1, 0, 3][:kept]]
    return _validate_finite(np.ascontiguousarray(values))


def _validate_finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnusableValuesError("some of its values are infinite or no numbers")
    return values


def to_rgb(values: np.ndarray, white: float) -> Image.Image:
    """Return the values of an image as 8-bit RGB, on white where they are transparent.

    white: the value that becomes 255; larger ones are clipped, and negative ones are black. Raises UnusableValuesError
    where `white` cannot be white in this image.
    """
    colours, alpha = _split_alpha(values)
    image = Image.fromarray(_to_8_bits(colours, white)).convert("RGB")
    if alpha is None:
        return image
    opaque = white_of(range_of(alpha))
    image.putalpha(Image.fromarray(_to_8_bits(alpha, opaque)))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _split_alpha(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if values.ndim == 3 and values.shape[2] in (2, 4):
        return (values[..., 0] if values.shape[2] == 2 else values[..., :3]), values[..., -1]
    return values, None


def _to_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    """Return values as uint8; integers keep their upper bits, so that 65535 and 4095 divide by 256 and 16."""
    highest = values.max()
    if values.dtype.kind == "f":
        if white == WHITE and highest <= 1:
            raise UnusableValuesError(f"floating-point values up to 1, while {white:g} is white (see --range)")
        return np.clip(np.round(255 * values.astype(np.float64) / white), 0, 255).astype(np.uint8)
    if white <= 1 < highest or white <= WHITE < highest:
        raise UnusableValuesError(f"integers up to {highest}, while {white:g} is white (see --range)")
    return np.clip(values.astype(np.int64) * 256 // (int(white) + 1), 0, 255).astype(np.uint8)
