"""Decoding: the right RGB from every kind of file, and a reason for every bad one."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.v2 as tv
from PIL import Image

from pipeline.images import decoding, parallel, transforms

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


def test_of_an_animation_the_first_frame_counts() -> None:
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
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "bomb", "large", "float", "eps"],
)
def test_a_bad_file_is_named_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(decoding.BadImage, match=reason):
        decoding.decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_damaged_bytes_give_a_picture_or_a_reason_and_never_anything_else(kind: str) -> None:
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


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (63, 64), (8, 8), (301, 20), (57, 999)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (232, 225)])
def test_resize_and_crop_equal_torchvisions(size: tuple[int, int], resize: int, crop: int) -> None:
    image = Image.effect_noise(size, 80).convert("RGB")
    theirs = tv.Compose([tv.Resize(resize), tv.CenterCrop(crop), tv.PILToTensor()])(image)
    transform = transforms.Transform(resize, crop, "bilinear", (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(transforms.resize_and_crop(image, transform), theirs.numpy())


def test_a_picture_too_long_and_narrow_to_resize_is_bad() -> None:
    with pytest.raises(decoding.BadImage, match="too long and narrow"):
        transforms.resize_and_crop(
            Image.new("RGB", (1, 60_000)), transforms.Transform(256, 224, "bilinear", (0, 0, 0), (1, 1, 1))
        )


def test_a_file_that_cannot_be_read_is_bad(tmp_path: Path) -> None:
    with pytest.raises(decoding.BadImage, match="No such file"):
        decoding.read_bytes(tmp_path / "gone.png")


def test_ordered_map_keeps_order_passes_bad_images_on_and_reads_only_a_little_ahead() -> None:
    taken = []

    def numbers() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    def square(number: int) -> int:
        if number == 3:
            raise decoding.BadImage("three")
        return number**2

    results = parallel.ordered_map(square, numbers(), threads=4, ahead=8)
    assert next(results) == 0
    assert len(taken) <= 9
    rest = list(results)
    assert isinstance(rest[2], decoding.BadImage)
    assert [r for r in rest if isinstance(r, int)] == [n**2 for n in range(1, 100) if n != 3]


def test_ordered_map_lets_other_errors_through() -> None:
    with pytest.raises(ZeroDivisionError):
        list(parallel.ordered_map(lambda number: 1 // number, [1, 0], threads=2, ahead=2))


def test_in_turns_keeps_order_passes_bad_images_on_and_rests_in_between() -> None:
    running: list[int] = []

    def square(number: int) -> int:
        running.append(number)
        if number == 5:
            raise decoding.BadImage("five")
        return number**2

    given = iter([*range(10), decoding.BadImage("from before"), *range(11, 20)])
    results = parallel.alternating_map(square, given, threads=3, at_once=8)
    assert next(results) == 0 and sorted(running) == list(range(8)), "all of a turn is done before it is given"
    time.sleep(0.05)
    assert len(running) == 8 and next(given) == 8, "and nothing is begun, or asked for, before the next turn"
    rest = list(results)
    assert str(rest[4]) == "five" and rest[:4] == [1, 4, 9, 16] and rest[5:7] == [36, 49]
    assert [str(item) for item in rest[7:9]] == ["81", "from before"] and rest[-1] == 19**2
