"""prepare: every kind of source becomes a manifest; bad files and leakage are reported, mistakes explained."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Outcome, spawn, write_photos
from helpers import mistake
from PIL import Image

from pipeline.data import digits
from pipeline.data.manifest import ListedImage, read_manifest
from pipeline.data.splits import assign_splits, find_leaks

Run = Callable[..., Outcome]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_digits_become_1797_files_in_two_splits(run: Run, project: Path) -> None:
    outcome = run("prepare")
    assert outcome.code == 0
    assert "1,797 images, 10 classes (1,347 train, 450 test)" in outcome.out
    manifest = read_manifest(project / "data" / "digits")
    assert len(manifest.paths) == 1797 and manifest.classes == tuple("0123456789")
    assert all(path.suffix == ".png" and path.exists() for path in manifest.files())
    tested = Counter(label for label, split in zip(manifest.labels, manifest.splits, strict=True) if split == "test")
    assert min(tested.values()) >= 43 and max(tested.values()) <= 47


def test_digits_prepared_on_the_spot_are_the_same(run: Run, project: Path) -> None:
    run("prepare")
    prepared = (project / "data" / "digits" / "manifest.csv").read_bytes()
    (project / "data" / "digits" / "manifest.csv").unlink()
    digits.open_prepared(Path("data", "digits"), test=0.25, val=0.0, seed=0)
    assert (project / "data" / "digits" / "manifest.csv").read_bytes() == prepared


def test_a_folder_of_classes_is_split_by_shares_and_seed(run: Run, photos: Path) -> None:
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        assert (
            run("prepare", "--dataset", photos, "--out", folder, "--test", 0.25, "--val", 0.25, "--seed", seed).code
            == 0
        )
    first, again, other = (Path(folder, "manifest.csv").read_text() for folder in "abc")
    assert first == again != other
    counts = Counter((row["label"], row["split"]) for row in rows(Path("a", "manifest.csv")))
    assert counts == {(c, s): n for c in ("red", "green", "blue") for s, n in (("train", 6), ("val", 3), ("test", 3))}


def test_the_folders_own_splits_are_kept(run: Run, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_photos(tmp_path / "set" / split, {"a": 2, "b": 2}, seed=len(split))
    assert run("prepare", "--dataset", tmp_path / "set").code == 0
    assert Counter(row["split"] for row in rows(Path("data/set/manifest.csv"))) == {"train": 4, "val": 4, "test": 4}


def test_val_is_the_test_split_where_there_is_no_other(run: Run, tmp_path: Path) -> None:
    write_photos(tmp_path / "set" / "train", {"a": 2, "b": 2})
    write_photos(tmp_path / "set" / "val", {"a": 1, "b": 1}, seed=1)
    assert "(4 train, 2 test)" in run("prepare", "--dataset", tmp_path / "set").out


def test_a_class_may_be_called_train(run: Run, tmp_path: Path) -> None:
    write_photos(tmp_path / "vehicles", {"train": 4, "bus": 4})
    run("prepare", "--dataset", tmp_path / "vehicles")
    assert {row["label"] for row in rows(Path("data/vehicles/manifest.csv"))} == {"train", "bus"}


def test_a_csv_gives_paths_labels_and_splits(run: Run, photos: Path) -> None:
    lines = ["path,label,split"] + [
        f"{c}/{n:02}.png,{c},{'train' if n else 'test'}" for c in ("red", "blue") for n in range(3)
    ]
    table = photos / "list.csv"
    table.write_text("\n".join(lines))
    assert run("prepare", "--dataset", table).code == 0
    found = rows(Path("data/list/manifest.csv"))
    assert Counter(row["split"] for row in found) == {"train": 4, "test": 2}
    assert all(Path(row["path"]).exists() for row in found)


def test_bad_files_are_listed_with_reasons_and_the_rest_goes_on(run: Run, photos: Path) -> None:
    good = (photos / "red" / "00.png").read_bytes()
    (photos / "red" / "empty.jpg").write_bytes(b"")
    (photos / "red" / "notes.txt").write_text("no image")
    (photos / "blue" / "half.png").write_bytes(good[: len(good) // 2])
    (photos / "blue" / ".DS_Store").write_bytes(b"ignored")
    outcome = run("prepare", "--dataset", photos)
    assert outcome.code == 0 and "36 images" in outcome.out and "3  bad files" in outcome.out
    reasons = {Path(row["path"]).name: row["reason"] for row in rows(Path("data/photos/bad.csv"))}
    assert reasons.keys() == {"empty.jpg", "notes.txt", "half.png"}
    assert "zero bytes" in reasons["empty.jpg"] and "truncated" in reasons["half.png"]


def test_on_bad_error_stops_and_changes_nothing(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos)
    before = Path("data/photos/manifest.csv").read_bytes()
    (photos / "red" / "empty.jpg").write_bytes(b"")
    outcome = run("prepare", "--dataset", photos, "--on-bad", "error", "--seed", 5)
    assert outcome.code == 2 and "empty.jpg" in outcome.err and "zero bytes" in outcome.err
    assert Path("data/photos/manifest.csv").read_bytes() == before


def test_the_same_bytes_in_two_splits_are_leakage(run: Run, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "set" / "train", {"a": 3, "b": 3}).parent
    write_photos(folder / "test", {"a": 3, "b": 3}, seed=9)
    (folder / "test" / "b" / "copy.png").write_bytes((folder / "train" / "a" / "00.png").read_bytes())
    outcome = run("prepare", "--dataset", folder)
    assert "1  images in several splits" in outcome.out
    leaks = rows(Path("data/set/leakage.csv"))
    assert [(row["split"], row["label"]) for row in leaks] == [("test", "b"), ("train", "a")]


def test_a_drawn_split_keeps_copies_together() -> None:
    listed = [ListedImage(Path(f"{n}.png"), "ab"[n % 2], digest=f"{n % 2}-{n // 4}") for n in range(40)]
    for seed in range(20):
        settled = assign_splits(listed, {"test": 0.3, "val": 0.2}, seed)
        assert not find_leaks(settled)
        assert {image.split for image in settled} == {"train", "val", "test"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_class_keeps_an_image_for_training(count: int) -> None:
    listed = [ListedImage(Path(f"{n}.png"), "a", digest=str(n)) for n in range(count)]
    settled = assign_splits(listed, {"test": 0.5, "val": 0.4}, 0)
    assert "train" in {image.split for image in settled}


@pytest.mark.parametrize(
    "name",
    ["<img src=x>.png", 'quo"te,comma.png', "new\nline.png", "\u202ertl.png", "x" * 200 + ".png", b"latin-\xe9.png"],
)
def test_odd_file_names_survive(run: Run, photos: Path, name: str | bytes) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(photos / "red"), os.fsencode(name)))  # noqa: PTH118
    (photos / "red" / "00.png").rename(path)
    assert run("prepare", "--dataset", photos).code == 0
    assert path in map(str, read_manifest(Path("data/photos")).files())


def test_images_below_the_prepared_folder_are_stored_by_relative_path(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos, "--out", photos)
    assert all(not Path(row["path"]).is_absolute() for row in rows(photos / "manifest.csv"))


# The table at the end


def test_the_table_names_all_that_is_not_used(run: Run, photos: Path) -> None:
    for colour, name in (("green", "@eaDir"), ("blue", ".thumbnails")):
        shutil.copytree(photos / colour, photos / colour / name)
    shutil.copy(photos / "red" / "00.png", photos / "red" / "copy.png")
    shutil.copy(photos / "red" / "01.png", photos / "blue" / "wrong.png")
    shutil.copy(photos / "red" / "02.png", photos / "loose.png")
    (photos / "heic").mkdir()
    (photos / "heic" / "1.heic").write_bytes(b"no image")
    (photos / "none").mkdir()
    outcome = run("prepare", "--dataset", photos)
    assert outcome.code == 0, outcome.err
    for line in (
        "photos: 38 images, 3 classes",
        "64  files found",
        "38  images used",
        "1  bad files skipped, see data/photos/bad.csv",
        "24  skipped, hidden or system file",
        "1  skipped, lies beside the class folders, so its class is unknown",
        "2  classes lost, since none of their files can be used: 'heic', 'none'",
        "2  of these are copies of others",
        "1  of the copies have another label",
        "Next: python -m pipeline.extract --dataset photos",
    ):
        assert line in outcome.out, outcome.out
    skipped = rows(Path("data/photos/skipped.csv"))
    assert sum(int(row["files"]) for row in skipped) == 25


def test_what_a_file_holds_besides_its_first_image_is_said(run: Run, photos: Path) -> None:
    frames = [Image.open(path) for path in sorted(photos.glob("red/*.png"))[:3]]
    for name in ("animation.gif", "stack.tif", "animation.webp", "portrait.mpo"):
        frames[0].save(photos / "red" / name, save_all=True, append_images=frames[1:])
    (photos / "red" / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (photos / "red" / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    outcome = run("prepare", "--dataset", photos)
    for words in (
        "photos: 40 images",
        "Of 3 files with several images (animations or pages) the first one is used: ",
        "1  skipped, a pointer of Git LFS",
        "1  skipped, a web page",
    ):
        assert words in outcome.out, outcome.out


def test_copies_never_part(run: Run, photos: Path) -> None:
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        again = path.with_name(f"again-{path.name}")
        shutil.copy(path, again) if number % 2 else Image.open(path).save(again.with_suffix(".bmp"))
    outcome = run("prepare", "--dataset", photos, "--val", 0.2)
    assert "36  of these are copies" in outcome.out and "18  of the copies were saved anew" in outcome.out
    splits: dict[str, set[str]] = {}
    for row in rows(Path("data/photos/manifest.csv")):
        splits.setdefault(row["same_pixels"], set()).add(row["split"])
    assert len(splits) == 36 and all(len(each) == 1 for each in splits.values())


def test_a_suffix_is_cut_from_csv_files_only(run: Run, photos: Path, tmp_path: Path) -> None:
    for name in ("pets.v1", "pets.v2", "pets.csv"):
        shutil.copytree(photos, tmp_path / name)
        assert run("prepare", "--dataset", tmp_path / name).code == 0
    (tmp_path / "list.v3.csv").write_text("path,label\nphotos/red/00.png,a\nphotos/blue/00.png,b\n")
    assert run("prepare", "--dataset", tmp_path / "list.v3.csv", "--test", 0).code == 0
    assert {path.name for path in Path("data").iterdir()} == {"pets.v1", "pets.v2", "pets.csv", "list.v3"}


def test_rows_of_missing_files_are_named(run: Run, photos: Path) -> None:
    (photos / "list.csv").write_text("path,label\nred/00.png,a\nred/gone.png,c\nblue/00.png,b\n")
    outcome = run("prepare", "--dataset", photos / "list.csv", "--test", 0)
    assert outcome.code == 0 and "gone.png" in outcome.out and "1  classes lost" in outcome.out
    assert "1  skipped, unreadable: No such file or directory" in outcome.out
    assert "No such file" in rows(Path("data/list/bad.csv"))[0]["reason"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stdout_of_any_encoding_shows_what_it_can(
    photos: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    (photos / "blue" / "00.png").rename(os.fsdecode(os.fsencode(photos) + b"/blue/\xff \xe2\x82\xac.jpg"))
    (photos / "\u20ac").mkdir()
    (photos / "red").rename(photos / "caf\u00e9")
    (photos / "green").rename(os.fsdecode(os.fsencode(photos) + b"/gr\xfcn"))
    with spawn("prepare", "--dataset", photos, cwd=photos.parent) as process:
        out, err = process.communicate()
    assert process.returncode == 0 and "36 images, 3 classes" in out, err


# Mistakes


def test_an_unknown_dataset_lists_the_choices(run: Run) -> None:
    mistake(run("prepare", "--dataset", "digts"), "'digts'", "digits")


def test_a_missing_folder(run: Run) -> None:
    mistake(run("prepare", "--dataset", "no/such/folder"), "no/such/folder", "Check the path")


def test_an_empty_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    mistake(run("prepare", "--dataset", tmp_path / "empty"), "holds no images", "<class>")


def test_only_bad_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.png").write_bytes(b"")
    mistake(run("prepare", "--dataset", tmp_path / "set"), "zero bytes")


def test_one_class(run: Run, tmp_path: Path) -> None:
    mistake(run("prepare", "--dataset", write_photos(tmp_path / "set", {"only": 5})), "one class only", "'only'")


def test_labels_that_do_not_match(run: Run, tmp_path: Path) -> None:
    write_photos(tmp_path / "set" / "train", {"a": 2, "b": 2})
    write_photos(tmp_path / "set" / "test", {"a": 2, "c": 2}, seed=1)
    mistake(run("prepare", "--dataset", tmp_path / "set"), "do not match", "'c'")


def test_a_folder_beside_train_that_is_no_split(run: Run, tmp_path: Path) -> None:
    for split in ("train", "extra"):
        write_photos(tmp_path / "set" / split, {"a": 2, "b": 2})
    mistake(run("prepare", "--dataset", tmp_path / "set"), "extra", "no split")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\nx.png,a", ("lacks the column 'path'",)),
        ("path,label\n", ("lists no images",)),
        ("path,label\n,x\n", ("line 2", "missing")),
        ("path,label,split\nx.png,a,holdout\n", ("line 2", "'holdout'", "train, val, test")),
        ("path,label,split\nx.png,a,train\ny.png,b,\n", ("some lines have a split",)),
    ],
)
def test_mistakes_in_a_csv(run: Run, project: Path, text: str, words: tuple[str, ...]) -> None:
    (project / "list.csv").write_text(text)
    mistake(run("prepare", "--dataset", "list.csv"), *words)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (("--test", "1.0"), "--test is '1.0', but it must be less than 1"),
        (("--test", "-0.1"), "--test is '-0.1', but it must be 0 or more"),
        (("--test", "0.6", "--val", "0.5"), "leave something for training"),
    ],
)
def test_impossible_shares(run: Run, photos: Path, shares: tuple[str, ...], words: str) -> None:
    mistake(run("prepare", "--dataset", photos, *shares), words)


def test_broken_params(run: Run, project: Path) -> None:
    (project / "params.yaml").write_text("dataset: [unclosed")
    mistake(run("prepare"), "params.yaml", "not valid YAML")


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(Exception, match="digts"):
        run("prepare", "--dataset", "digts", "--debug")


def test_the_projects_params_are_the_packaged_defaults(run: Run, project: Path) -> None:
    here = run("prepare", "--help").out
    (project / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert run("prepare", "--help").out == here


def test_groups_share_a_split_and_their_column_is_kept(run: Run, project: Path) -> None:
    folder = project / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,label,patient,note"]
    for number in range(60):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'ant' if number % 2 else 'bee'},p{number // 4},n{number}")
    (folder / "bugs.csv").write_text("\n".join(lines) + "\n")
    assert run("prepare", "--dataset", folder / "bugs.csv", "--group-by", "patient").code == 0
    manifest = read_manifest(Path("data/bugs"))
    splits: dict[str, set[str]] = {}
    for patient, split in zip(manifest.metadata["patient"], manifest.splits, strict=True):
        splits.setdefault(patient, set()).add(split)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) == 15
    assert 8 <= manifest.splits.count("test") <= 24
    names = [Path(path).stem for path in manifest.paths]
    assert manifest.metadata["note"] == tuple(f"n{name}" for name in names)
    mistake(
        run("prepare", "--dataset", folder / "bugs.csv", "--group-by", "doctor"), "Unknown column 'doctor'", "patient"
    )


def test_groups_that_the_source_parts_are_refused(run: Run, photos: Path) -> None:
    rows = [(f"red/{n:02}.png", "red", n) for n in range(8)] + [(f"blue/{n:02}.png", "blue", n) for n in range(8)]
    lines = [f"{path},{label},{'test' if n > 5 else 'train'},{n // 4}" for path, label, n in rows]
    (photos / "list.csv").write_text("path,label,split,patient\n" + "\n".join(lines) + "\n")
    mistake(run("prepare", "--dataset", photos / "list.csv", "--group-by", "patient"), "part 1 groups", "'1'")
    (photos / "list.csv").write_text("path,label,patient\nred/00.png,red,\nblue/00.png,blue,1\n")
    mistake(
        run("prepare", "--dataset", photos / "list.csv", "--group-by", "patient"), "no value in the column 'patient'"
    )


def test_large_images_lead_to_the_network_for_photographs(run: Run, tmp_path: Path) -> None:
    for label, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "large" / label).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (160, 120), (shade, number, 0)).save(tmp_path / "large" / label / f"{number}.png")
    assert run("prepare", "--dataset", tmp_path / "large").out.endswith(
        "Next: python -m pipeline.extract --dataset large --backbone efficientnet_lite0 --layer avgpool\n"
    )
