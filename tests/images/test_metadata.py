"""Pixels decide: orientation is applied, no other metadata spoils an image, and formats that are not read are named."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.images import decoding

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def with_orientation(value: int, denominator: int = 0) -> bytes:
    """Return a PNG with the EXIF tags orientation and XResolution, the latter a rational of that denominator."""
    entries = struct.pack("<HHIHH", 0x112, 3, 1, value, 0) + struct.pack("<HHII", 0x11A, 5, 1, 38)
    header = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    exif = header + struct.pack("<H", 2) + entries + struct.pack("<I", 0) + struct.pack("<II", 72, denominator)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation_beside_a_rational_with_denominator_zero(value: int) -> None:
    sound = Image.open(io.BytesIO(with_orientation(value, denominator=1)))
    expected = np.asarray(ImageOps.exif_transpose(sound))
    np.testing.assert_array_equal(np.asarray(decoding.decode(with_orientation(value))), expected)


def test_exif_that_is_no_exif_is_ignored() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=b"Exif\0\0" + b"\xff" * 40)
    np.testing.assert_array_equal(np.asarray(decoding.decode(buffer.getvalue())), PIXELS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
    ],
)
def test_formats_that_are_not_read_are_named(data: bytes, name: str) -> None:
    with pytest.raises(decoding.BadImage, match=f"{name}.*JPEG or PNG"):
        decoding.decode(data + bytes(100))
