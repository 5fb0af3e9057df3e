"""Read an image's orientation whatever else its metadata holds, and take a file's metadata away from its pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

EDGES = {
    2: (2, 1, 0, 3),
    3: (2, 3, 0, 1),
    4: (0, 3, 2, 1),
    5: (1, 0, 3, 2),
    6: (3, 0, 1, 2),
    7: (3, 2, 1, 0),
    8: (1, 2, 3, 0),
}
"""Which edges of a stored image are left, top, right and bottom once it is upright, by its EXIF orientation.

0 is the stored left edge, 1 the top, 2 the right and 3 the bottom edge.
"""

PNG, JPEG, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", (b"II*\0", b"MM\0*")
"""The first bytes of files of these formats."""

JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
"""A plain JFIF segment: its presence says that the colours are YCbCr."""

EXIF = b"Exif\0\0"
"""How the EXIF data of a JPEG file begins."""

START_OF_SCAN, COMMENT, APP0, APP1, APP14, APP15 = 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF
"""Markers of a JPEG file's segments."""

MARKERS_ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers of a JPEG file that no segment follows."""

ORIENTATION, SUB_IFDS = ExifTags.Base.Orientation, ExifTags.Base.SubIFDs
EXTRA_SAMPLES = 338
WIDTH, HEIGHT = ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength

PIXEL_TAGS = {
    *range(254, 260), 262, 263, 266, 273, *range(277, 282), 284, 292, 293, 317, 320,
    *range(322, 326), *range(332, 340), 347, *range(512, 522), *range(529, 533),
}  # fmt: skip
"""The tags of a TIFF file that say how its pixels are stored; all others are metadata."""


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 where it has none."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # junk in other tags can make Pillow raise any exception, and find no tag the next time
        value = None
    if value is None:
        exif = image.info.get("exif")
        return orientation_in(exif) if isinstance(exif, bytes) else 1
    value = value[0] if isinstance(value, bytes) and len(value) == 1 else value
    return value if isinstance(value, int) and value in TRANSPOSES else 1


def orientation_in(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 to 8, and 1 where the data are damaged or have none."""
    value = read_tags(exif.removeprefix(EXIF)).get(ORIENTATION, 1)
    return value if value in TRANSPOSES else 1


def stored_orientation(image: Image.Image, data: bytes) -> int:
    """Return the orientation of the pixels in a file, whether or not Pillow has turned the image upright by now.

    Pillow turns TIFF files upright when it loads them.
    """
    turned = image.format == "TIFF" and (image.mode.startswith("I") or image.mode == "F")
    return 1 if turned else orientation_in(data) if data.startswith(TIFF) else orientation_of(image)


def size_of_tiff(tiff: bytes) -> tuple[int, int]:
    """Return the width and height in the first directory of TIFF data, (0, 0) where they are missing."""
    tags = read_tags(tiff)
    return tags.get(WIDTH, 0), tags.get(HEIGHT, 0)


def read_tags(tiff: bytes) -> dict[int, int]:
    """Return the tags of the first directory of TIFF or EXIF data, as far as it is complete.

    The values are the first number of byte, short and long tags that hold few numbers, and offsets of all others.
    """
    order = ">" if tiff.startswith(b"MM") else "<"
    tags = {}
    for entry in _entries(tiff):
        tag, kind = struct.unpack(order + "HH", entry[:4])
        (tags[tag],) = struct.unpack(order + {1: "B3x", 3: "H2x"}.get(kind, "I"), entry[8:])
    return tags


def read_text(tiff: bytes, tag: int) -> str:
    """Return the text of a tag in the first directory of TIFF data, "" where there is none."""
    offset = read_tags(tiff).get(tag)
    return "" if offset is None else tiff[offset : offset + 40].split(b"\0")[0].decode("latin-1")


def _entries(tiff: bytes) -> Iterator[bytes]:
    """Yield the 12 bytes of each entry of the first directory of TIFF data."""
    order = ">" if tiff.startswith(b"MM") else "<"
    if not tiff.startswith((b"II", b"MM")) or len(tiff) < 8:
        return
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        yield tiff[place : place + 12]


def strip(data: bytes) -> tuple[bytes, int] | None:
    """Return a file without its metadata, and its EXIF orientation; None for formats that stay as they are."""
    if data.startswith(PNG):
        return _strip_png(data)
    if data.startswith(JPEG):
        return _strip_jpeg(data)
    return (_strip_tiff(data), orientation_in(data)) if data.startswith(TIFF) else None


def _strip_png(data: bytes) -> tuple[bytes, int]:
    """Leave out all ancillary chunks but the transparent colours."""
    parts, orientation, place = [PNG], 1, len(PNG)
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + length + 12
        if name == b"eXIf":
            orientation = orientation_in(data[place + 8 : end - 4])
        if not name[0] & 0x20 or name == b"tRNS":
            parts.append(data[place:end])
        place = end
    return b"".join(parts), orientation


def _strip_jpeg(data: bytes) -> tuple[bytes, int]:
    """Leave out comments and the application's segments but Adobe's, which says how colours are stored."""
    parts, orientation, scan = [data[:2]], 1, len(data)
    for kind, start, end in jpeg_segments(data):
        content = data[start + 2 : end]
        if kind == START_OF_SCAN:
            scan = start - 2
        elif kind == APP0 and content.startswith(b"JFIF\0"):
            parts.append(JFIF)
        elif kind == APP1 and content.startswith(EXIF):
            orientation = orientation_in(content)
        elif kind == APP14 or not (APP0 <= kind <= APP15 or kind == COMMENT):
            parts.append(b"\xff" + data[start - 1 : end])
    return b"".join([*parts, data[scan:]]), orientation


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment of a JPEG file up to the first scan, and where the segment starts and ends.

    A segment starts with the two bytes of its length, those of markers without one are empty.
    """
    place, kind = 2, 0
    while kind != START_OF_SCAN and (marker := re.compile(rb"\xff+([^\0\xff])", re.DOTALL).search(data, place)):
        kind, start = marker[1][0], marker.end()
        place = start if kind in MARKERS_ALONE else start + int.from_bytes(data[start : start + 2], "big")
        yield kind, start, place


def _strip_tiff(data: bytes) -> bytes:
    """Point the header to a new directory at the end, which has the tags of the pixels only."""
    order = ">" if data.startswith(b"MM") else "<"
    entries = [entry for entry in _entries(data) if struct.unpack(order + "H", entry[:2])[0] in PIXEL_TAGS]
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + directory
