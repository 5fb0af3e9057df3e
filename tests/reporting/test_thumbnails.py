"""thumbnails: small upright copies by priority, within a budget."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from conftest import write_photos
from PIL import Image

from pipeline.reporting.thumbnails import LARGE_BYTES, Album, Priority


def test_a_thumbnail_is_small_and_upright_and_a_missing_file_has_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "turned.jpg", exif=exif)
    album = Album()
    names = ("turned.jpg", "missing.jpg", "turned.jpg")
    numbers = [album.add(tmp_path, name, 0, "test", Priority.LIST) for name in names]
    thumbnails = album.thumbnails(10**6)
    assert numbers == [0, 1, 0] and list(thumbnails) == [0]
    assert size_of(thumbnails[0]) == (96, 192)


def size_of(thumbnail: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(thumbnail))).size


def test_images_of_lists_are_large_as_far_as_the_budget_goes(tmp_path: Path) -> None:
    album = Album()
    for number, priority in enumerate((Priority.LIST, Priority.MAP, Priority.LIST, Priority.LIST)):
        Image.new("RGB", (300, 300)).save(tmp_path / f"{number}.png")
        album.add(tmp_path, f"{number}.png", 0, "test", priority)
    thumbnails = album.thumbnails(2 * LARGE_BYTES)
    assert [size_of(thumbnails[number])[0] for number in range(4)] == [192, 64, 192, 64]


def test_the_highest_priority_of_an_image_decides_what_the_budget_is_spent_on(tmp_path: Path) -> None:
    write_photos(tmp_path, {"red": 3})
    album = Album()
    for name, priority in (("00", Priority.CORRECT), ("01", Priority.MAP), ("02", Priority.MAP), ("02", Priority.LIST)):
        album.add(tmp_path, f"red/{name}.png", 0, "test", priority)
    everything = album.thumbnails(10**6)
    assert list(everything) == [2, 1, 0]
    assert list(album.thumbnails(len(everything[2]) + len(everything[1]))) == [2, 1]
    assert album.thumbnails(0) == {}
