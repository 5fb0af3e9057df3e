"""JPEG files decoded by TorchCodec, many at a time on a GPU, and resized where the network is."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline import errors
from pipeline.images import decoding, parallel, transforms

BATCH_PIXELS = 1 << 25
"""Pixels that are decoded together, 100 MB of them, or one image if it has more."""

SUSPECT = 8
"""Files, all refused together, that say more of TorchCodec than of themselves."""

END, TAIL = b"\xff\xd9", 1024
"""What a whole JPEG ends with, and how many bytes that do not belong to it may follow."""

RGB_IDS = [82, 71, 66]
"""What the components of a JPEG are called, R, G and B, if its colours are not YCbCr."""

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
    """The bytes of a plain JPEG, and what its header says."""

    path: Path
    digest: str
    data: bytes
    width: int
    height: int


ReadFile = Encoded | Decoded | decoding.BadImage
"""What becomes of a file before TorchCodec."""


def validate_usable(transform: transforms.Transform, device: torch.device) -> None:
    """Raise an error that says what is missing, if TorchCodec cannot decode for that transform on that device."""
    if transform.views != "one":
        raise errors.PipelineError(
            f"TorchCodec decodes whole pictures, no --views {transform.views}. Take --decoder pillow."
        )
    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "JPEG")
    try:
        decode([data.getvalue()], device)
    except (ImportError, OSError) as error:
        raise errors.PipelineError(
            f"TorchCodec is to decode JPEGs and cannot be loaded ({reason_of(error)}). "
            "Run: pip install 'torchcodec>=0.17'."
        ) from error
    except RuntimeError as error:
        raise errors.PipelineError(
            f"TorchCodec cannot decode on {device} ({reason_of(error)}). "
            "Take --device cpu, or codes made with --decoder pillow."
        ) from error


def load_file(path: Path) -> tuple[Path, bytes]:
    """Read a file."""
    return path, decoding.read_bytes(path)


def triage(file: tuple[Path, bytes], transform: transforms.Transform) -> Encoded | Decoded:
    """Return a file for TorchCodec, or what Pillow makes of it if it is no plain JPEG."""
    path, data = file
    size = plain_size(data)
    if size is None:
        return decode_with_pillow(data, transform)
    transform.placing(*size)
    return Encoded(path, decoding.digest(data), data, *size)


def decode_with_pillow(data: bytes, transform: transforms.Transform) -> Decoded:
    """Return what becomes of a file that TorchCodec does not decode."""
    return transforms.transform_bytes(data, replace(transform, decoder=decoding.PILLOW))


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that a JPEG's header states, if any decoder must make the same of it.

    So not of one that is torn, or too large, that has its colours in RGB or CMYK, or is to be turned: where in a file
    that may be said is understood in several ways.
    """
    if END not in data[-TAIL:]:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.size if is_plain(image) else None
    except Exception:  # a header may be damaged in any way; decoding the file by Pillow then tells the reason
        return None


def is_plain(image: Image.Image) -> bool:
    """Whether an opened JPEG is small enough, upright, grey or YCbCr, and has one frame header and at most one EXIF."""
    components = [component[0] for component in image.layer]  # type: ignore[attr-defined]
    exifs = [data for _, data in image.applist if data.startswith(b"Exif\0\0")]  # type: ignore[attr-defined]
    return (
        image.format == "JPEG"
        and image.mode in ("RGB", "L")
        and image.width * image.height <= decoding.MAX_PIXELS
        and len(components) == len(image.getbands())
        and components != RGB_IDS
        and image.info.get("adobe_transform") != 0
        and len(exifs) <= 1
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    )


def batches(files: Iterable[ReadFile], most: int) -> Iterator[list[ReadFile]]:
    """Yield the files, in order, in lists of no more than `most`, and of no more than `LOT_PIXELS` to decode."""
    lot: list[ReadFile] = []
    pixels = 0
    for file in files:
        more = file.width * file.height if isinstance(file, Encoded) else 0
        if lot and (len(lot) == most or pixels + more > BATCH_PIXELS):
            yield lot
            lot, pixels = [], 0
        lot.append(file)
        pixels += more
    if lot:
        yield lot


def open_file(path: Path, transform: transforms.Transform) -> Encoded | Decoded:
    """Read a file for TorchCodec."""
    return triage(load_file(path), transform)


def read_one(file: tuple[Path, bytes], transform: transforms.Transform, note: Callable[[str], None]) -> Decoded:
    """Return what a network on a processor is to see of one file; several at a time would be no faster there."""
    (found,) = decode_batch([triage(file, transform)], transform, torch.device("cpu"), note)
    if isinstance(found, decoding.BadImage):
        raise found
    return found


def decode_batch(
    lot: Sequence[ReadFile], transform: transforms.Transform, device: torch.device, note: Callable[[str], None]
) -> list[Decoded | decoding.BadImage]:
    """Return what the network is to see of some files, on the device, in order.

    A file that TorchCodec refuses is left to Pillow, and noted if that takes it.
    """
    refused: list[str] = []
    plain = {place: file for place, file in enumerate(lot) if isinstance(file, Encoded)}
    found = dict(zip(plain, decode_files(list(plain.values()), transform, device, refused.append), strict=True))
    if len(refused) == len(plain) >= SUSPECT:
        raise errors.PipelineError(
            f"TorchCodec refuses all of {len(plain)} files, {refused[-1]}. Take --decoder pillow."
        )
    for line in refused:
        note(f"Decoded by Pillow, since TorchCodec refuses it: {line}")
    every = [file if not isinstance(file, Encoded) else found[place] for place, file in enumerate(lot)]
    return [
        item if isinstance(item, decoding.BadImage) else (torch.as_tensor(item[0]).to(device), item[1])
        for item in every
    ]


def decode_files(
    files: Sequence[Encoded], transform: transforms.Transform, device: torch.device, refuse: Callable[[str], None]
) -> list[Decoded | decoding.BadImage]:
    """Return the pictures of plain JPEGs; where one spoils all, or memory lacks, half of them at a time."""
    try:
        return list(zip(images_of(files, transform, device), (file.digest for file in files), strict=True))
    except RuntimeError as error:
        reason = reason_of(error)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(files) == 1:
        return [
            parallel.attempt(partial(fall_back_to_pillow, transform=transform, refuse=refuse, reason=reason), files[0])
        ]
    parts = files[: len(files) // 2], files[len(files) // 2 :]
    return [item for part in parts for item in decode_files(part, transform, device, refuse)]


def fall_back_to_pillow(
    file: Encoded, transform: transforms.Transform, refuse: Callable[[str], None], reason: str
) -> Decoded:
    """Return the picture of a file that TorchCodec refuses, and say so; raise `BadImage` if it is damaged."""
    found = decode_with_pillow(file.data, transform)
    refuse(f"{str(file.path)!r} ({reason})")
    return found


def images_of(files: Sequence[Encoded], transform: transforms.Transform, device: torch.device) -> list[torch.Tensor]:
    """Return the pictures of plain JPEGs, resized and cropped, in order; those of one size are resized together."""
    decoded = decode([file.data for file in files], device)
    places: dict[tuple[int, int], list[int]] = {}
    for place, (file, picture) in enumerate(zip(files, decoded, strict=True)):
        if picture.shape != (3, file.height, file.width):
            raise RuntimeError(f"it gives {tuple(picture.shape)}, the header states {file.height} × {file.width}")
        places.setdefault((file.height, file.width), []).append(place)
    found: dict[int, torch.Tensor] = {}
    for some in places.values():
        alike = [decoded[place] for place in some]
        together = torch.stack(alike) if len(alike) > 1 else alike[0][None]
        found |= zip(some, resize_and_crop(together, transform), strict=True)
    return [found[place] for place in range(len(files))]


def decode(contents: Sequence[bytes], device: torch.device) -> list[torch.Tensor]:
    """Return (3, height, width) uint8 of JPEG files on a device; TorchCodec raises a RuntimeError if one fails."""
    from torchcodec.decoders import decode_jpeg

    return list(decode_jpeg(list(contents), mode="RGB", device=device)) if contents else []


def resize_and_crop(pictures: torch.Tensor, transform: transforms.Transform) -> torch.Tensor:
    """Return what `images.shrink_and_crop` gives, within rounding, of each of (n, 3, height, width) uint8 pictures."""
    wide, high, left, top = transform.placing(pictures.shape[3], pictures.shape[2])
    crop_height, crop_width = transform.size
    resized = functional.resize(pictures, [high, wide], INTERPOLATIONS[transform.interpolation], antialias=True)
    return resized[:, :, top : top + crop_height, left : left + crop_width].contiguous()


def reason_of(error: Exception) -> str:
    """Return an error's first line without where in TorchCodec it was raised, which may stand before it."""
    return re.sub(r"^\w+, \S+:\d+, ", "", errors.first_line(error)).rstrip(".")
