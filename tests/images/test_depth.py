"""Images of more than 8 bits: the same photo in every depth and kind of file gives the same pixels."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import smooth_image
from PIL import Image

from pipeline import errors
from pipeline.data.manifest import read_manifest
from pipeline.images import decoding, depth

COLOUR = np.asarray(smooth_image(48, 32))
GREY = COLOUR[..., 1]
INTERLEAVED, PLANES = 1, 2
UNSPECIFIED, TRANSPARENCY = 0, 2


def deep_png(values: np.ndarray, *, extra: bytes = b"") -> bytes:
    """A PNG file of 16 bits: (h, w) grey, (h, w, 2) grey and alpha, (h, w, 3) RGB, or (h, w, 4) RGB and alpha."""
    height, width = values.shape[:2]
    kind = 0 if values.ndim == 2 else {2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + parts[0] + extra + b"".join(parts[1:])


def tiff(values: np.ndarray, orientation: int = 1, planar: int = INTERLEAVED, extra: int = TRANSPARENCY) -> bytes:
    """An uncompressed TIFF file of (h, w) or (h, w, c) values of any type; extra: what the channel after others is."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    bits, sample_format = 8 * values.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    photometric = 1 if channels < 3 else 2
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [8]),
        (274, 3, [orientation]),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(pixels)]),
        (284, 3, [planar]),
        *([(338, 3, [extra])] if channels in (2, 4) else []),
        (339, 3, [sample_format] * channels),
    ]
    start = 8 + len(pixels)
    after, entries = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack("<" + ("H" if kind == 3 else "I") * len(numbers), *numbers)
        if len(packed) > 4:
            place = start + 6 + 12 * len(tags) + len(after)
            after, packed = after + packed, struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + after


def deepen(values: np.ndarray, bits: int) -> np.ndarray:
    """8-bit values as values of more bits, whose lower bits repeat the upper ones."""
    return np.round(values.astype(float) * ((1 << bits) - 1) / 255).astype(np.uint16)


Encoder = Callable[[np.ndarray], bytes]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("encode", [deep_png, tiff])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_each_depth_gives_the_same_pixels(bits: int, encode: Encoder, pixels: np.ndarray) -> None:
    data = encode(deepen(pixels, bits))
    facts = decoding.examine(data)
    assert facts.values is not None and facts.shorter_side == 32
    assert depth.white_of(depth.Range(False, 0, max(facts.values.highest, (1 << bits) - 1))) == (1 << bits) - 1
    decoded = np.asarray(decoding.decode(data, max_value=(1 << bits) - 1)).astype(int)
    expected = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1)
    assert decoded.shape == expected.shape and np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("kind", "white"),
    [(np.uint32, 255), (np.int32, 255), (np.uint32, 4095), (np.float32, 1), (np.float32, 255), (np.float64, 1)],
)
def test_long_integers_and_floats_give_the_same_pixels(pixels: np.ndarray, kind: type, white: float) -> None:
    data = tiff((pixels * (white / 255)).astype(kind))
    values = decoding.examine(data).values
    assert values is not None and values.is_float == np.issubdtype(kind, np.floating) and values.highest <= white
    decoded = np.asarray(decoding.decode(data, max_value=white)).astype(int)
    expected = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1)
    assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("bits", [12, 16])
def test_transparent_pixels_of_16_bits_lie_on_white(bits: int) -> None:
    alpha = np.full(GREY.shape, 65535, np.uint16)
    alpha[:16, :16] = 0
    for pixels, encode in ((COLOUR, deep_png), (COLOUR, tiff), (GREY[..., None], deep_png)):
        data = encode(np.dstack([deepen(pixels, bits), alpha]))
        values = decoding.examine(data).values
        assert values is not None and values.highest < 1 << bits
        decoded = np.asarray(decoding.decode(data, max_value=(1 << bits) - 1)).astype(int)
        assert (decoded[:16, :16] == 255).all()
        assert np.abs(decoded - pixels)[16:].max() <= 1


def test_infrared_light_beside_colours_of_16_bits_is_no_transparency() -> None:
    data = tiff(np.dstack([deepen(COLOUR, 12), deepen(GREY, 12)]), extra=UNSPECIFIED)
    assert np.abs(np.asarray(decoding.decode(data, max_value=4095)).astype(int) - COLOUR).max() <= 1


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_upright(pixels: np.ndarray, orientation: int) -> None:
    exif = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 274, 3, 1, orientation, 0) + b"\0" * 4
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    stored = np.ascontiguousarray(pixels)
    buffer = io.BytesIO()
    tag = Image.Exif()
    tag[274] = orientation
    Image.fromarray(stored).save(buffer, "PNG", exif=tag)
    expected = np.asarray(decoding.decode(buffer.getvalue())).astype(int)
    for data in (deep_png(deepen(stored, 12), extra=chunk), tiff(deepen(stored, 12), orientation)):
        decoded = np.asarray(decoding.decode(data, max_value=4095)).astype(int)
        assert decoded.shape == expected.shape and np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("value", [0, 7, 255, 4095, 65535])
def test_constant_images(value: int) -> None:
    for encode in (deep_png, tiff):
        for shape in ((8, 8), (8, 8, 3)):
            data = encode(np.full(shape, value, np.uint16))
            facts = decoding.examine(data)
            assert facts.values == depth.Range(False, value, value)
            white = depth.white_of(facts.values)
            assert white >= value
            pixels = np.asarray(decoding.decode(data, max_value=white))
            assert (pixels == min(255, value * 256 // (white + 1))).all()


def test_images_of_8_bits_or_fewer_ignore_the_range() -> None:
    for image in (Image.fromarray(GREY > 99), Image.fromarray(COLOUR).quantize(16), Image.fromarray(COLOUR)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert decoding.examine(buffer.getvalue()).values is None
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decoding.decode(buffer.getvalue(), max_value=1)), expected)


@pytest.mark.parametrize(
    ("values", "white", "reason"),
    [
        (np.full((4, 4), 0.5, np.float32), depth.WHITE, "floating-point values up to 1, while 65535 is white"),
        (np.full((4, 4), np.nan, np.float32), 1, "infinite or no numbers"),
        (np.full((4, 4, 3), np.inf, np.float32), 1, "infinite or no numbers"),
        (np.full((4, 4), 70_000, np.uint32), depth.WHITE, "integers up to 70000, while 65535 is white"),
        (np.full((4, 4), 9, np.uint16), 1, "integers up to 9, while 1 is white"),
    ],
)
def test_values_that_fit_no_range_are_named(values: np.ndarray, white: float, reason: str) -> None:
    with pytest.raises(decoding.BadImage, match=reason):
        decoding.decode(tiff(values), max_value=white)


def test_planes_are_refused_and_damaged_files_are_damaged() -> None:
    with pytest.raises(decoding.BadImage, match="separate planes"):
        decoding.decode(tiff(deepen(COLOUR, 12), planar=PLANES))
    for data in (deep_png(deepen(COLOUR, 12)), tiff(deepen(COLOUR, 12))):
        with pytest.raises(decoding.BadImage, match="damaged or truncated"):
            decoding.decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("ranges", "white"),
    [
        ([depth.Range(False, 0, 900), depth.Range(False, 3, 1023)], 1023),
        ([depth.Range(False, 0, 900), depth.Range(False, 3, 1024)], 4095),
        ([depth.Range(False, 0, 16383)], 16383),
        ([depth.Range(False, 0, 40000)], 65535),
        ([depth.Range(False, 0, 200)], 255),
        ([depth.Range(True, 0, 0.3), depth.Range(True, 0, 1)], 1),
        ([depth.Range(True, 0, 254.5)], 255),
    ],
)
def test_white_is_the_smallest_usual_value_that_holds_all(ranges: list[depth.Range], white: float) -> None:
    joined = depth.join_ranges(ranges)
    assert joined is not None and depth.white_of(joined) == white


@pytest.mark.parametrize("values", [(True, -0.5, 1), (True, 0, 300), (False, -1000, 3000), (False, 0, 70_000)])
def test_a_range_that_is_unknown_is_asked_for(values: tuple[bool, float, float]) -> None:
    with pytest.raises(errors.PipelineError, match="--range VALUE"):
        depth.white_of(depth.Range(*values))


def write_dataset(folder: Path, convert: Callable[[np.ndarray], bytes], suffix: str) -> Path:
    """Write 2 classes of 12 photos: noise that is brighter at the top, or at the bottom."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 150, 32)[:, None, None]
    for name, brighter in (("top", slope[::-1]), ("bottom", slope)):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(brighter + rng.integers(0, 106, (32, 40, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{number:02}{suffix}").write_bytes(convert(pixels))
    return folder


CONVERSIONS: dict[str, tuple[Callable[[np.ndarray], bytes], float]] = {
    "12-bit colour PNG": (lambda pixels: deep_png(deepen(pixels, 12)), 4095),
    "10-bit colour TIFF": (lambda pixels: tiff(deepen(pixels, 10)), 1023),
    "32-bit integers": (lambda pixels: tiff(pixels.astype(np.uint32)), 255),
    "floats": (lambda pixels: tiff((pixels / 255).astype(np.float32)), 1),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_whole_way_gives_the_codes_of_8_bits(name: str, run: Callable[..., object], project: Path) -> None:
    from pipeline.codes import reader

    convert, white = CONVERSIONS[name]
    codes = []
    for dataset, encode in (("shallow", tiff), ("deep", convert)):
        result = run("prepare", "--dataset", write_dataset(project / dataset, encode, ".tif"))
        assert result.code == 0, result.err  # type: ignore[attr-defined]
        assert (f"{white:g} is white" in result.out) == (dataset == "deep")  # type: ignore[attr-defined]
        result = run("extract", "--dataset", dataset, "--layer", "pool3")
        assert result.code == 0, result.err  # type: ignore[attr-defined]
        codes.append(reader.read(Path(f"features/{dataset}/tinyvgg/pool3.h5"), {}))
    deep = codes[1]
    assert read_manifest(Path("data/deep")).max_value == white == deep.spec.transform.max_value
    assert json.loads(Path("data/deep/source.json").read_text())["max_value"] == white
    values = [one.values[np.argsort(one.paths)] for one in codes]  # splits, and so the order, depend on the files
    assert np.abs(values[0] - values[1]).max() <= 0.05 * np.abs(values[0]).max()


def test_range_overrides_what_was_found(run: Callable[..., object], project: Path) -> None:
    folder = write_dataset(project / "deep", CONVERSIONS["12-bit colour PNG"][0], ".png")
    result = run("prepare", "--dataset", folder, "--range", 65535)
    assert result.code == 0 and "16-bit images: 65535 is white" in result.out  # type: ignore[attr-defined]
    assert run("extract", "--dataset", "deep", "--layer", "pool3").code == 0  # type: ignore[attr-defined]
    result = run("extract", "--dataset", "deep", "--layer", "pool3", "--range", 4095)
    assert result.code == 0 and "24 images went through" in result.out  # type: ignore[attr-defined]


def test_integers_beside_floats_are_refused(run: Callable[..., object], project: Path) -> None:
    folder = write_dataset(project / "mixed", CONVERSIONS["floats"][0], ".tif")
    (folder / "top" / "other.tif").write_bytes(tiff(deepen(COLOUR, 12)))
    result = run("prepare", "--dataset", folder)
    assert result.code != 0 and "Convert them to one kind" in result.err  # type: ignore[attr-defined]


# New images beside those of the training

EIGHT, TWELVE = depth.Depths(True), depth.Depths(False, depth.Range(False, 0, 4080), 2000)
SIXTEEN, FLOATS = (
    depth.Depths(False, depth.Range(False, 0, 65280), 30000),
    depth.Depths(False, depth.Range(True, 0, 1), 0.8),
)


@pytest.mark.parametrize(
    ("values", "known", "white", "reason"),
    [
        (None, EIGHT, 65535, ""),
        (None, TWELVE, 4095, "it has 8 bits per channel, and all training images have more"),
        (None, depth.Depths(True, TWELVE.deep, 2000), 4095, ""),
        ((False, 0, 4080), EIGHT, 65535, "its values are 0…4080, and all training images have 8 bits"),
        ((False, 0, 4095), TWELVE, 4095, ""),
        ((False, 0, 1500), TWELVE, 4095, ""),
        ((False, 0, 60000), TWELVE, 4095, "its values are 0…60000, and in the training images 4095 is white"),
        ((False, 0, 4080), TWELVE, 4000, ""),
        ((False, 0, 4081), TWELVE, 4000, "4000 is white"),
        ((False, 0, 900), TWELVE, 4095, "its values end at 900, and those of each training image reach 2000 or more"),
        ((False, 0, 4080), SIXTEEN, 65535, "its values end at 4080, and those of each training image reach 30000"),
        ((True, 0, 1), TWELVE, 4095, "its values are floating-point numbers, and those of the training images are int"),
        ((False, 0, 255), FLOATS, 1, "its values are integers, and those of the training images are floating"),
        ((True, 0, 0.1), FLOATS, 1, ""),
        ((True, -0.5, 1), FLOATS, 1, "its values are -0.5…1"),
        ((True, 0, 255), FLOATS, 1, "in the training images 1 is white"),
    ],
)
def test_a_depth_that_no_training_image_has_is_refused(
    values: tuple[bool, float, float] | None, known: depth.Depths, white: float, reason: str
) -> None:
    found = None if values is None else depth.Range(*values)
    assert depth.Depths.from_dict(json.loads(json.dumps(known.to_dict()))) == known
    if not reason:
        depth.validate_depth(found, known, white)
        return
    with pytest.raises(depth.UnusableValuesError, match=rf"{reason}.* white in it is unknown \(give it with --range\)"):
        depth.validate_depth(found, known, white)


def test_the_depths_of_a_dataset() -> None:
    ranges = [None, depth.Range(False, 3, 900), depth.Range(False, 0, 4000)]
    assert depth.Depths.of(ranges) == depth.Depths(True, depth.Range(False, 0, 4000), 900)
    assert depth.Depths.of(ranges[1:2]) == depth.Depths(False, ranges[1], 900)
    assert depth.Depths.of([None, None]) == EIGHT


SMALL_GRID = ("--folds", 2, "--grid", "{l2: {C: [1]}}")


def classes_in(table: str) -> list[str]:
    """Return the classes in the CSV of predict."""
    return [line.split(",")[2] for line in table.splitlines()]


def test_predict_and_similar_refuse_other_depths_unless_white_is_given(run: Callable[..., Any], project: Path) -> None:
    """The same photos in 8, 12 and 16 bits: a classifier names the classes of its own, and of others with --range."""
    folders = {
        bits: write_dataset(project / f"of{bits}", lambda pixels, bits=bits: tiff(deepen(pixels, bits)), ".tif")
        for bits in (12, 16)
    } | {8: write_dataset(project / "of8", tiff, ".tif")}
    for bits, others in ((8, [12]), (12, [8, 16])):
        flags = ("--dataset", f"of{bits}", "--layer", "pool3")
        for command in (
            ("prepare", "--dataset", folders[bits]),
            ("extract", *flags),
            ("classify", *flags, *SMALL_GRID),
        ):
            assert run(*command).code == 0
        own = run("predict", *flags, folders[bits])
        assert own.code == 0 and own.err.endswith("24 images, 0 skipped\n")
        for other in others:
            refused = run("predict", *flags, folders[other])
            assert refused.code == 2 and refused.out.count("\n") == 1 and refused.err.count("Skipped") == 24
            assert "(give it with --range)" in refused.err
            told = run("predict", *flags, folders[other], "--range", (1 << other) - 1)
            assert told.code == 0 and classes_in(told.out) == classes_in(own.out)
    image = folders[12] / "top/00.tif"
    assert "--range" in run("similar", image, "--dataset", "of8", "--layer", "pool3").err
    found = run("similar", image, "--dataset", "of8", "--layer", "pool3", "--range", 4095)
    assert found.code == 0 and "top/00.tif" in found.out.splitlines()[1]
