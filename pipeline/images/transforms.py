"""The transform that an image goes through before the network sees it: resize, crop, and one or several views."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

from pipeline import errors
from pipeline.images import decoding, depth, views

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
"""Pillow's resampling filters by the name of the interpolation."""

TEST_SIZE = "test"
"""What --size takes for the size at which the weights were tested."""

SCALED_MARGIN = 2
"""How many times as large as after resizing a file is decoded at least, if it is decoded at a fraction of its size.

Resizing by 2 or more averages over several pixels in each direction, and thus hides how libjpeg averaged before: the
pixels of an image of 12 megapixels resized to 256 differ by 0.2 of 255 on average. At once the size, edges would show.
"""

CENTRE = (0.5, 0.5)
"""The anchor of a central crop."""


@dataclass(frozen=True)
class Transform:
    """How an image is changed before the network sees it.

    resize: pixels of the shorter side after resizing (antialiased); crop: height of the central crop, and its width
    where crop_width is 0; interpolation: a key of `RESAMPLING`; mean, std: per channel (RGB), of values in [0, 1];
    crop_width: width of a crop that is not square: the image is then resized to cover a rectangle of the crop's
    proportions whose shorter side is `resize`; fit: "crop", or "whole" to resize the whole image to the crop's size,
    which changes its proportions; views: a name that `views.count` accepts; decoder: one of `decoding.DECODERS`, whose
    pixels differ a little; max_value: the value that is white in images of more than 8 bits.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_width: int = 0
    fit: str = "crop"
    views: str = "one"
    decoder: str = decoding.PILLOW
    max_value: float = depth.WHITE

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of what the network sees."""
        return self.crop, self.crop_width or self.crop

    @property
    def min_side(self) -> int:
        """Sides in pixels down to which a JPEG file may be reduced while it is decoded; 0 for none."""
        return SCALED_MARGIN * self.longer_resize if self.decoder == decoding.SCALED else 0

    @property
    def longer_resize(self) -> int:
        """Longer side, in pixels, of the rectangle that a resized image covers."""
        return round(self.resize * max(self.size) / min(self.size))

    def resized_size(self, width: float, height: float) -> tuple[int, int]:
        """Return the (width, height) to which an image is resized before it is cropped."""
        crop_height, crop_width = self.size
        if self.fit == "whole":
            return crop_width, crop_height
        shorter = min(crop_height, crop_width)
        box_width, box_height = (round(self.resize * side / shorter) for side in (crop_width, crop_height))
        if box_width * height >= box_height * width:
            return box_width, int(box_width * height / width)
        return int(box_height * width / height), box_height

    def geometry(self, width: float, height: float, anchor: tuple[float, float] = CENTRE) -> tuple[int, int, int, int]:
        """Return the (width, height) to which an image is resized, and the left and top edge of its crop.

        anchor: where the crop lies, as in `views.View`. Raises `BadImage` if the resized image has too many pixels.
        """
        new_width, new_height = self.resized_size(width, height)
        if new_width * new_height > decoding.MAX_PIXELS:
            raise decoding.BadImage(
                f"{width:g} × {height:g} pixels are too long and narrow: resized, they exceed {decoding.MAX_PIXELS:,}"
            )
        crop_height, crop_width = self.size
        left, top = round((new_width - crop_width) * anchor[0]), round((new_height - crop_height) * anchor[1])
        return new_width, new_height, left, top


@dataclass(frozen=True)
class Framing:
    """The part of an image that the network sees, where the user changes what the weights were trained with.

    size: (height, width) in pixels; resize: as in `Transform`; None for either: the value of the weights, in
    proportion; fit: "crop", "whole", or "" for that of the weights; views, max_value: as in `Transform`; test_size:
    whether the values of the weights are those with which they were tested, where these differ.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    fit: str = ""
    views: str = "one"
    max_value: float = depth.WHITE
    test_size: bool = False

    @classmethod
    def sized(cls, size: str | int | None, **others: Any) -> Framing:
        """Return a framing with a size as --size names it: 320, 448x336, test, or None for the network's own."""
        text = str(size or "")
        return cls(None if text in ("", TEST_SIZE) else parse_size(text), test_size=text == TEST_SIZE, **others)

    def of(self, native: Transform) -> Transform:
        """Return the transform `native` with this framing; raise PipelineError where the two do not fit together."""
        views.count(self.views)
        height, width = self.size or native.size
        shorter = min(height, width)
        resize = self.resize or round(native.resize * shorter / min(native.size))
        fit = self.fit or native.fit
        if fit == "whole":
            resize = shorter
        elif resize < shorter:
            raise errors.PipelineError(
                f"--resize {resize} leaves images smaller than the crop of {height}x{width}. Take {shorter} or more."
            )
        if self.views in views.CROPPING and resize == shorter:
            raise errors.PipelineError(
                f"With --resize {resize} and a crop of {height}x{width}, the corners of --views {self.views} are the "
                f"centre. Take --resize {round(shorter * 256 / 224)}, or --views cnnaug."
            )
        crop_width = 0 if width == height else width
        return replace(
            native,
            resize=resize,
            crop=height,
            crop_width=crop_width,
            fit=fit,
            views=self.views,
            max_value=self.max_value,
        )


@dataclass(frozen=True)
class LoadedImage:
    """An image as the network sees it.

    pixels: (3, height, width) uint8, or (n_views, 3, height, width) of several views; an array, or a tensor that may
    be on a GPU; digest: the SHA-256 of the file's bytes (of an image in memory: of its size and pixels), in hex.
    """

    pixels: np.ndarray | torch.Tensor
    digest: str


@dataclass(frozen=True)
class KnownImage:
    """An image that was not decoded, since its code is known; digest: the SHA-256 of the file's bytes, in hex."""

    digest: str


Loaded = LoadedImage | KnownImage | decoding.BadImage
"""What loading an image gives."""


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of a text like "320" or "448x336"."""
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", text):
        raise errors.PipelineError(
            f"--size {text!r} is no size. Write 320, or 448x336 for height x width, in pixels, or {TEST_SIZE}."
        )
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]


def transform_image(
    image: Image.Image, transform: Transform, digest: str, box: decoding.Box | None = None
) -> np.ndarray:
    """Return what the network sees of an image: (3, height, width) uint8, or (n_views, 3, height, width).

    digest: the SHA-256 of the file's bytes, in hex, on which random views depend; box: as in `resize_and_crop`.
    """
    if transform.views == "one":
        return resize_and_crop(image, transform, box=box)
    chosen = views.views_of(transform.views, digest, image.size)
    return np.stack([_transform_view(image, transform, view) for view in chosen])


def _transform_view(image: Image.Image, transform: Transform, view: views.View) -> np.ndarray:
    """Return one view; corners that a rotation leaves empty get the mean colour, which the network sees as zero."""
    if view.angle:
        red, green, blue = (round(255 * value) for value in transform.mean)
        image = image.rotate(view.angle, Image.Resampling.BILINEAR, fillcolor=(red, green, blue))
    left, top, right, bottom = (round(share * side) for share, side in zip(view.box, 2 * image.size, strict=True))
    image = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    pixels = resize_and_crop(image, replace(transform, fit="whole") if view.stretched else transform, view.anchor)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if view.mirrored else pixels


def resize_and_crop(
    image: Image.Image, transform: Transform, anchor: tuple[float, float] = CENTRE, box: decoding.Box | None = None
) -> np.ndarray:
    """Return the (3, height, width) uint8 crop of an image whose shorter side was resized to `transform.resize`.

    anchor: where the crop lies, as in `views.View`; box: what the image fills of its pixels, None for all. The result
    equals that of torchvision's Resize and CenterCrop on the same Pillow image bit for bit. Raises ValueError for a
    transform whose decoder is not Pillow.
    """
    if transform.decoder == decoding.TORCHCODEC:
        raise ValueError(f"The transform is for images decoded by {transform.decoder}, not by Pillow.")
    box = box or (0, 0, *image.size)
    width, height = box[2] - box[0], box[3] - box[1]
    new_width, new_height, left, top = transform.geometry(width, height, anchor)
    crop_height, crop_width = transform.size
    filter_ = RESAMPLING[transform.interpolation]
    # Pillow, too, resizes along the rows first, so columns outside the crop need not be resized vertically.
    if new_width != width:
        image = image.resize((new_width, image.height), filter_, (box[0], 0, box[2], image.height))
    image = image.crop((left, 0, left + crop_width, image.height))
    if new_height != height:
        image = image.resize((crop_width, new_height), filter_, (0, box[1], crop_width, box[3]))
    image = image.crop((0, top, crop_width, top + crop_height))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def load_image(path: Path, transform: Transform) -> np.ndarray:
    """Return what the network sees of an image file, decoded by Pillow; raise `BadImage` if that fails."""
    return transform_bytes(decoding.read_bytes(path), transform)


def transform_bytes(data: bytes, transform: Transform) -> np.ndarray:
    """Return what the network sees of a file's bytes, decoded by Pillow; raise `BadImage` if that fails."""
    image, box = decoding.decode_with_box(data, transform.min_side, transform.max_value)
    return transform_image(image, transform, decoding.digest(data), box)
