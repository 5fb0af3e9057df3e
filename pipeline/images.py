"""Image bytes become (3, H, W) uint8: decode, EXIF orientation, resize, crop; and what makes an image bad."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pipeline import views
from pipeline.errors import PipelineError
from pipeline.views import View

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

PILLOW, TORCHCODEC = DECODERS = ("pillow", "torchcodec")
"""What decodes JPEG files and resizes them: Pillow, or TorchCodec and torch on the network's device (`jpegs`).

On a processor TorchCodec's pixels are Pillow's before they are resized; on a GPU, by nvJPEG, they differ a little.
"""

Item = TypeVar("Item")
Result = TypeVar("Result")


class BadImage(Exception):  # noqa: N818 - it is the image that is bad
    """A file that gives no picture; the message is the reason, for the report."""


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
    decoder: str = PILLOW

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
        if wide * high > MAX_PIXELS:
            raise BadImage(f"{width} × {height} pixels are too long and narrow: resized, they exceed {MAX_PIXELS:,}")
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
            raise PipelineError(
                f"--resize {resize} leaves pictures smaller than the crop of {height}x{width}. Take {shorter} or more."
            )
        if self.views in views.CROPPING and resize == shorter:
            raise PipelineError(
                f"With --resize {resize} and a crop of {height}x{width}, the corners of --views {self.views} are the "
                f"centre. Take --resize {round(shorter * 256 / 224)}, or --views cnnaug."
            )
        other = 0 if width == height else width
        return replace(native, resize=resize, crop=height, crop_width=other, fit=self.fit, views=self.views)


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "320" or "448x336"."""
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", text):
        raise PipelineError(f"--size {text!r} is no size. Write 320, or 448x336 for height x width, in pixels.")
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]


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
    _demand_few_pixels(image)
    if enough:
        image.draft(None, (enough, enough))
    return upright(image)


@_explained()
def upright(image: Image.Image) -> Image.Image:
    """Return an opened picture as RGB, the way its EXIF orientation says; raise `BadImage` if that fails.

    Transparent pixels are laid on white; 16-bit grey keeps its upper 8 bits; of an animation, the first frame.
    """
    _demand_few_pixels(image)
    image.load()
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return _to_rgb(ImageOps.exif_transpose(image) if turned else image)


def _demand_few_pixels(image: Image.Image) -> None:
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


def show(image: Image.Image, transform: Transform, name: str) -> np.ndarray:
    """Return what the network sees of a picture: (3, height, width) uint8, or (n_views, 3, height, width) of several.

    name: the digest of the file's bytes.
    """
    if transform.views == "one":
        return shrink_and_crop(image, transform)
    return np.stack([_show_view(image, transform, view) for view in views.of(transform.views, name, image.size)])


def _show_view(image: Image.Image, transform: Transform, view: View) -> np.ndarray:
    """Return one view; what a turn leaves empty has the colour that the network takes for zero."""
    if view.turn:
        red, green, blue = (round(255 * value) for value in transform.mean)
        image = image.rotate(view.turn, Image.Resampling.BILINEAR, fillcolor=(red, green, blue))
    left, top, right, bottom = (round(p * side) for p, side in zip(view.box, 2 * image.size, strict=True))
    image = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    seen = shrink_and_crop(image, replace(transform, fit="whole") if view.squeezed else transform, view.anchor)
    return np.ascontiguousarray(seen[:, :, ::-1]) if view.mirrored else seen


def shrink_and_crop(image: Image.Image, transform: Transform, anchor: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Return the (3, height, width) uint8 centre of a picture whose shorter side was resized to `transform.resize`.

    anchor: where the crop lies, if not in the centre, as in `views.View`.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on the same Pillow image.
    """
    assert transform.decoder == PILLOW
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


def read(path: Path, transform: Transform) -> tuple[np.ndarray, str]:
    """Return what the network sees of a file, as `show` gives it, and the digest of its bytes."""
    return picture(read_bytes(path), transform)


def picture(data: bytes, transform: Transform) -> tuple[np.ndarray, str]:
    """Return what the network sees of a file's bytes, as `show` gives it, and their digest."""
    name = digest(data)
    return show(decode(data), transform, name), name


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
    function: Callable[[Item], Result], items: Iterable[Item | BadImage], threads: int, ahead: int
) -> Iterator[Result | BadImage]:
    """Yield `function(item)` for each item, in order, from threads; a `BadImage` it raises is yielded in its place.

    An item that is a `BadImage` already is passed on.

    At most `ahead` results wait, so memory does not grow with the number of items. (Decoders release Python's
    lock, so threads suffice.)
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result | BadImage]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(attempt, function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_turns(
    function: Callable[[Item], Result], items: Iterable[Item | BadImage], threads: int, at_once: int
) -> Iterator[Result | BadImage]:
    """Yield what `ordered_map` does, but let the threads rest between one `at_once` items and the next.

    For a caller that needs all cores itself in between: threads beside it would make it wait longer than they take.
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(rest, at_once)):
            yield from list(pool.map(partial(attempt, function), some))


def attempt(function: Callable[[Item], Result], item: Item | BadImage) -> Result | BadImage:
    """Return `function(item)`, or the `BadImage` that it raises; an item that is one already is passed on."""
    try:
        return item if isinstance(item, BadImage) else function(item)
    except BadImage as bad:
        return bad
