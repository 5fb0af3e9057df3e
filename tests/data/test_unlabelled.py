"""Images without labels: they are read from folders and CSV files, keep out of all splits, and get codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, write_photos
from helpers import mistake

from pipeline.codes import reader
from pipeline.data.folders import list_folder, list_unlabelled
from pipeline.data.listing import join_listings
from pipeline.data.manifest import NO_LABEL, UNLABELLED, ListedImage, Manifest, read_manifest
from pipeline.data.splits import assign_splits
from pipeline.data.tables import list_csv, list_unlabelled_csv
from pipeline.errors import PipelineError

Run = Callable[..., Outcome]


@pytest.fixture
def pile(project: Path) -> Path:
    """Photos without labels: some in the folder itself, some two folders down, and a hidden file."""
    write_photos(project / "pile", {"red": 4, "trip/green": 3})
    for photo in (project / "pile" / "red").iterdir():
        photo.rename(project / "pile" / photo.name)
    (project / "pile" / "red").rmdir()
    (project / "pile" / ".DS_Store").write_bytes(b"x")
    return project / "pile"


def split_counts(manifest: Manifest) -> dict[str, int]:
    return {split: manifest.splits.count(split) for split in set(manifest.splits)}


def test_all_images_below_a_folder_get_codes_without_labels(run: Run, pile: Path) -> None:
    prepared = run("prepare", "--unlabelled", pile)
    assert prepared.code == 0 and "pile: 7 images, 0 classes (7 unlabelled)" in prepared.out
    manifest = read_manifest(Path("data/pile"))
    assert split_counts(manifest) == {UNLABELLED: 7} and manifest.classes == ()
    assert manifest.labels.tolist() == [NO_LABEL] * 7
    assert run("extract", "--dataset", "pile", "--weights", "random", "--layer", "fc7").code == 0
    codes = reader.read(Path("features/pile/tinyvgg/fc7.h5"), {})
    assert codes.paths == manifest.paths and codes.labels.tolist() == [NO_LABEL] * 7 and codes.values.any(1).all()
    verified = run("verify", "features/pile/tinyvgg/fc7.h5")
    assert verified.code == 0 and "all rows are sound" in verified.out


@pytest.mark.parametrize("command", ["classify", "advise", "finetune"])
def test_nothing_is_trained_without_labels(run: Run, pile: Path, command: str) -> None:
    run("prepare", "--unlabelled", pile)
    run("extract", "--dataset", "pile", "--layer", "fc7")
    flags = ("--head", "random") if command == "finetune" else ()
    mistake(run(command, "--dataset", "pile", *flags), "no training images with a label")


def test_images_beside_a_labelled_dataset_change_none_of_its_splits(run: Run, photos: Path, pile: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    before = read_manifest(Path("data/photos"))
    prepared = run("prepare", "--dataset", photos, "--unlabelled", pile)
    assert "43 images, 3 classes (27 train, 9 test, 7 unlabelled)" in prepared.out
    after = read_manifest(Path("data/photos"))
    labelled = np.flatnonzero(np.array(after.splits) != UNLABELLED)
    assert after.take(labelled).digest == before.digest and after.classes == before.classes


def test_scores_do_not_depend_on_images_without_labels(run: Run, photos: Path, pile: Path) -> None:
    scores = []
    for extra in ((), ("--unlabelled", pile)):
        assert run("prepare", "--dataset", photos, *extra).code == 0
        assert run("extract", "--dataset", "photos", "--layer", "fc7").code == 0
        trained = run("classify", "--dataset", "photos", "--grid", "{l2: {C: [1, 10]}}", "--folds", "3")
        assert trained.code == 0, trained
        evaluated = run("evaluate", "--dataset", "photos")
        assert "n = 9" in evaluated.out
        scores.append((trained.out, evaluated.out))
    assert scores[0] == scores[1]


def test_the_rest_of_a_folder_whose_labels_are_in_a_csv(photos: Path) -> None:
    (photos / "list.csv").write_text("path,label\nred/00.png,warm\nblue/00.png,cold\n")
    listing = join_listings(list_csv(photos / "list.csv"), list_unlabelled(photos))
    names = [image.path.relative_to(photos).as_posix() for image in listing.images]
    assert len(names) == len(set(names)) == 37 and names[:2] == ["red/00.png", "blue/00.png"]
    assert [image.split for image in listing.images].count(UNLABELLED) == 35
    assert {skipped.reason for skipped in listing.skipped} == {"is listed with a label as well"}


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
def test_a_folder_of_that_name_beside_classes_or_splits(tmp_path: Path, name: str) -> None:
    for layout in ("{}", "train/{}"):
        root = write_photos(tmp_path / layout[:5], {layout.format("a"): 2, layout.format("b"): 2, name: 3})
        listing = list_folder(root)
        assert [image.split for image in listing.images].count(UNLABELLED) == 3
        assert {label for image in listing.images for label in image.classes} == {"a", "b"}
        assert "no label" in listing.notes[-1] and "--layout classes" in listing.notes[-1]
    assert {image.label for image in list_folder(tmp_path / "{}", "classes").images} == {"a", "b", name}


def test_empty_labels_of_a_csv_are_said(photos: Path) -> None:
    (photos / "list.csv").write_text("path,label,split\nred/00.png,warm,train\nred/01.png,,train\nred/02.png, ,\n")
    listing = list_csv(photos / "list.csv")
    assert [(image.label, image.split) for image in listing.images] == [("warm", "train"), *[("", UNLABELLED)] * 2]
    assert "2 of 3 files" in listing.notes[0] and "red/01.png" in listing.notes[0] and "no label" in listing.notes[0]


def test_a_csv_of_paths_alone(photos: Path) -> None:
    (photos / "list.csv").write_text("path\nred/00.png\nred/01.png\nred/00.png\n")
    assert [image.split for image in list_unlabelled_csv(photos / "list.csv").images] == [UNLABELLED] * 2
    with pytest.raises(PipelineError, match="lacks the column 'label'"):
        list_csv(photos / "list.csv")


def test_an_image_with_and_without_a_label_is_refused(photos: Path) -> None:
    (photos / "list.csv").write_text("path,label\nred/00.png,warm\nred/00.png,\n")
    with pytest.raises(PipelineError, match="with a label and without one"):
        list_csv(photos / "list.csv")


def test_no_split_is_drawn_for_them() -> None:
    labelled = [ListedImage(Path(f"{n}.png"), "ab"[n % 2], digest=f"{n:064x}") for n in range(20)]
    copies = [ListedImage(Path(f"c{n}.png"), "", UNLABELLED, digest=f"{n:064x}") for n in range(20)]
    shares = {"test": 0.25, "val": 0.0}
    mixed = assign_splits([*copies, *labelled], shares, 0)
    assert mixed[:20] == copies and mixed[20:] == assign_splits(labelled, shares, 0)


def test_test_images_alone_give_codes_but_no_classifier(run: Run, photos: Path) -> None:
    lines = [f"{name}/{number:02}.png,{name},test" for name in ("red", "blue") for number in range(4)]
    (photos / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    prepared = run("prepare", "--dataset", photos / "list.csv")
    assert prepared.code == 0 and "no classifier can be trained" in prepared.out
    assert run("extract", "--dataset", "list", "--layer", "fc7").code == 0
    mistake(run("classify", "--dataset", "list"), "no training images with a label")


def test_a_pile_that_is_taken_for_classes_is_led_to_the_flag(run: Run, pile: Path) -> None:
    mistake(run("prepare", "--dataset", pile), f"--unlabelled {pile}")
    mistake(run("prepare", "--dataset", pile / "trip" / "green"), "--unlabelled")


def test_nothing_to_list_is_one_sentence(run: Run, project: Path) -> None:
    (project / "empty").mkdir()
    mistake(run("prepare", "--unlabelled", "empty"), "holds no files")
    mistake(run("prepare", "--unlabelled", "none/here"), "No folder, CSV or archive at none/here")
