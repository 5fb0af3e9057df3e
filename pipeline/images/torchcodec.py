"""Decode JPEG files by TorchCodec, many at a time on a GPU, and resize them on the network's device."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline import errors
from pipeline.images import decoding, metadata, parallel
from pipeline.images.transforms import Loaded, LoadedImage, Transform, transform_image

MAX_BATCH_PIXELS = 1 << 25
"""The most pixels that are decoded together (100 MB); an image that has more is decoded alone."""

MIN_ALL_REFUSED = 8
"""If TorchCodec refuses all of at least so many files, TorchCodec is at fault, not the files."""

END_OF_IMAGE, MAX_TRAILING_BYTES = b"\xff\xd9", 1024
"""The last two bytes of a complete JPEG, and the length in which they must be found at the end of the file."""

RGB_COMPONENT_IDS = [82, 71, 66]
"""The ids of a JPEG's components, "R", "G" and "B", if its colours are not YCbCr."""

INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
"""Torch's interpolation modes by the keys of `transforms.RESAMPLING`."""


@dataclass(frozen=True)
class PlainJpeg:
    """A JPEG file that TorchCodec decodes.

    name: of the file, for messages; digest: the SHA-256 of its bytes, in hex; width, height: as its header states.
    """

    name: str
    digest: str
    data: bytes
    width: int
    height: int


OpenedFile = PlainJpeg | Loaded
"""A JPEG file that is still to be decoded by TorchCodec, or what another file gave."""


def validate_usable(transform: Transform, device: torch.device) -> None:
    """Raise PipelineError with the reason if TorchCodec cannot decode for that transform on that device."""
    if transform.views != "one":
        raise errors.PipelineError(
            f"TorchCodec decodes whole images, no --views {transform.views}. Take --decoder pillow."
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


def open_jpeg(name: str, data: bytes, digest: str, transform: Transform) -> PlainJpeg | LoadedImage:
    """Return a file for TorchCodec, or, where it is no plain JPEG, the image decoded by Pillow.

    Raises `BadImage` if Pillow cannot decode it, or if the resized image would have too many pixels.
    """
    size = plain_size(data)
    if size is None:
        return decode_with_pillow(data, digest, transform)
    transform.geometry(*size)
    return PlainJpeg(name, digest, data, *size)


def decode_with_pillow(data: bytes, digest: str, transform: Transform) -> LoadedImage:
    """Return the image of a file that TorchCodec does not decode."""
    image = decoding.decode(data, max_value=transform.max_value)
    return LoadedImage(transform_image(image, replace(transform, decoder=decoding.PILLOW), digest), digest)


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in a JPEG's header, or None where decoders could disagree on the image.

    These are files that are truncated or too large, whose colours are RGB or CMYK, or that are to be rotated: decoders
    look for that information in different places of a file.
    """
    if END_OF_IMAGE not in data[-MAX_TRAILING_BYTES:]:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.size if is_plain(image) else None
    except Exception:  # a damaged header can raise any exception; decoding by Pillow then gives the reason
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
        and components != RGB_COMPONENT_IDS
        and image.info.get("adobe_transform") != 0
        and len(exifs) <= 1
        and image.getexif().get(metadata.ORIENTATION, 1) == 1
        and metadata.orientation_of(image) == 1
    )


def batches(files: Iterable[OpenedFile], max_files: int) -> Iterator[list[OpenedFile]]:
    """Yield the files, in order, in lists of at most `max_files` files and `MAX_BATCH_PIXELS` pixels to decode."""
    batch: list[OpenedFile] = []
    batch_pixels = 0
    for file in files:
        pixels = file.width * file.height if isinstance(file, PlainJpeg) else 0
        if batch and (len(batch) == max_files or batch_pixels + pixels > MAX_BATCH_PIXELS):
            yield batch
            batch, batch_pixels = [], 0
        batch.append(file)
        batch_pixels += pixels
    if batch:
        yield batch


def decode_batch(
    files: Sequence[OpenedFile], transform: Transform, device: torch.device, report: Callable[[str], None]
) -> list[Loaded]:
    """Decode the JPEGs among some files on the device, and return all files in order, the others as they are.

    A file that TorchCodec refuses is decoded by Pillow; where that works, `report` is called with a sentence on it.
    Raises PipelineError if TorchCodec refuses everything.
    """
    refused: list[str] = []
    jpegs = [file for file in files if isinstance(file, PlainJpeg)]
    decoded = iter(decode_files(jpegs, transform, device, refused.append))
    if len(refused) == len(jpegs) >= MIN_ALL_REFUSED:
        raise errors.PipelineError(
            f"TorchCodec refuses all of {len(jpegs)} files, {refused[-1]}. Take --decoder pillow."
        )
    for line in refused:
        report(f"Decoded by Pillow, since TorchCodec refuses it: {line}")
    return [next(decoded) if isinstance(file, PlainJpeg) else file for file in files]


def decode_files(
    files: Sequence[PlainJpeg], transform: Transform, device: torch.device, refuse: Callable[[str], None]
) -> list[Loaded]:
    """Return the images of plain JPEGs; if TorchCodec fails on some, it is called again on each half of them."""
    try:
        return transformed_images(files, transform, device)
    except RuntimeError as error:
        reason = reason_of(error)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(files) == 1:
        fall_back = partial(fall_back_to_pillow, transform=transform, refuse=refuse, reason=reason)
        return [parallel.attempt(fall_back, files[0])]
    halves = files[: len(files) // 2], files[len(files) // 2 :]
    return [image for half in halves for image in decode_files(half, transform, device, refuse)]


def fall_back_to_pillow(
    file: PlainJpeg, transform: Transform, refuse: Callable[[str], None], reason: str
) -> LoadedImage:
    """Return Pillow's image of a file that TorchCodec refuses, and report it; raise `BadImage` if it is damaged."""
    image = decode_with_pillow(file.data, file.digest, transform)
    refuse(f"{file.name!r} ({reason})")
    return image


def transformed_images(files: Sequence[PlainJpeg], transform: Transform, device: torch.device) -> list[Loaded]:
    """Return the images of plain JPEGs, resized and cropped, in order; images of one size are resized together.

    Raises RuntimeError if TorchCodec fails on any of them.
    """
    decoded = decode([file.data for file in files], device)
    rows_by_size: dict[tuple[int, int], list[int]] = {}
    for row, (file, image) in enumerate(zip(files, decoded, strict=True)):
        if image.shape != (3, file.height, file.width):
            raise RuntimeError(f"it gives {tuple(image.shape)}, the header states {file.height} × {file.width}")
        rows_by_size.setdefault((file.height, file.width), []).append(row)
    cropped: dict[int, torch.Tensor] = {}
    for rows in rows_by_size.values():
        batch = torch.stack([decoded[row] for row in rows]) if len(rows) > 1 else decoded[rows[0]][None]
        cropped |= zip(rows, resize_and_crop(batch, transform), strict=True)
    return [LoadedImage(cropped[row], file.digest) for row, file in enumerate(files)]


def decode(contents: Sequence[bytes], device: torch.device) -> list[torch.Tensor]:
    """Return the (3, height, width) uint8 images of JPEG files on a device; raise RuntimeError if one fails."""
    from torchcodec.decoders import decode_jpeg

    return list(decode_jpeg(list(contents), mode="RGB", device=device)) if contents else []


def resize_and_crop(images: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Return (n, 3, crop height, crop width) uint8 of (n, 3, height, width) uint8 images.

    The pixels equal those of `transforms.resize_and_crop` within rounding.
    """
    new_width, new_height, left, top = transform.geometry(images.shape[3], images.shape[2])
    crop_height, crop_width = transform.size
    mode = INTERPOLATIONS[transform.interpolation]
    resized = functional.resize(images, [new_height, new_width], mode, antialias=True)
    return resized[:, :, top : top + crop_height, left : left + crop_width].contiguous()


def reason_of(error: Exception) -> str:
    """Return the first line of an error, without the line of TorchCodec's source code at its start."""
    return re.sub(r"^\w+, \S+:\d+, ", "", errors.first_line(error)).rstrip(".")
