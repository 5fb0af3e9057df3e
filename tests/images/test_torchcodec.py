"""TorchCodec: the same images as Pillow's within rounding; Pillow decodes the files that TorchCodec cannot.

TorchCodec runs on the CPU here; on a GPU the same function gets another device.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import encode_image, smooth_image
from PIL import Image

from pipeline import errors
from pipeline.images import decoding, parallel, torchcodec, transforms

CPU = torch.device("cpu")
PILLOW = transforms.Transform(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
TORCHCODEC = replace(PILLOW, decoder="torchcodec")


def decode(
    data: bytes, transform: transforms.Transform = TORCHCODEC
) -> tuple[np.ndarray | decoding.BadImage, list[str]]:
    """Return what the network sees of one file, and the reports of refusals."""
    reports: list[str] = []
    opened = parallel.attempt(lambda content: torchcodec.open_jpeg("a.jpg", content, "", transform), data)
    (image,) = torchcodec.decode_batch([opened], transform, CPU, reports.append)
    return np.asarray(image.pixels) if isinstance(image, transforms.LoadedImage) else image, reports


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("size", [(500, 375), (61, 200), (32, 32), (20, 24)])
def test_images_are_pillows_within_rounding(options: dict[str, object], size: tuple[int, int]) -> None:
    data = encode_image(smooth_image(*size), **options)
    assert torchcodec.plain_size(data) == size
    for change in (
        {},
        {"interpolation": "bicubic"},
        {"fit": "whole"},
        {"crop_width": 48, "resize": 56},
    ):
        pixels, reports = decode(data, replace(TORCHCODEC, **change))
        exact = transforms.transform_bytes(data, replace(PILLOW, **change))
        assert (
            isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == exact.shape and not reports
        )
        assert np.abs(pixels.astype(int) - exact).max() <= 2


def test_the_nearest_pixel_is_pillows() -> None:
    data = encode_image(smooth_image(120, 96))
    pixels, _ = decode(data, replace(TORCHCODEC, interpolation="nearest", resize=32))
    np.testing.assert_array_equal(
        pixels, transforms.transform_bytes(data, replace(PILLOW, interpolation="nearest", resize=32))
    )


def test_grey_images_are_pillows_within_rounding() -> None:
    data = encode_image(smooth_image(50, 40).convert("L"))
    assert torchcodec.plain_size(data) == (50, 40)
    assert np.abs(decode(data)[0].astype(int) - transforms.transform_bytes(data, PILLOW)).max() <= 2


def exif(orientation: int, kind: str = "H") -> bytes:
    """Return an EXIF block, big-endian, whose orientation is a short (H) or a long (I) number."""
    value = struct.pack(f">{kind}", orientation).ljust(4, b"\0")
    entry = struct.pack(">HHI", 0x0112, {"H": 3, "I": 4}[kind], 1) + value
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)


def xmp(orientation: int) -> bytes:
    """Return an XMP block with an orientation."""
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    inner = f'<rdf:RDF {rdf}><rdf:Description tiff:Orientation="{orientation}"/></rdf:RDF>'
    return f'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">{inner}</x:xmpmeta>'.encode()


def with_blocks(data: bytes, *blocks: bytes) -> bytes:
    """Return a JPEG with APP1 blocks at its start."""
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks) + data[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["exif", "exif, long", "xmp", "xmp, then exif", "exif twice"])
def test_orientation_is_applied_as_by_pillow(orientation: int, place: str) -> None:
    blocks = {
        "exif": [exif(orientation)],
        "exif, long": [exif(orientation, "I")],
        "xmp": [xmp(orientation)],
        "xmp, then exif": [xmp(1), exif(orientation)],
        "exif twice": [exif(1), exif(orientation)],
    }[place]
    data = with_blocks(encode_image(smooth_image(60, 40)), *blocks)
    assert np.abs(decode(data)[0].astype(int) - transforms.transform_bytes(data, PILLOW)).max() <= 2
    assert orientation > 1 or place == "exif twice" or torchcodec.plain_size(data) == (60, 40)


@pytest.mark.parametrize(
    "data",
    [
        encode_image(smooth_image(50, 40), "PNG"),
        encode_image(smooth_image(50, 40), "WEBP"),
        encode_image(smooth_image(50, 40).convert("CMYK")),
        encode_image(smooth_image(50, 40), keep_rgb=True),
        encode_image(smooth_image(50, 40)) + bytes(2000),
    ],
    ids=["png", "webp", "cmyk", "rgb", "long tail"],
)
def test_pillow_decodes_all_but_plain_jpegs(data: bytes) -> None:
    assert torchcodec.plain_size(data) is None
    pixels, reports = decode(data)
    np.testing.assert_array_equal(pixels, transforms.transform_bytes(data, PILLOW))
    assert not reports


def test_a_jpeg_with_two_frame_headers_is_not_plain() -> None:
    data = encode_image(smooth_image(60, 40))
    start = data.index(b"\xff\xc0")
    frame = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    assert torchcodec.plain_size(data[:start] + frame.replace(b"\0\x28\0\x3c", b"\x28\0\x3c\0") + data[start:]) is None


def test_damaged_files_are_bad_for_pillows_reason() -> None:
    rng = np.random.default_rng(0)
    good = [encode_image(smooth_image(100, 80), **options) for options in ({}, {"progressive": True})]
    bad = 0
    for number in range(200):
        data = bytearray(good[number % 2])
        if number % 4 < 2:
            data = data[: rng.integers(len(data))] + (torchcodec.END_OF_IMAGE if number % 3 else b"")
        for place in rng.integers(0, len(data) + 1, number % 5):
            data[place % max(1, len(data)) : place % max(1, len(data)) + 1] = bytes([rng.integers(256)])
        pixels, reports = decode(bytes(data))
        exact = parallel.attempt(lambda content: transforms.transform_bytes(content, PILLOW), bytes(data))
        assert isinstance(pixels, decoding.BadImage) == isinstance(exact, decoding.BadImage) and not reports
        if isinstance(pixels, decoding.BadImage):
            bad += 1
            assert str(pixels) == str(exact)
        else:
            assert np.abs(pixels.astype(int) - exact).max() <= 2
    assert 50 < bad < 150


def test_too_many_pixels_are_bad_before_they_are_decoded() -> None:
    data = bytearray(encode_image(smooth_image(64, 64)))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (60_000).to_bytes(2, "big") + (60_000).to_bytes(2, "big")
    assert torchcodec.plain_size(bytes(data)) is None
    assert "more pixels than the limit" in str(decode(bytes(data))[0])
    pixels, _ = decode(encode_image(Image.new("RGB", (2, 60_000))), replace(TORCHCODEC, resize=256, crop=224))
    assert "too long and narrow" in str(pixels)
    turned = with_blocks(encode_image(Image.new("RGB", (60_000, 3))), exif(6))
    pixels, _ = decode(turned, replace(TORCHCODEC, resize=64, crop=64, crop_width=6))
    exact = transforms.transform_bytes(turned, replace(PILLOW, resize=64, crop=64, crop_width=6))
    np.testing.assert_array_equal(pixels, exact)


def test_a_file_that_torchcodec_refuses_is_decoded_by_pillow_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of a GPU may refuse files that the CPU's accepts; here it refuses one file of three."""
    from torchcodec import decoders

    contents = [encode_image(smooth_image(60, 40, seed)) for seed in range(3)]
    decode_jpeg, calls = decoders.decode_jpeg, []

    def refusing(sources: list[bytes], **options: object) -> list[torch.Tensor]:
        calls.append(len(sources))
        if contents[1] in sources:
            raise RuntimeError("decode, /src/Decoder.cpp:1, Not so, and not otherwise.\nand where")
        return decode_jpeg(sources, **options)

    monkeypatch.setattr(decoders, "decode_jpeg", refusing)
    names = [decoding.digest(data) for data in contents]
    files = [torchcodec.PlainJpeg(f"{row}.jpg", names[row], data, 60, 40) for row, data in enumerate(contents)]
    reports: list[str] = []
    images = torchcodec.decode_batch([files[0], decoding.BadImage("gone"), *files[1:]], TORCHCODEC, CPU, reports.append)
    assert calls == [3, 1, 2, 1, 1]
    (report,) = reports
    assert report.endswith("1.jpg' (Not so, and not otherwise)") and "Decoded by Pillow" in report
    assert (
        str(images[1]) == "gone"
        and [item.digest for item in images if isinstance(item, transforms.LoadedImage)] == names
    )
    np.testing.assert_array_equal(np.asarray(images[2].pixels), transforms.transform_bytes(contents[1], PILLOW))


def test_an_image_of_another_size_than_its_header_is_decoded_by_pillow() -> None:
    data = encode_image(smooth_image(60, 40))
    reports: list[str] = []
    (image,) = torchcodec.decode_batch(
        [torchcodec.PlainJpeg("a.jpg", "a", data, 40, 60)], TORCHCODEC, CPU, reports.append
    )
    np.testing.assert_array_equal(np.asarray(image.pixels), transforms.transform_bytes(data, PILLOW))
    assert "the header states 60 × 40" in reports[0]


def test_a_decoder_that_refuses_everything_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(contents: list[bytes], device: torch.device) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("no memory at all")

    monkeypatch.setattr(torchcodec, "decode", broken)
    files = [
        torchcodec.PlainJpeg("a.jpg", "a", encode_image(smooth_image(60, 40)), 60, 40)
    ] * torchcodec.MIN_ALL_REFUSED
    with pytest.raises(errors.PipelineError, match=r"refuses all of 8 files.*no memory at all"):
        torchcodec.decode_batch(files, TORCHCODEC, CPU, print)
    reports: list[str] = []
    assert len(torchcodec.decode_batch(files[1:], TORCHCODEC, CPU, reports.append)) == len(reports) == 7


def test_batches_are_limited_in_files_and_in_pixels() -> None:
    def file(name: str, pixels: int) -> torchcodec.PlainJpeg:
        return torchcodec.PlainJpeg(name, name, b"", pixels, 1)

    half = torchcodec.MAX_BATCH_PIXELS // 2
    files = [file("a", 1), file("b", 1), file("c", 1), decoding.BadImage("bad"), file("d", half), file("e", half + 2)]
    files += [file("f", 3 * half), transforms.LoadedImage(np.zeros((3, 8, 8), np.uint8), "g")]
    batches = list(torchcodec.batches(files, 3))
    assert [len(batch) for batch in batches] == [3, 2, 1, 1, 1] and [
        file for batch in batches for file in batch
    ] == files
