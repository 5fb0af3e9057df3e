"""Which formats are decoded, and the names of those that are not."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import features

from pipeline.images.metadata import EXTRA_SAMPLES, JPEG, SUB_IFDS, TIFF, jpeg_segments, read_tags, read_text

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
"""The formats that are always decoded. Pillow knows more formats, some of which start other programs (EPS)."""

RAW_STARTS = {b"FUJIFILMCCD-RAW": "RAF", b"IIU\0": "RW2", b"IIRO": "ORF", b"IIRS": "ORF", b"MMOR": "ORF"}
"""How RAW files that are no TIFF files begin."""

OTHER_STARTS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"\x1a\x45\xdf\xa3": "Matroska video",
    b"version https://git-lfs": "Git LFS",
    b"<!DOCTYPE html": "HTML",
    b"<!doctype html": "HTML",
    b"<html": "HTML",
    b"<?xml": "XML",
    b"II\xbc\1": "JPEG XR",
    b"\0\0\1\0": "ICO",
    b"SIMPLE  =": "FITS",
    b"\x93NUMPY": "NumPy",
    b"\x89HDF": "HDF5",
    b"\x1f\x8b": "gzip, NIfTI perhaps",
    b"PK\3\4": "ZIP",
}
"""How files of other formats begin that lie among images."""

SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""How files of usual formats begin, and their suffixes."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}

RAW_MAKERS = {"NIKON": "NEF", "SONY": "ARW", "PENTAX": "PEF", "SAMSUNG": "SRW", "CANON": "CR2"}
"""The RAW formats that are TIFF files, by the first word of the maker."""

DICOM_PLACE = 128
"""Where in a DICOM file its mark stands, after whatever else."""

MAKE, SUBFILE_TYPE, PHOTOMETRIC, DNG_VERSION = 271, 254, 262, 50706
BITS, COMPRESSION, CHANNELS, SAMPLE_FORMAT = 258, 259, 277, 339
SENSOR_PHOTOMETRICS = (32803, 34892)
"""The kinds of pixels in a TIFF file that are values of a sensor: a colour filter array, and linear RAW."""

KNOWN_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000, 50001}
"""The compressions of TIFF files that are decoded here, by their numbers."""

FLOAT = 3
"""The value of SAMPLE_FORMAT for floating-point numbers."""

LOSSLESS_FRAMES, FRAMES = (0xC3, 0xC7, 0xCB, 0xCF), (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC))
"""Markers of a JPEG file that say how its pixels are stored."""

REFUSALS = {
    "HEIC": "a HEIC file, which the package pillow-heif reads (run pip install -e '.[heic]')",
    "AVIF": "an AVIF file, which this Pillow cannot read (run pip install --upgrade pillow)",
    "DICOM": "a DICOM file, which the package pydicom reads (save its pixels as PNG of 16 bits)",
    "Git LFS": "a pointer of Git LFS, not the file itself (run git lfs pull)",
    "HTML": "a web page, not an image (a download that failed, perhaps)",
}
"""Why files of some formats cannot be decoded, and what would help."""


def readable_formats(data: bytes) -> tuple[str, ...]:
    """Return Pillow's formats that a file of these bytes may have; () where nothing here reads its format."""
    name = unusual_format(data)
    if name == "HEIC" and _register_heif():
        return ("HEIF",)
    if name == "AVIF" and features.check("avif"):
        return ("AVIF",)
    return () if name else FORMATS


def suffix_of(data: bytes) -> str:
    """Return the usual suffix of an image file's name, ".img" for a format that is not known by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), ".img")


def refusal(data: bytes) -> str:
    """Return why a file cannot be decoded whose format is not among those that are read, and what would help."""
    name = unusual_format(data) or unusual_pixels(data)
    if name in REFUSALS:
        return REFUSALS[name]
    if name.startswith("RAW"):
        return f"a file of the format {name}, which is not decoded (convert it to TIFF, with the package rawpy say)"
    return f"a file of the format {name}, which is not decoded (convert it to PNG or JPEG)"


def unusual_pixels(data: bytes) -> str:
    """Return the kind of a JPEG or TIFF file whose pixels are stored in a way that is not decoded here, "" for others.

    It is asked of files that Pillow cannot decode, so that these are not called damaged.
    """
    if data.startswith(JPEG):
        return _unusual_jpeg(data)
    return _unusual_tiff(read_tags(data)) if data.startswith(TIFF) else ""


def _unusual_jpeg(data: bytes) -> str:
    for kind, start, _ in jpeg_segments(data):
        if kind in LOSSLESS_FRAMES:
            return "lossless JPEG"
        if kind in FRAMES and data[start + 2 : start + 3] == b"\x0c":
            return "JPEG of 12 bits"
    return ""


def _unusual_tiff(tags: Mapping[int, int]) -> str:
    channels, kind = tags.get(CHANNELS, 1), tags.get(PHOTOMETRIC)
    if channels > 4 or (channels > 1 and kind in (0, 1) and not (channels == 2 and tags.get(EXTRA_SAMPLES))):
        return f"TIFF of {channels} channels"
    if tags.get(COMPRESSION, 1) not in KNOWN_COMPRESSIONS:
        return f"TIFF of the compression {tags[COMPRESSION]}"
    return "TIFF of floats of 16 bits" if (tags.get(BITS), tags.get(SAMPLE_FORMAT)) == (16, FLOAT) else ""


def unusual_format(data: bytes) -> str:
    """Return the name of a file's format, if it is not one of `FORMATS`; "" where it may be one of them."""
    if data[4:8] == b"ftyp":
        return _container_format(data)
    for start, name in RAW_STARTS.items():
        if data.startswith(start):
            return f"RAW ({name})"
    if data.startswith(TIFF):
        return _raw_format(data)
    if data[DICOM_PLACE : DICOM_PLACE + 4] == b"DICM":
        return "DICOM"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "AVI video"
    return next((name for start, name in OTHER_STARTS.items() if data.startswith(start)), "")


def _container_format(data: bytes) -> str:
    """Return the format of a file of the ISO base media format, as its brands tell it."""
    brands = {data[place : place + 4] for place in range(8, min(int.from_bytes(data[:4], "big"), 256), 4)}
    if data[8:12] == b"crx ":
        return "RAW (CR3)"
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & HEIC_BRANDS else "MP4 or QuickTime video"


def _raw_format(data: bytes) -> str:
    """Return the RAW format of a TIFF file, whose first image is a small preview; "" for a common TIFF file."""
    tags = read_tags(data)
    maker = read_text(data, MAKE).upper().split()[:1]
    if DNG_VERSION in tags:
        return "RAW (DNG)"
    if data[8:10] == b"CR":
        return "RAW (CR2)"
    if (tags.get(SUBFILE_TYPE, 0) == 1 and SUB_IFDS in tags) or tags.get(PHOTOMETRIC) in SENSOR_PHOTOMETRICS:
        return f"RAW ({RAW_MAKERS[maker[0]]})" if maker and maker[0] in RAW_MAKERS else "RAW"
    return ""


def _register_heif() -> bool:
    """Let Pillow read HEIC files, if the package for it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
