"""Several views of an image: which they are, folds that never part them, codes computed once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Outcome, write_photos
from helpers import count_forwards, mistake
from PIL import Image
from torchvision.transforms import functional

from pipeline import errors
from pipeline.classifiers import persistence, search
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.data.splits import make_folds
from pipeline.images import transforms, views
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]
SMALL = transforms.Transform(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
DIGEST = "ab" * 32


def noise(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def transformed(name: str, image: Image.Image, digest: str = DIGEST) -> np.ndarray:
    return transforms.transform_image(image, transforms.Framing(views=name).of(SMALL), digest)


# Which views


@pytest.mark.parametrize(("name", "count"), [("flips", 2), ("five", 5), ("ten", 10), ("cnnaug", 16), ("random:7:3", 7)])
def test_each_name_gives_its_number_of_views_all_different(name: str, count: int) -> None:
    pixels = transformed(name, noise())
    assert pixels.shape == (count, 3, 32, 32) and views.count(name) == count
    assert len({view.tobytes() for view in pixels}) == count


def test_one_view_is_the_centre() -> None:
    assert transformed("one", noise()).shape == (3, 32, 32)
    np.testing.assert_array_equal(transformed("one", noise()), transformed("flips", noise())[0])


def test_ten_crops_equal_torchvisions() -> None:
    image = noise()
    theirs = functional.ten_crop(image.resize((54, 36), Image.Resampling.BILINEAR), [32, 32])
    expected = {np.asarray(crop).transpose(2, 0, 1).tobytes() for crop in theirs}
    assert {view.tobytes() for view in transformed("ten", image)} == expected


def test_cnnaug_is_the_image_five_parts_two_rotations_and_their_mirror_images() -> None:
    plan = views.views_of("cnnaug", DIGEST, (60, 40))
    sides = [round((view.box[2] - view.box[0]) * (view.box[3] - view.box[1]), 6) for view in plan[:8]]
    assert sides == [1] + 5 * [round(4 / 9, 6)] + [1, 1] and [view.angle for view in plan[6:8]] == [30, -30]
    pixels = transformed("cnnaug", noise())
    np.testing.assert_array_equal(pixels[8:], pixels[:8, :, :, ::-1])


def test_random_views_depend_on_the_image_and_the_seed_alone() -> None:
    image = noise()
    np.testing.assert_array_equal(transformed("random:4", image), transformed("random:4:0", image))
    assert not np.array_equal(transformed("random:4:1", image), transformed("random:4:0", image))
    assert not np.array_equal(transformed("random:4", image, "cd" * 32), transformed("random:4", image))
    for view in views.views_of("random:200", DIGEST, (60, 40)):
        left, top, right, bottom = view.box
        assert abs(view.angle) <= 5 and 0 <= left < right <= 1.0001 and 0 <= top < bottom <= 1.0001
        assert 0.07 < (right - left) * (bottom - top) <= 1.0001


def test_an_image_of_one_pixel_has_views_too() -> None:
    for name in ("cnnaug", "random:5", "ten"):
        assert transformed(name, noise(1, 1)).shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "words"), [("random:0", "draws 0 views"), ("random:9999", "random:256"), ("tne", "Choose from: one")]
)
def test_unknown_views_are_rejected(name: str, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        transforms.Framing(views=name).of(SMALL)


def test_corners_need_a_resize_larger_than_the_crop() -> None:
    with pytest.raises(errors.PipelineError, match="--resize 37"):
        transforms.Framing(resize=32, views="ten").of(SMALL)


# Folds


def test_no_fold_splits_the_views_of_an_image() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    y, groups = np.repeat(labels, 5), np.repeat(np.arange(40), 5)
    for fitted, held in make_folds(y, 4, 0, groups):
        assert not set(groups[fitted]) & set(groups[held])
        assert len(fitted) + len(held) == 200 and len(held) % 5 == 0


def test_one_view_per_image_gives_the_usual_folds() -> None:
    y = np.random.default_rng(0).integers(0, 3, 40)
    for ours, theirs in zip(make_folds(y, 4, 1, np.arange(40)), make_folds(y, 4, 1), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_views_in_several_folds_would_give_too_high_accuracy() -> None:
    """Labels that mean nothing: views of an image on both sides of a fold are recognised, and look like learning."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.permutation(np.arange(40) % 2), 6)
    X = (np.repeat(rng.normal(size=(40, 30)), 6, 0) + 0.1 * rng.normal(size=(240, 30))).astype(np.float32)
    groups, plan = np.repeat(np.arange(40), 6), SearchPlan("svm", {"l2": {"C": [10.0]}}, 4, 0)
    grouped = search.train(TrainingData(X, y, groups), plan).chosen["accuracy"]
    assert search.train(TrainingData(X, y, np.arange(240)), plan).chosen["accuracy"] > 0.95 and grouped < 0.75


# The commands


def test_views_from_extract_to_predict(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_forwards(monkeypatch)
    run("prepare", "--dataset", photos)
    command = (
        "extract",
        "--dataset",
        "photos",
        "--layer",
        "fc7",
        "--views",
        "ten",
        "--resize",
        73,
        "--precision",
        "fp32",
    )
    assert run(*command).code == 0
    path = Path("features/photos/tinyvgg/fc7.h5")
    stored = reader.read(path, {"transform.views": "ten"})
    assert stored.values.shape == (36, 10 * 1024)
    assert run("verify", path).code == 0
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg", transforms.Framing(resize=73, views="ten"))
    one = transforms.load_image(photos / "red/03.png", network.transform)
    row = next(number for number, name in enumerate(stored.paths) if name.endswith("red/03.png"))
    for number, view in enumerate(one):
        expected = network.codes(view[None])["fc7"][0]
        np.testing.assert_allclose(stored.values[row].reshape(10, -1)[number], expected, rtol=1e-3, atol=1e-4)

    seen.clear()
    assert run(*command).code == 0 and not seen
    write_photos(photos, {"red": 14, "green": 12, "blue": 12})  # two new ones; the noise of the others changes
    address = ("--dataset", "photos", "--layer", "fc7")
    grid = "{l2: {C: [1]}, sqrt: {C: [1, 10]}}"
    assert run("classify", *address, "--folds", 3, "--grid", grid).code == 0
    classifier = persistence.load(Path("models/photos/tinyvgg/fc7-svm.skops"))
    assert classifier.spec.transform.views == "ten"
    by_view = stored.values.reshape(36, 10, 1024).swapaxes(0, 1)
    summed = sum(classifier.pipeline.decision_function(codes) for codes in by_view)
    np.testing.assert_allclose(persistence.margins(classifier, stored.values), summed / 10, rtol=1e-4, atol=1e-5)
    assert run("evaluate", *address).code == 0
    metrics = json.loads(Path("reports/photos/tinyvgg/fc7-svm/metrics.json").read_text())
    assert metrics["n"] == len(stored.splits) - stored.splits.count("train")
    outcome = run("predict", *address, photos / "green")
    assert outcome.code == 0 and outcome.out.count("\n") == 13
    assert run("report").code == 0


def test_unknown_views_and_too_many_for_the_disk_are_mistakes(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("prepare", "--dataset", photos)
    flags = ("--dataset", "photos", "--layer", "fc7")
    mistake(run("extract", *flags, "--views", "random:0"), "draws 0 views")
    mistake(run("extract", *flags, "--views", "ten"), "--resize 73")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    seen = count_forwards(monkeypatch)
    assert run("extract", *flags, "--views", "one").code == 0 and seen
    seen.clear()
    mistake(run("extract", *flags, "--views", "cnnaug"), "0.0 GB", "fewer --views")
    assert not seen
