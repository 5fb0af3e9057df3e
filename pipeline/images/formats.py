"""Which formats are decoded, and the names of those that are not."""

from __future__ import annotations

from PIL import features

from pipeline.images.metadata import SUB_IFDS, TIFF, read_tags, read_text

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
}
"""How files of other formats begin that lie among images."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}

RAW_MAKERS = {"NIKON": "NEF", "SONY": "ARW", "PENTAX": "PEF", "SAMSUNG": "SRW", "CANON": "CR2"}
"""The RAW formats that are TIFF files, by the first word of the maker."""

MAKE, SUBFILE_TYPE, PHOTOMETRIC, DNG_VERSION = 271, 254, 262, 50706
SENSOR_PHOTOMETRICS = (32803, 34892)
"""The kinds of pixels in a TIFF file that are values of a sensor: a colour filter array, and linear RAW."""


REFUSALS = {
    "HEIC": "a HEIC file, which the package pillow-heif reads (run pip install -e '.[heic]')",
    "AVIF": "an AVIF file, which this Pillow cannot read (run pip install --upgrade pillow)",
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


def refusal(data: bytes) -> str:
    """Return why a file cannot be decoded whose format is not among those that are read, and what would help."""
    name = unusual_format(data)
    if name in REFUSALS:
        return REFUSALS[name]
    if name.startswith("RAW"):
        return f"a file of the format {name}, which is not decoded (convert it to TIFF, with the package rawpy say)"
    return f"a file of the format {name}, which is not decoded (convert it to PNG or JPEG)"


def unusual_format(data: bytes) -> str:
    """Return the name of a file's format, if it is not one of `FORMATS`; "" where it may be one of them."""
    if data[4:8] == b"ftyp":
        return _container_format(data)
    for start, name in RAW_STARTS.items():
        if data.startswith(start):
            return f"RAW ({name})"
    if data.startswith(TIFF):
        return _raw_format(data)
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
