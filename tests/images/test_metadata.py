"""Metadata: pixels decide, whatever else a file holds, and the orientation is read beside any junk."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, features

from pipeline.images import decoding, formats, metadata, torchcodec

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUARTERS = np.array([[RED, GREEN, RED], [BLUE, WHITE, RED]], dtype=np.uint8).repeat(16, 0).repeat(16, 1)
ORIENTATION, X_RESOLUTION, MAKE, SUB_IFDS, EXIF_IFD = 274, 282, 271, 330, 34665
BYTE, ASCII, SHORT, LONG, RATIONAL = 1, 2, 3, 4, 5

STORED = {
    1: QUARTERS,
    2: QUARTERS[:, ::-1],
    3: QUARTERS[::-1, ::-1],
    4: QUARTERS[::-1],
    5: QUARTERS.transpose(1, 0, 2),
    6: np.rot90(QUARTERS, 1),
    7: np.rot90(QUARTERS.transpose(1, 0, 2), 2),
    8: np.rot90(QUARTERS, -1),
}
"""`QUARTERS` as a file of each orientation stores it."""

Tag = tuple[int, int, int, bytes]
"""Tag, type, count, and the four bytes of the value or offset."""


def tiff_block(tags: Sequence[Tag], after: bytes = b"", count: int | None = None) -> bytes:
    """Little-endian EXIF data of one directory; `after` starts at 10 + 12 × tags + 4 bytes."""
    entries = b"".join(struct.pack("<HHI", tag, kind, n) + value for tag, kind, n, value in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags) if count is None else count) + entries + b"\0" * 4 + after


def short(tag: int, value: int) -> Tag:
    return tag, SHORT, 1, struct.pack("<HH", value, 0)


def long(tag: int, value: int, kind: int = LONG, count: int = 1) -> Tag:
    return tag, kind, count, struct.pack("<I", value)


def zero_denominator(orientation: int) -> bytes:
    tags = [short(ORIENTATION, orientation), long(X_RESOLUTION, 38, RATIONAL)]
    return tiff_block(tags, struct.pack("<II", 72, 0))


JUNK = {
    "denominator 0": zero_denominator,
    "offset beyond the end": lambda o: tiff_block([short(ORIENTATION, o), long(X_RESOLUTION, 1 << 30, RATIONAL)]),
    "unknown type": lambda o: tiff_block([short(ORIENTATION, o), long(40000, 7, 99)]),
    "huge count": lambda o: tiff_block([short(ORIENTATION, o), long(MAKE, 8, ASCII, 0xFFFFFFFF)]),
    "Exif directory in nowhere": lambda o: tiff_block([short(ORIENTATION, o), long(EXIF_IFD, 1 << 31)]),
    "directory of itself": lambda o: tiff_block([short(ORIENTATION, o), long(EXIF_IFD, 8)]),
    "too few entries": lambda o: tiff_block([short(ORIENTATION, o)], count=200),
    "as one byte": lambda o: tiff_block([(ORIENTATION, BYTE, 1, bytes([o, 0, 0, 0]))]),
    "bad magic": lambda o: b"II\xff\xff" + tiff_block([short(ORIENTATION, o)])[4:],
}


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with some more segments after its JFIF segment."""
    data = encode(pixels, "JPEG", quality=100, subsampling=0)
    parts = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments]
    return data[:20] + b"".join(parts) + data[20:]


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(pixels: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG file with some more chunks after its header."""
    data = encode(pixels, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def assert_upright(data: bytes, tolerance: int = 0) -> None:
    pixels = np.asarray(decoding.decode(data)).astype(int)
    assert pixels.shape == QUARTERS.shape
    assert np.abs(pixels - QUARTERS).max() <= tolerance


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("junk", JUNK)
def test_the_orientation_is_applied_beside_any_junk(junk: str, orientation: int) -> None:
    exif = JUNK[junk](orientation)
    data = jpeg(STORED[orientation], (0xE1, b"Exif\0\0" + exif))
    assert_upright(data, 3)
    assert_upright(png(STORED[orientation], chunk(b"eXIf", exif)))
    plain = torchcodec.plain_size(data)
    assert plain is None or orientation == 1


@pytest.mark.parametrize("orientation", STORED)
def test_tiff_files_of_each_orientation_with_junk_are_upright(orientation: int) -> None:
    tags = {ORIENTATION: orientation, X_RESOLUTION: 72.0}
    data = bytearray(encode(STORED[orientation], "TIFF", tiffinfo=tags))
    entry = data.index(struct.pack("<HHI", X_RESOLUTION, RATIONAL, 1))
    (offset,) = struct.unpack_from("<I", data, entry + 8)
    struct.pack_into("<II", data, offset, 0, 0)
    assert_upright(bytes(data))
    struct.pack_into("<I", data, entry + 8, 1 << 30)
    assert_upright(bytes(data))
    struct.pack_into("<HHII", data, entry, EXIF_IFD, LONG, 1, 1 << 31)
    assert_upright(bytes(data))


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_there_is_not_changes_nothing(orientation: int) -> None:
    assert_upright(jpeg(QUARTERS, (0xE1, b"Exif\0\0" + zero_denominator(orientation))), 3)


PNG_CHUNKS = {
    "bomb of text": chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 5_000_000)),
    "long iTXt": chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000)),
    "bomb of a profile": chunk(b"iCCP", b"key\0\0" + zlib.compress(b"x" * 5_000_000)),
    "profile of an unknown method": chunk(b"iCCP", b"key\0\7" + zlib.compress(b"x")),
    "bad CRC of a text": chunk(b"tEXt", b"key\0text", crc=1),
    "bad CRC of an unknown chunk": chunk(b"abCd", b"junk", crc=1),
    "short pHYs": chunk(b"pHYs", b"\0"),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short cHRM": chunk(b"cHRM", b"\0"),
    "empty sRGB": chunk(b"sRGB", b""),
    "bad acTL": chunk(b"acTL", b"\0\0"),
    "bad fcTL": chunk(b"acTL", struct.pack(">II", 3, 0)) + chunk(b"fcTL", b"\0\0"),
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
def test_no_ancillary_chunk_makes_a_png_bad(name: str) -> None:
    assert_upright(png(QUARTERS, PNG_CHUNKS[name]))
    turned = chunk(b"eXIf", zero_denominator(6))
    assert_upright(png(STORED[6], PNG_CHUNKS[name], turned))
    assert_upright(png(STORED[6], turned, PNG_CHUNKS[name]))


def test_transparent_colours_survive_when_a_png_is_stripped() -> None:
    data = png(QUARTERS, PNG_CHUNKS["bad CRC of a text"], chunk(b"tRNS", struct.pack(">HHH", *BLUE)))
    expected = QUARTERS.copy()
    expected[16:, :16] = 255
    np.testing.assert_array_equal(np.asarray(decoding.decode(data)), expected)


@pytest.mark.parametrize(
    "segment",
    [
        (0xE0, b"JFXX\0\x10"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>9</tiff:Orientation>\xff\xfe"),
        (0xE2, b"ICC_PROFILE\0\1\7" + b"x" * 60_000),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xE2, b"MPF\0" + tiff_block([long(0xB001, 7), long(0xB002, 8, 7, 16)])),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
        (0xFE, b"\xff\xd8\xff\xd9 not the end"),
    ],
)
def test_no_segment_makes_a_jpeg_bad(segment: tuple[int, bytes]) -> None:
    assert_upright(jpeg(QUARTERS, segment), 3)
    assert_upright(jpeg(STORED[6], (0xE1, b"Exif\0\0" + zero_denominator(6)), segment), 3)


def test_a_stripped_jpeg_keeps_its_colours_and_its_orientation() -> None:
    cmyk = Image.fromarray(QUARTERS).convert("CMYK")
    buffer = io.BytesIO()
    cmyk.save(buffer, "JPEG", quality=100, subsampling=0)
    rgb = encode(QUARTERS, "JPEG", quality=100, keep_rgb=True)
    for data in (buffer.getvalue(), rgb, jpeg(QUARTERS, (0xFE, b"a comment"), (0xE1, b"Exif\0\0" + b"x" * 99))):
        stripped, orientation = metadata.strip(data) or (b"", 0)
        assert orientation == 1 and len(stripped) <= len(data)
        np.testing.assert_array_equal(np.asarray(decoding.decode(stripped)), np.asarray(decoding.decode(data)))
    assert metadata.strip(jpeg(QUARTERS, (0xE1, b"Exif\0\0" + zero_denominator(8))))[1] == 8  # type: ignore[index]


def test_damaged_is_said_of_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for data in (png(noise, PNG_CHUNKS["bad CRC of a text"]), jpeg(noise, (0xE1, b"Exif\0\0" + zero_denominator(6)))):
        decoding.decode(data)
        with pytest.raises(decoding.BadImage, match="damaged or truncated"):
            decoding.decode(data[: len(data) // 2])
    crc = bytearray(png(noise))
    crc[29] ^= 1
    with pytest.raises(decoding.BadImage, match="damaged or truncated"):
        decoding.decode(bytes(crc))


def box(*brands: bytes) -> bytes:
    return struct.pack(">I", 8 + 4 * len(brands)) + b"ftyp" + b"".join(brands) + b"\0" * 64


RAW_PREVIEW = [long(254, 1), long(SUB_IFDS, 500)]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (box(b"crx ", b"\0" * 4, b"isom"), r"RAW \(CR3\)"),
        (b"FUJIFILMCCD-RAW 0201", r"RAW \(RAF\)"),
        (b"IIU\0\x08\0\0\0", r"RAW \(RW2\)"),
        (b"IIRO\x08\0\0\0", r"RAW \(ORF\)"),
        (b"II*\0\x10\0\0\0CR\2\0", r"RAW \(CR2\)"),
        (tiff_block([*RAW_PREVIEW, long(MAKE, 50, ASCII, 18)], b"NIKON CORPORATION\0"), r"RAW \(NEF\)"),
        (tiff_block([*RAW_PREVIEW, long(MAKE, 50, ASCII, 5)], b"SONY\0"), r"RAW \(ARW\)"),
        (tiff_block([long(254, 0), (50706, BYTE, 4, b"\1\4\0\0")]), r"RAW \(DNG\)"),
        (tiff_block([short(262, 32803)]), "RAW"),
        (box(b"isom", b"\0" * 4, b"mp42"), "MP4 or QuickTime video"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (b"\xff\xd8\xff\xc1\0\x11\x0c\0\x10\0\x10\3\1\x22\0\2\x11\1\3\x11\1\xff\xd9", "JPEG of 12 bits"),
        (b"\xff\xd8\xff\xc3\0\x0b\x08\0\x10\0\x10\1\1\x11\0\xff\xd9", "lossless JPEG"),
        (tiff_block([short(256, 8), short(257, 8), short(262, 1), short(277, 5)]), "TIFF of 5 channels"),
        (tiff_block([short(256, 8), short(257, 8), short(259, 33003)]), "TIFF of the compression 33003"),
    ],
)
def test_a_format_that_is_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(decoding.BadImage, match=f"^a file of the format {name}, which is not decoded"):
        decoding.decode(data)


def test_a_dicom_file_is_named_with_the_package_that_reads_it() -> None:
    with pytest.raises(decoding.BadImage, match=r"^a DICOM file, which the package pydicom reads"):
        decoding.decode(bytes(128) + b"DICM" + bytes(8))


def test_a_raw_files_preview_is_not_taken_for_the_photo() -> None:
    data = encode(QUARTERS, "TIFF", tiffinfo={254: 1, SUB_IFDS: 8})
    with pytest.raises(decoding.BadImage, match="RAW"):
        decoding.decode(data)


def test_heic_is_read_where_its_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    grey = np.tile(np.linspace(40, 200, 96).astype(np.uint8), (64, 1))
    try:
        data = encode(np.stack([grey] * 3, -1), "HEIF", quality=95)
    except Exception:
        pytest.skip("this pillow-heif cannot encode")
    assert formats.unusual_format(data) == "HEIC"
    assert np.abs(np.asarray(decoding.decode(data)).astype(int) - grey[..., None]).max() <= 6
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(decoding.BadImage, match=r"a HEIC file, .*pip install -e '\.\[heic\]'"):
        decoding.decode(data)


def test_avif_is_read_where_pillow_can(monkeypatch: pytest.MonkeyPatch) -> None:
    if features.check("avif"):
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        data = encode(np.full((32, 48, 3), 90, np.uint8), "AVIF", exif=exif)
        assert formats.unusual_format(data) == "AVIF" and decoding.decode(data).size == (32, 48)
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(decoding.BadImage, match="an AVIF file, which this Pillow cannot read"):
        decoding.decode(box(b"mif1", b"\0" * 4, b"avif"))


def test_exif_that_is_no_exif_is_ignored() -> None:
    np.testing.assert_array_equal(np.asarray(decoding.decode(encode(QUARTERS, "PNG", exif=b"\xff" * 40))), QUARTERS)
