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
from pipeline.reporting.page_data import Card
from pipeline.reporting.thumbnails import Album, Priority


def make_gallery() -> image_lists.Gallery:
    return image_lists.Gallery(Path("data/digits"), reader.read_index(CODES, {}), Album())


def names_of(gallery: image_lists.Gallery, card: Card) -> set[str]:
    """Return the file names of a card's images."""
    return {Path(gallery.album.images[number].path).name for number in card["images"]}


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
    for copies in (image_lists.copies_across_splits(gallery), image_lists.conflicting_duplicates(gallery)):
        assert copies["found"] == 1 and names_of(gallery, copies["cards"][0]) == {"10.png", "copy.png"}
    found = image_lists.near_duplicates_across_splits(gallery)
    pair = next(card for card in found["cards"] if names_of(gallery, card) == {"gradient.png", "resaved.jpg"})
    assert pair["distance"] <= found["limit"] and found["checked"] == found["total"] == 25


def test_a_wrong_label_is_suspected_and_an_outlier_is_found(project: Path) -> None:
    labels = [number % 2 for number in range(200)]
    values = 2 * np.eye(16)[labels] + 0.3 * np.random.default_rng(0).random((200, 16))
    values[30] = np.eye(16)[15]
    labels[10] = 1 - labels[10]
    paths = [f"{number}.jpg" for number in range(200)]
    paths[30] = "placeholder.gif"
    write_listed_codes(paths, labels, (["train"] * 4 + ["test"]) * 40, ["a", "b"], values)
    gallery = make_gallery()
    suspected = image_lists.suspected_label_errors(gallery)
    assert names_of(gallery, suspected["cards"][0]) == {"10.jpg"} and suspected["total"] == 160
    assert names_of(gallery, image_lists.outliers(gallery)["cards"][0]) == {"placeholder.gif"}
    assert [names_of(gallery, card) for card in image_lists.files_of_rare_types(gallery)["cards"]] == [
        {"placeholder.gif"}
    ]


def test_a_long_list_has_nearest_images_for_its_first_cards_only(project: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600).tolist()
    write_listed_codes([f"{n}.png" for n in range(600)], labels, ["train"] * 600, ["a", "b"], rng.random((600, 8)))
    gallery = make_gallery()
    cards = image_lists.suspected_label_errors(gallery)["cards"]
    assert len(cards) == image_lists.LISTED
    assert ["nearest" in card for card in cards] == [number < image_lists.SHOWN for number in range(len(cards))]
    last = gallery.album.images[cards[-1]["images"][0]]
    assert last.priority == Priority.REST
