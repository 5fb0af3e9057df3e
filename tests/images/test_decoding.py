"""Decoding: the right RGB from every kind of file, and a reason for every bad one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decoding

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUARTERS = np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8).repeat(16, 0).repeat(16, 1)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decoding.decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 64))]
    parts = [
        struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_lossless_files_give_their_colours(mode: str, kind: str) -> None:
    image = Image.fromarray(QUARTERS).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encode(image, kind, **options)), QUARTERS)


def test_grey_and_black_and_white_become_three_equal_channels() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(grey))), np.stack([grey] * 3, -1))
    binary = Image.fromarray(grey > 99)
    np.testing.assert_array_equal(pixels(encode(binary)), np.stack([(grey > 99) * np.uint8(255)] * 3, -1))


def test_16_bit_grey_keeps_its_upper_8_bits() -> None:
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(encode(Image.fromarray(grey), kind))[..., 0], grey >> 8)


def test_transparent_pixels_lie_on_white() -> None:
    rgba = np.dstack([QUARTERS, np.full((32, 32), 255, np.uint8)])
    rgba[:16, :16, 3] = 0
    expected = QUARTERS.copy()
    expected[:16, :16] = 255
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(rgba))), expected)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(rgba).convert("LA")))[:16, :16], 255)
    palette = Image.fromarray(QUARTERS).quantize(4)
    index = palette.getpixel((0, 0))
    np.testing.assert_array_equal(pixels(encode(palette, transparency=index)), expected)


def test_cmyk_jpeg_gives_its_colours_and_not_their_negative() -> None:
    data = encode(Image.fromarray(QUARTERS).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(pixels(data).astype(int) - QUARTERS).max() <= 3


def test_copies_with_other_metadata_or_in_another_format_have_the_same_content() -> None:
    image, exif = Image.fromarray(QUARTERS), Image.Exif()
    exif[271] = "maker"
    jpeg = decoding.examine(encode(image, "JPEG")).content
    assert decoding.examine(encode(image, "JPEG", exif=exif, comment=b"said")).content == jpeg
    exif[274] = 6
    assert decoding.examine(encode(image, "JPEG", exif=exif)).content != jpeg
    contents = {decoding.examine(encode(image, kind)).content for kind in ("PNG", "BMP", "TIFF", "PPM")}
    assert len(contents) == 1 and decoding.examine(encode(image.rotate(90))).content not in contents


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = {
        1: QUARTERS,
        2: QUARTERS[:, ::-1],
        3: QUARTERS[::-1, ::-1],
        4: QUARTERS[::-1],
        5: QUARTERS.transpose(1, 0, 2),
        6: np.rot90(QUARTERS, 1),
        7: np.rot90(QUARTERS.transpose(1, 0, 2), 2),
        8: np.rot90(QUARTERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", quality=100, subsampling=0, exif=exif)
    assert np.abs(pixels(data).astype(int) - QUARTERS).max() <= 3


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(pixels(data)[0, 0]) == RED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"not an image at all", "no image of a known format"),
        (encode(Image.fromarray(QUARTERS), "JPEG")[:400], "truncated"),
        (encode(Image.effect_noise((64, 64), 9))[:900], "truncated"),
        (png_header(30_000, 30_000), "more pixels than the limit"),
        (png_header(10_000, 9_000), "more than the limit of 89,478,485"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "the format PostScript"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "bomb", "large", "float", "eps"],
)
def test_a_bad_file_is_named_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(decoding.BadImage, match=reason):
        decoding.decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_damaged_bytes_give_an_image_or_bad_image(kind: str) -> None:
    rng = np.random.default_rng(1)
    good = encode(Image.fromarray(QUARTERS), kind)
    for _ in range(60):
        damaged = bytearray(good[: rng.integers(1, len(good) + 1)])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        try:
            assert decoding.decode(bytes(damaged)).mode == "RGB"
        except decoding.BadImage as bad:
            assert str(bad)


def test_a_reduced_file_is_examined_as_a_whole_one() -> None:
    data = encode(Image.effect_noise((700, 600), 40).convert("RGB"), "JPEG")
    assert min(decoding.decode(data, min_side=100).size) == 150  # a quarter of it
    assert decoding.examine(data).shorter_side == 600
    rng = np.random.default_rng(2)
    for _ in range(40):  # what is damaged is found at any scale
        damaged = bytearray(data[: rng.integers(len(data) // 2, len(data) + 1)])
        for place in rng.integers(0, len(damaged), 2):
            damaged[place] = rng.integers(256)
        outcomes = []
        for read in (decoding.examine, decoding.decode):
            try:
                outcomes.append(bool(read(bytes(damaged))))
            except decoding.BadImage as bad:
                outcomes.append(str(bad))
        assert outcomes[0] == outcomes[1]


def test_a_file_that_cannot_be_read_is_bad(tmp_path: Path) -> None:
    with pytest.raises(decoding.BadImage, match="No such file"):
        decoding.read_bytes(tmp_path / "gone.png")


def test_a_file_too_large_for_any_image_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "film.jpg"
    with file.open("wb") as stream:
        stream.truncate(decoding.MAX_BYTES + 1)  # a sparse file, which takes no room
    with pytest.raises(decoding.BadImage, match="bytes, more than the limit of 2,147,483,648"):
        decoding.read_bytes(file)
