"""JPEG files decoded many at a time on the network's device, by TorchCodec, and resized there."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline import images
from pipeline.errors import PipelineError
from pipeline.images import PILLOW, BadImage, Transform

LOT_PIXELS = 1 << 26
"""Pixels that are decoded together, 200 MB of them, or one image if it has more."""

END, TAIL = b"\xff\xd9", 1024
"""What a whole JPEG ends with, and how many bytes that do not belong to it may follow."""

INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
"""What torch calls the keys of `images.RESAMPLING`."""

Decoded = tuple[np.ndarray | torch.Tensor, str]
"""A (3, height, width) uint8 picture, and the digest of its file."""


@dataclass(frozen=True)
class Encoded:
    """The bytes of a plain JPEG of so many pixels."""

    path: Path
    digest: str
    data: bytes
    pixels: int


Read = Encoded | Decoded | BadImage
"""What becomes of a file before TorchCodec."""


def demand_usable(transform: Transform, device: torch.device) -> None:
    """Raise an error that says what is missing, if TorchCodec cannot decode for that transform on that device."""
    if transform.views != "one":
        raise PipelineError(f"TorchCodec decodes whole pictures, no --views {transform.views}. Take --decoder pillow.")
    if find_spec("torchcodec") is None:
        raise PipelineError("TorchCodec is to decode JPEGs, and is not installed. Run: pip install torchcodec.")
    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "JPEG")
    (found,) = decode([data.getvalue()], device)
    if isinstance(found, RuntimeError):
        raise PipelineError(f"TorchCodec cannot decode on {device} ({reason_of(found)}). Take --decoder pillow.")


def load(path: Path) -> tuple[Path, bytes]:
    """Read a file."""
    return path, images.read_bytes(path)


def sort(file: tuple[Path, bytes], transform: Transform) -> Encoded | Decoded:
    """Return a file for TorchCodec; if it is no plain JPEG, or too long and narrow, it is Pillow's as ever."""
    path, data = file
    width, height = plain_size(data)
    both_ways = [transform.covering(*size) for size in ((width, height), (height, width)) if width]  # may be turned
    if not width or max(map(math.prod, both_ways)) > images.MAX_PIXELS:
        return by_pillow(data, transform)
    return Encoded(path, images.digest(data), data, width * height)


def by_pillow(data: bytes, transform: Transform) -> Decoded:
    """Return what becomes of a file that TorchCodec does not decode."""
    return images.picture(data, replace(transform, decoder=PILLOW))


def plain_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) that a JPEG's header states; (0, 0) if it is torn, in CMYK, too large, or no JPEG."""
    if END not in data[-TAIL:]:
        return 0, 0
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            few = image.width * image.height <= images.MAX_PIXELS
            return image.size if few and image.format == "JPEG" and image.mode in ("RGB", "L") else (0, 0)
    except Exception:  # a header may be damaged in any way; decoding the file by Pillow then tells the reason
        return 0, 0


def lots(files: Iterable[Read], most: int) -> Iterator[list[Read]]:
    """Yield the files, in order, in lists of no more than `most`, and of no more than `LOT_PIXELS` to decode."""
    lot: list[Read] = []
    pixels = 0
    for file in files:
        more = file.pixels if isinstance(file, Encoded) else 0
        if lot and (len(lot) == most or pixels + more > LOT_PIXELS):
            yield lot
            lot, pixels = [], 0
        lot.append(file)
        pixels += more
    if lot:
        yield lot


def open_file(path: Path, transform: Transform) -> Encoded | Decoded:
    """Read a file for TorchCodec."""
    return sort(load(path), transform)


def picture(file: tuple[Path, bytes], transform: Transform, note: Callable[[str], None]) -> Decoded:
    """Return what a network on a processor is to see of one file; several at a time would be no faster there."""
    (found,) = shown([sort(file, transform)], transform, torch.device("cpu"), note)
    if isinstance(found, BadImage):
        raise found
    return found


def shown(
    lot: Sequence[Read], transform: Transform, device: torch.device, note: Callable[[str], None]
) -> list[Decoded | BadImage]:
    """Return what the network is to see of some files, on the device, in order."""
    found = iter(decode_files([file for file in lot if isinstance(file, Encoded)], transform, device, note))
    every = [next(found) if isinstance(file, Encoded) else file for file in lot]
    return [item if isinstance(item, BadImage) else (torch.as_tensor(item[0]).to(device), item[1]) for item in every]


def decode_files(
    files: Sequence[Encoded], transform: Transform, device: torch.device, note: Callable[[str], None]
) -> list[Decoded | BadImage]:
    """Return the pictures of plain JPEGs; one that TorchCodec refuses is left to Pillow, and noted if that takes it."""

    def otherwise(pair: tuple[Encoded, RuntimeError]) -> Decoded:
        file, error = pair
        found = by_pillow(file.data, transform)
        note(f"{str(file.path)!r} was decoded by Pillow, TorchCodec refuses it: {reason_of(error)}")
        return found

    decoded = decode([file.data for file in files], device)
    pictures = iter(shrink([one for one in decoded if isinstance(one, torch.Tensor)], transform))
    return [
        images.attempt(otherwise, (file, one)) if isinstance(one, RuntimeError) else (next(pictures), file.digest)
        for file, one in zip(files, decoded, strict=True)
    ]


def decode(contents: Sequence[bytes], device: torch.device) -> list[torch.Tensor | RuntimeError]:
    """Return (3, height, width) uint8 of JPEG files, upright and on the device, or TorchCodec's error."""
    from torchcodec.decoders import decode_jpeg

    if not contents:
        return []
    try:
        return list(decode_jpeg(list(contents), mode="RGB", device=device))
    except RuntimeError as error:  # one bad file spoils the lot
        return [error] if len(contents) == 1 else [one for content in contents for one in decode([content], device)]


def shrink(pictures: Sequence[torch.Tensor], transform: Transform) -> list[torch.Tensor]:
    """Return the pictures resized and cropped, in order; those of one size are resized together."""
    places: dict[torch.Size, list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(picture.shape, []).append(place)
    found: dict[int, torch.Tensor] = {}
    for some in places.values():
        alike = [pictures[place] for place in some]
        together = torch.stack(alike) if len(alike) > 1 else alike[0][None]
        found |= zip(some, shrink_and_crop(together, transform), strict=True)
    return [found[place] for place in range(len(pictures))]


def shrink_and_crop(pictures: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Return what `images.shrink_and_crop` gives, within rounding, of each of (n, 3, height, width) uint8 pictures."""
    wide, high, left, top = transform.placing(pictures.shape[3], pictures.shape[2])
    crop_height, crop_width = transform.size
    resized = functional.resize(pictures, [high, wide], INTERPOLATIONS[transform.interpolation], antialias=True)
    return resized[:, :, top : top + crop_height, left : left + crop_width].contiguous()


def reason_of(error: RuntimeError) -> str:
    """Return the end of an error's first line; before it stands where in TorchCodec it was raised."""
    return (str(error).splitlines() or [type(error).__name__])[0].rpartition(", ")[2].rstrip(".")
