"""Layouts of folders: read as their names say, refused where they can be read in two ways; nothing lost in silence."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.data.folders import list_files, list_folder
from pipeline.data.listing import Listing


def put(root: Path, *paths: str) -> Path:
    """Write small files, which need not be images: listing does not read them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def rows(listing: Listing) -> Counter[tuple[str, str | None]]:
    return Counter((image.label, image.split) for image in listing.images)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "validation", "Testing"),
        ("TRAIN", "Valid", "eval"),
        ("training", "dev", "Evaluation"),
    ],
)
def test_split_folders_of_any_usual_name_are_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    put(tmp_path, *(f"{split}/{name}/{split}.png" for split in (train, val, test) for name in ("glioma", "none")))
    assert rows(list_folder(tmp_path)) == {
        (name, split): 1 for name in ("glioma", "none") for split in ("train", "val", "test")
    }


def test_training_and_testing_alone_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "Training/a/1.png", "Training/b/1.png", "Testing/a/2.png", "Testing/b/2.png")
    assert {image.label for image in list_folder(tmp_path).images} == {"a", "b"}


def test_folders_of_the_same_split_are_joined_and_said(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "Training/b/1.png")
    listing = list_folder(tmp_path)
    assert rows(listing) == {("a", "train"): 1, ("b", "train"): 1}
    assert "'Training' and 'train'" in listing.notes[0] and "both read as 'train'" in listing.notes[0]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (("train/1.png", "test/2.png"), ("without class folders", "--layout classes", "CSV")),
        (("Train/1.png",), ("without class folders",)),
        (("train/1.png", "test/2.png", "bus/3.png"), ("read in two ways", "--layout classes", "bus/")),
        (("train/a/1.png", "extra/a/2.png"), ("read in two ways", "extra", "no split", "--layout classes")),
        (("test/a/1.png", "test/b/1.png"), ("test/", "no train/", "--layout classes")),
        (("test/1.png", "bus/2.png", "car/3.png"), ("test/ is a split beside the classes", "--layout classes")),
        (("train_set/a/1.png", "test_set/a/2.png"), ("test_set/ and train_set/ are splits (--layout splits)",)),
        (("TrainData/1.png", "val-images/2.png"), ("without class folders", "--layout classes")),
        (("site1/a/1.png", "site1/b/2.png", "site2/a/3.png", "site2/b/4.png"), ("read in two ways", "'a', 'b'", "CSV")),
        (("set/train/a/1.png", "set/test/a/2.png", "__MACOSX/set/._1.png"), ("one class only", "set instead")),
        (("cat/train/1.png", "dog/train/2.png"), ("read in two ways", "--layout class-splits", "--layout classes")),
        (("data/cat/1.png", "data/dog/2.png"), ("one class only, 'data'", "prepare", "data instead")),
        (("1.png", "2.png"), ("holds no images in class folders", "1.png")),
        (("1.png", "labels.csv"), ("labels.csv lists them, prepare that file",)),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    tmp_path: Path, paths: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(errors.PipelineError) as refused:
        list_folder(put(tmp_path, *paths))
    for word in words:
        assert word in str(refused.value)


def test_the_layout_decides(tmp_path: Path) -> None:
    put(tmp_path / "x", "train/1.png", "test/2.png")
    assert rows(list_folder(tmp_path / "x", "classes")) == {("train", None): 1, ("test", None): 1}
    put(tmp_path / "y", "cat/train/1.png", "cat/Test/2.png", "dog/train/3.png", "dog/4.png")
    listing = list_folder(tmp_path / "y", "class-splits")
    assert rows(listing) == {("cat", "train"): 1, ("cat", "test"): 1, ("dog", "train"): 1}
    assert [Path(entry.path).name for entry in listing.skipped] == ["4.png"]
    assert rows(list_folder(tmp_path / "y", "classes")) == {("cat", None): 2, ("dog", None): 2}
    put(tmp_path / "z", "train_set/a/1.png", "test 2024/a/2.png")
    assert rows(list_folder(tmp_path / "z", "splits")) == {("a", "train"): 1, ("a", "test"): 1}
    with pytest.raises(errors.PipelineError, match="no split"):
        list_folder(tmp_path / "y", "splits")
    with pytest.raises(errors.PipelineError, match="Unknown layout 'class'"):
        list_folder(tmp_path / "y", "class")


def test_one_folder_with_the_name_of_a_split_may_be_a_class(tmp_path: Path) -> None:
    assert rows(list_folder(put(tmp_path, "train/1.png", "bus/2.png"))) == {("train", None): 1, ("bus", None): 1}


def test_unlabelled_test_images_are_skipped_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/3.png", "test/4.png", "train/5.png")
    listing = list_folder(tmp_path)
    assert len(listing.images) == 2
    assert Counter(entry.reason for entry in listing.skipped) == {"lies in no class folder, so its class is unknown": 3}


def test_hidden_and_system_files_are_skipped_and_counted(tmp_path: Path) -> None:
    thumbs = [f"{name}/@eaDir/{n}.png/SYNOPHOTO_THUMB_M.jpg" for name in "ab" for n in range(3)]
    put(tmp_path, *(f"{name}/{n}.png" for name in "ab" for n in range(3)), *thumbs)
    put(tmp_path, "a/.thumbnails/0.png", "__MACOSX/a/._0.png", "a/Thumbs.db", "b/desktop.ini", ".DS_Store", "a/._0.png")
    listing = list_folder(tmp_path)
    assert len(listing.images) == 6 and {image.label for image in listing.images} == {"a", "b"}
    assert sum(entry.files for entry in listing.skipped) == 6 + 6
    assert list(list_files(tmp_path / "a")) == [tmp_path / "a" / f"{n}.png" for n in range(3)]


def test_loose_images_are_skipped_and_what_prepare_wrote_is_not(tmp_path: Path) -> None:
    listing = list_folder(put(tmp_path, "a/1.png", "b/2.png", "loose.png", "manifest.csv", "bad.csv"))
    assert [(Path(entry.path).name, entry.files) for entry in listing.skipped] == [("loose.png", 1)]


def test_what_the_program_wrote_into_the_folder_of_the_images_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(
        put(tmp_path, "a/1.png", "b/2.png", "models/3.png", "reports/x/metrics.json", "reports/x/map.png")
    )
    put(tmp_path, "old/manifest.csv", "old/source.json", "old/images/4.png")
    listing = list_folder(Path())
    assert {image.label for image in listing.images} == {"a", "b", "models"}
    assert {entry.path: entry.files for entry in listing.skipped} == {"reports": 2, "old": 3}
    assert list(list_files(Path())) == [Path("a/1.png"), Path("b/2.png"), Path("models/3.png")]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", *(f"{n}.png" for n in range(4)))
    root = put(tmp_path / "set", "a/1.png", "b/2.png")
    (root / "a" / "more").symlink_to(outside)
    (root / "a" / "again").symlink_to(outside)
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "top").symlink_to(tmp_path)
    (root / "b" / "self").symlink_to(root / "b" / "self")
    (root / "c").symlink_to(outside)
    listing = list_folder(root)
    counts = Counter(image.label for image in listing.images)
    assert counts == {"a": 5, "b": 2, "c": 4}  # of b: 2.png, and the link to itself, which cannot be read
    assert {Path(entry.path).name for entry in listing.skipped} == {"more", "up", "top"}


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert [entry.reason for entry in list_folder(tmp_path).skipped] == ["no regular file"]


def test_class_names_are_composed_and_stripped(tmp_path: Path) -> None:
    cafe = unicodedata.normalize("NFD", "café")
    put(tmp_path, f"{cafe}/1.png", "café/2.png", " bar /3.png", os.fsdecode(b"th\xe9/4.png"))
    listing = list_folder(tmp_path)
    assert {image.label: 1 for image in listing.images} == {"café": 1, "bar": 1, "thé": 1}
    assert "both read as 'café'" in listing.notes[0]
    with pytest.raises(errors.PipelineError, match="name of spaces only"):
        list_folder(put(tmp_path, "  /5.png"))


def test_classes_that_differ_by_case_are_warned_of(tmp_path: Path) -> None:
    assert "'Cat', 'cat' differ only by case" in list_folder(put(tmp_path, "cat/1.png", "Cat/2.png")).notes[0]


def test_classes_without_files_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "c").mkdir()
    assert list_folder(tmp_path).empty == ["c"]
