"""image_lists: copies in several splits, suspected label errors, outliers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Outcome, write_photos
from helpers import CODES, write_listed_codes
from PIL import Image

from pipeline.codes import reader
from pipeline.reporting import image_lists
from pipeline.reporting.thumbnails import Album


def make_gallery() -> image_lists.Gallery:
    return image_lists.Gallery(Path("data/digits"), reader.read_index(CODES, {}), Album())


def name_of(gallery: image_lists.Gallery, number: int) -> str:
    """Return the file name of an image in the album."""
    return Path(gallery.album.images[number].path).name


def write_split_photos(folder: Path) -> Path:
    """Write 8 test images and 12 training images of each of three classes."""
    write_photos(folder, {"bee": 20, "ant": 20, "fly": 20})
    for name in ("bee", "ant", "fly"):
        for number, file in enumerate(sorted((folder / name).iterdir())):
            target = folder / ("test" if number < 8 else "train") / name
            target.mkdir(parents=True, exist_ok=True)
            file.rename(target / file.name)
        (folder / name).rmdir()
    return folder


def test_a_copy_in_the_other_split_with_another_label_is_found(run: Callable[..., Outcome], project: Path) -> None:
    """One copy has the same bytes; the other was saved again, so its bytes differ and its pixels nearly agree."""
    photos = write_split_photos(project / "photos")
    smooth = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    smooth.save(photos / "train" / "bee" / "gradient.png")
    smooth.save(photos / "test" / "ant" / "resaved.jpg", quality=90)
    shutil.copy(photos / "train" / "bee" / "10.png", photos / "test" / "ant" / "copy.png")
    for stage in (("prepare", "--dataset", photos, "--out", "data/digits"), ("extract", "--layer", "fc7")):
        assert run(*stage).code == 0
    gallery = make_gallery()
    leaks = image_lists.find_leaks_between_splits(gallery)
    assert leaks["copies_total"] == 1
    assert sorted(name_of(gallery, number) for number in leaks["copies"][0]) == ["10.png", "copy.png"]
    pairs = [{name_of(gallery, pair.image), name_of(gallery, pair.other)} for pair in leaks["near_duplicates"]]
    assert {"gradient.png", "resaved.jpg"} in pairs
    (conflict,) = image_lists.suspected_label_errors(gallery)["conflicting_duplicates"]
    assert sorted(name_of(gallery, number) for number in conflict) == ["10.png", "copy.png"]


def test_a_wrong_label_is_suspected_and_an_outlier_is_found(project: Path) -> None:
    labels = [number % 2 for number in range(200)]
    values = 2 * np.eye(16)[labels] + 0.3 * np.random.default_rng(0).random((200, 16))
    values[30] = np.eye(16)[15]
    labels[10] = 1 - labels[10]
    paths = [f"{number}.jpg" for number in range(200)]
    paths[30] = "placeholder.gif"
    write_listed_codes(paths, labels, (["train"] * 4 + ["test"]) * 40, ["a", "b"], values)
    gallery = make_gallery()
    assert name_of(gallery, image_lists.suspected_label_errors(gallery)["suspected"][0]["image"]) == "10.jpg"
    outliers = image_lists.outliers(gallery)
    assert name_of(gallery, outliers["images"][0]["image"]) == "placeholder.gif"
    assert [name_of(gallery, number) for number in outliers["rare_types"]] == ["placeholder.gif"]
