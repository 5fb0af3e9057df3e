"""Image bytes become (3, H, W) uint8: decode, EXIF orientation, resize, crop; and what makes an image bad."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import errors
from pipeline.images import decoding, views

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Transform:
    """What happens to a picture before the network sees it.

    resize: pixels of the shorter side (antialiased), crop: side of the central square, interpolation: a key of
    `RESAMPLING`; mean and std: per channel (RGB), of values in [0, 1]. crop_width: not 0 where the crop is no square
    but `crop` high and this wide; the picture then covers a rectangle of these proportions with `resize` as its
    shorter side. fit: "crop", or "whole": the whole picture is resized to the crop's size, whatever its proportions.
    views: a name that `views.count` knows. decoder: one of `DECODERS`, whose pixels differ a little.
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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return self.crop, self.crop_width or self.crop

    def covering(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which a picture is resized before its centre is cut out."""
        crop_height, crop_width = self.size
        if self.fit == "whole":
            return crop_width, crop_height
        shorter = min(crop_height, crop_width)
        box_width, box_height = (round(self.resize * side / shorter) for side in (crop_width, crop_height))
        if box_width * height >= box_height * width:
            return box_width, int(box_width * height / width)
        return int(box_height * width / height), box_height

    def placing(self, width: int, height: int, anchor: tuple[float, float] = (0.5, 0.5)) -> tuple[int, int, int, int]:
        """Return the (width, height) that a picture is resized to, and the left and top of what is cut out of it.

        anchor: where that lies, if not in the centre, as in `views.View`. Raises `BadImage` if it is too many pixels.
        """
        wide, high = self.covering(width, height)
        if wide * high > decoding.MAX_PIXELS:
            raise decoding.BadImage(
                f"{width} × {height} pixels are too long and narrow: resized, they exceed {decoding.MAX_PIXELS:,}"
            )
        crop_height, crop_width = self.size
        return wide, high, round((wide - crop_width) * anchor[0]), round((high - crop_height) * anchor[1])


@dataclass(frozen=True)
class Framing:
    """What of a picture the network is shown, where that is to differ from what its weights were made for.

    size: (height, width) in pixels; resize: as in `Transform`; None for either: the weights' own, in proportion.
    fit: "crop" or "whole"; views: as in `Transform`.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    fit: str = "crop"
    views: str = "one"

    def of(self, native: Transform) -> Transform:
        """Return a transform changed to this framing."""
        views.count(self.views)
        height, width = self.size or native.size
        shorter = min(height, width)
        resize = self.resize or round(native.resize * shorter / min(native.size))
        if self.fit == "whole":
            resize = shorter
        elif resize < shorter:
            raise errors.PipelineError(
                f"--resize {resize} leaves pictures smaller than the crop of {height}x{width}. Take {shorter} or more."
            )
        if self.views in views.CROPPING and resize == shorter:
            raise errors.PipelineError(
                f"With --resize {resize} and a crop of {height}x{width}, the corners of --views {self.views} are the "
                f"centre. Take --resize {round(shorter * 256 / 224)}, or --views cnnaug."
            )
        other = 0 if width == height else width
        return replace(native, resize=resize, crop=height, crop_width=other, fit=self.fit, views=self.views)


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "320" or "448x336"."""
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", text):
        raise errors.PipelineError(f"--size {text!r} is no size. Write 320, or 448x336 for height x width, in pixels.")
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]


def apply(image: Image.Image, transform: Transform, name: str) -> np.ndarray:
    """Return what the network sees of a picture: (3, height, width) uint8, or (n_views, 3, height, width) of several.

    name: the digest of the file's bytes.
    """
    if transform.views == "one":
        return resize_and_crop(image, transform)
    return np.stack([_apply_view(image, transform, view) for view in views.views_of(transform.views, name, image.size)])


def _apply_view(image: Image.Image, transform: Transform, view: views.View) -> np.ndarray:
    """Return one view; what a turn leaves empty has the colour that the network takes for zero."""
    if view.turn:
        red, green, blue = (round(255 * value) for value in transform.mean)
        image = image.rotate(view.turn, Image.Resampling.BILINEAR, fillcolor=(red, green, blue))
    left, top, right, bottom = (round(p * side) for p, side in zip(view.box, 2 * image.size, strict=True))
    image = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    seen = resize_and_crop(image, replace(transform, fit="whole") if view.squeezed else transform, view.anchor)
    return np.ascontiguousarray(seen[:, :, ::-1]) if view.mirrored else seen


def resize_and_crop(image: Image.Image, transform: Transform, anchor: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Return the (3, height, width) uint8 centre of a picture whose shorter side was resized to `transform.resize`.

    anchor: where the crop lies, if not in the centre, as in `views.View`.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on the same Pillow image.
    """
    assert transform.decoder == decoding.PILLOW
    width, height = image.size
    wide, high, left, top = transform.placing(width, height, anchor)
    crop_height, crop_width = transform.size
    # Pillow, too, resizes along rows first. So columns that are cut off need not be resized along themselves.
    if wide != width:
        image = image.resize((wide, height), RESAMPLING[transform.interpolation])
    image = image.crop((left, 0, left + crop_width, height))
    if high != height:
        image = image.resize((crop_width, high), RESAMPLING[transform.interpolation])
    image = image.crop((0, top, crop_width, top + crop_height))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read_image(path: Path, transform: Transform) -> tuple[np.ndarray, str]:
    """Return what the network sees of a file, as `show` gives it, and the digest of its bytes."""
    return transform_bytes(decoding.read_bytes(path), transform)


def transform_bytes(data: bytes, transform: Transform) -> tuple[np.ndarray, str]:
    """Return what the network sees of a file's bytes, as `show` gives it, and their digest."""
    name = decoding.digest(data)
    return apply(decoding.decode(data), transform, name), name
