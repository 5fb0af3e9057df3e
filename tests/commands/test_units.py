"""Copies, groups and near-duplicates count once: in folds, in n and intervals, and in scores beside relatives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Listing, Outcome, put_codes, write_photos
from helpers import CODES, MODEL, mistake

from pipeline import files, finetune
from pipeline.classifiers import search
from pipeline.classifiers.scoring import wilson_interval
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.config import Finetune
from pipeline.data.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.finetuning.initialization import split_train_val
from pipeline.texts import Texts

Run = Callable[..., Outcome]
GRID = ("--grid", "{l2: {C: [1, 100]}}", "--folds", 3)
NEAR = ("--group-by", "near-duplicates")
METRICS = Path("reports/digits/tinyvgg/fc7-svm/metrics.json")


def facts() -> Any:
    return json.loads(MODEL.with_suffix(".json").read_text())


def write_dataset(
    values: np.ndarray, labels: Sequence[int], splits: Sequence[str], images: Sequence[int], patients: Sequence[str]
) -> None:
    """Write codes and a manifest; rows with the same number in `images` are copies of the same bytes."""
    paths, digests = [f"{row}.png" for row in range(len(labels))], [f"{image:064x}" for image in images]
    put_codes(CODES, values, Listing(paths, labels, splits, digests, ["ant", "bee"]))
    rows = [
        (path, ("ant", "bee")[label], split, digest, patient)
        for path, label, split, digest, patient in zip(paths, labels, splits, digests, patients, strict=True)
    ]
    files.write_csv(Path("data/digits/manifest.csv"), ("path", "label", "split", "digest", "patient"), rows)


def write_noise(scenes: int = 40, per_scene: int = 4) -> None:
    """Write codes of noise with labels without meaning: several shots of each scene, no two with the same bytes."""
    rng = np.random.default_rng(2)
    scene = rng.permutation(np.repeat(np.arange(scenes), per_scene))
    values = rng.random((scenes, 100))[scene] * (1 + 0.02 * rng.normal(size=(len(scene), 100)))
    labels = rng.permutation(np.arange(scenes) % 2)[scene].tolist()
    write_dataset(values, labels, ["train"] * len(scene), range(len(scene)), [f"p{number}" for number in scene])


# In folds


def test_near_duplicates_stay_in_one_fold_and_count_once(run: Run) -> None:
    write_noise()
    assert run("classify", *GRID).code == 0
    assert facts()["chosen"]["accuracy"] > 0.95, "shots of one scene on both sides of a fold look like learning"
    outcome = run("classify", *GRID, *NEAR, "--nested")
    assert outcome.code == 0
    assert "160 of 160 train images fall into 40 groups, the largest of 4: '" in outcome.err
    assert "0.05 of the median distance" in outcome.err
    assert "160 images (n = 40; copies, and the images of a group, count once)" in outcome.out
    assert facts()["chosen"]["accuracy"] < 0.75 and facts()["group_by"] == "near-duplicates"
    nested = facts()["nested"]
    assert (nested["n"], nested["images"]) == (40, 160) and nested["low"] < 0.5 < nested["high"]
    assert "n = 40 (160 images; copies" in outcome.out
    by_column = run("classify", *GRID, "--group-by", "patient")
    assert by_column.code == 0 and facts()["n_units"] == 40
    manifest = Path("data/digits/manifest.csv")
    manifest.write_text(manifest.read_text().replace("patient", "same_pixels", 1))
    assert run("classify", *GRID).code == 0 and facts()["n_units"] == 40


def test_how_near_is_said_by_a_flag(run: Run) -> None:
    write_noise()
    outcome = run("classify", *GRID, *NEAR, "--near-distance", 0.0001)
    assert outcome.code == 0 and "No two of 160 train images are near-duplicates" in outcome.err
    mistake(run("classify", *GRID, *NEAR, "--near-distance", 0.99), "Chains of near-duplicates", "--near-distance")
    mistake(run("classify", *GRID, *NEAR, "--near-distance", 0), "--near-distance is '0'", "greater than 0")


def test_few_shots_of_near_duplicates_are_at_chance(run: Run) -> None:
    write_noise()
    outcome = run("classify", *GRID, *NEAR, "--shots", 1, 4, "--draws", 3)
    assert outcome.code == 0 and "accuracy on 40 held-out training images (n = 10; copies" in outcome.out, outcome.err
    (_, four) = files.read_csv(MODEL.with_name("fc7-svm-shots.csv"))
    assert float(four["accuracy"]) < 0.75 and (four["images"], four["n_scored"]) == ("40", "10")


@pytest.mark.parametrize(
    ("groups", "words"), [(["p"] * 40, "lie in 1 group, fewer than the 5"), (["p", "q"] * 20, "lie in 1 group")]
)
def test_too_few_groups_are_refused(run: Run, groups: list[str], words: str) -> None:
    write_dataset(np.random.default_rng(0).random((40, 9)), [0, 1] * 20, ["train"] * 40, range(40), groups)
    mistake(run("classify", "--folds", 5, "--group-by", "patient"), words, "add images of other groups")
    write_dataset(np.random.default_rng(0).random((40, 9)), [0, 0, 1, 1] * 10, ["train"] * 40, range(40), groups)
    mistake(run("classify", "--folds", 5, "--group-by", "patient"), "fewer than the 5 folds")


def test_a_gap_in_the_column_is_named_wherever_it_is(run: Run) -> None:
    splits = ["train"] * 30 + ["test"] * 10
    write_dataset(np.random.default_rng(0).random((40, 9)), [0, 1] * 20, splits, range(40), ["p"] * 39 + [""])
    mistake(run("classify", "--group-by", "patient"), "no value in the column 'patient' for 39.png", "Fill it in")


def test_views_of_an_image_count_once_and_are_scored_together() -> None:
    """Labels by the mean of an image's views: each view alone says little, all of them together say all."""
    rng = np.random.default_rng(0)
    y, images = np.arange(120) % 2, np.repeat(np.arange(120), 10)
    X = (rng.normal(size=(1200, 2)) + np.array([[0.8, 0], [0, 0.8]])[y][images]).astype(np.float32)
    data = TrainingData(X, y[images], images // 2, images)
    nested = search.nested_cv(data, SearchPlan("svm", {"standard": {"C": [0.1]}}, 3, 0))
    by_view = search.train(data, SearchPlan("svm", {"standard": {"C": [0.1]}}, 3, 0)).chosen["accuracy"]
    assert (nested["n"], nested["images"]) == (60, 120) and nested["accuracy"] > 0.9 > 0.8 > by_view
    assert (nested["low"], nested["high"]) == pytest.approx(wilson_interval(60 * nested["accuracy"], 60))


# In scores


def write_related(patients: Sequence[str] | None = None) -> None:
    """Write 40 training and 20 test images; of these four are a copy, and three near-duplicates, of training images."""
    rng = np.random.default_rng(1)
    labels, images = [0, 1] * 30, np.arange(60)
    values = rng.random((60, 30)) + np.eye(2, 30)[labels]
    images[40:44], values[40:44] = images[:4], values[:4]
    values[44:47] = values[4:7] * (1 + 0.01 * rng.normal(size=(3, 30)))
    images[59], values[59] = images[57], values[57]  # a copy within the test split
    splits = ["train"] * 40 + ["test"] * 20
    write_dataset(values, labels, splits, images.tolist(), patients or [f"p{row}" for row in range(60)])


def test_test_images_that_resemble_training_images_are_counted_and_left_out_of_a_second_score(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_related()
    assert run("classify", *GRID).code == 0
    outcome = run("evaluate")
    assert outcome.code == 0
    assert (
        "7 of 20 test images are related to training images: 4 copies, 3 near-duplicates (codes at most" in outcome.out
    )
    metrics = json.loads(METRICS.read_text())
    rest = metrics["unrelated"]
    assert (metrics["n"], metrics["images"], metrics["related"]) == (19, 20, 7)
    assert (rest["n"], rest["images"]) == (12, 13) and f"Without them: top-1 {rest['top1']:.4f}" in outcome.out
    correct = [row["label"] == row["predicted"] for row in files.read_csv(METRICS.with_name("predictions.csv"))]
    assert metrics["top1"] == np.mean(correct) and rest["top1"] == np.mean(correct[7:])
    sizes = np.array([1] * 11 + [2])
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    assert (rest["top1_low"], rest["top1_high"]) == wilson_interval(rest["top1"] * effective, effective)
    none = run("evaluate", "--near-distance", 1e-6)
    assert "4 of 20 test images are related to training images: 4 copies." in none.out
    assert run("report").code == 0
    monkeypatch.setattr("pipeline.analysis.neighbors.MAX_COMPARISONS", 16 * 40 // 2)
    sampled = run("evaluate")
    assert "6 of 20 test images (a sample of 12 was compared) are related" in sampled.out
    metrics = json.loads(METRICS.read_text())
    assert (metrics["compared"], metrics["related"], metrics["unrelated"]["images"]) == (12, 6, 6)


def test_groups_of_training_images_are_found_in_the_test_split(run: Run) -> None:
    write_related([f"p{row % 44}" for row in range(60)])
    assert run("classify", *GRID, "--group-by", "patient").code == 0
    outcome = run("evaluate", "--near-distance", 1e-6)
    assert (
        "20 of 20 test images are related" in outcome.out and "16 of a group of training images, by pat" in outcome.out
    )
    assert "Without them: there is no score" in outcome.out and "unrelated" not in json.loads(METRICS.read_text())


def test_a_dataset_without_the_column_of_the_groups_is_scored_by_copies(run: Run) -> None:
    write_related()
    assert run("classify", *GRID, "--group-by", "patient").code == 0
    path = Path("data/digits/manifest.csv")
    rows = files.read_csv(path)
    files.write_csv(path, list(rows[0])[:-1], [list(row.values())[:-1] for row in rows])
    outcome = run("evaluate")
    assert outcome.code == 0 and "has no column 'patient'" in outcome.err and "n = 19 (20 images" in outcome.out


def test_near_duplicates_within_the_test_split_count_once(run: Run) -> None:
    write_related()
    assert run("classify", *GRID, *NEAR).code == 0
    outcome = run("evaluate", "--near-distance", 0.2)
    assert outcome.code == 0 and "n = 19 (20 images" in outcome.out


# In other commands


def test_prepare_says_that_there_are_no_codes_yet(run: Run, photos: Path) -> None:
    mistake(
        run("prepare", "--dataset", photos, *NEAR), "found by codes", "pipeline.classify --group-by near-duplicates"
    )
    table = [(path, path.parent.name, "x") for path in photos.glob("*/*")]
    files.write_csv(photos / "list.csv", ("path", "label", "near-duplicates"), table)
    mistake(run("prepare", "--dataset", photos / "list.csv"), "column 'near-duplicates'", "Rename it")


def test_fine_tuning_keeps_near_duplicates_out_of_validation(run: Run) -> None:
    write_noise()
    settings = Finetune(dataset="digits", group_by="near-duplicates")
    manifest = finetune.add_near_duplicates(read_manifest(Path("data/digits")), CODES, settings)
    data = split_train_val(manifest, 0.25, 0, settings.group_by)
    scene = dict(zip(manifest.paths, manifest.metadata["patient"], strict=True))
    train, val = ({scene[manifest.paths[row]] for row in rows} for rows in (data.train, data.val))
    assert len(val) == 10 and not train & val and len(np.unique(data.val_units())) == 10
    parted = replace(manifest, splits=Texts.of(("train", "val") * 80))
    with pytest.raises(PipelineError, match=r"share .* groups of 'near-duplicates', .* without a val split"):
        split_train_val(parted, 0.25, 0, settings.group_by)


def test_advise_counts_groups_once(run: Run, project: Path) -> None:
    folder = write_photos(project / "photos", {"red": 12, "green": 12})
    rows = [(path, path.parent.name, int(path.stem) // 3) for path in sorted(folder.glob("*/*.png"))]
    files.write_csv(project / "photos.csv", ("path", "label", "patient"), [(p, c, f"{c}{g}") for p, c, g in rows])
    assert run("prepare", "--dataset", "photos.csv", "--group-by", "patient", "--test", 0).code == 0
    flags = ("--dataset", "photos", "--layer", "pool3", "fc7", "--folds", 2)
    outcome = run("advise", *flags, "--group-by", "patient")
    assert outcome.code == 0 and "24 training images (n = 8; copies" in outcome.out, outcome.err
    (layer, *_) = json.loads(Path("reports/photos/tinyvgg/advice/advice.json").read_text())["layers"]
    assert (layer["low"], layer["high"]) == pytest.approx(wilson_interval(8 * layer["accuracy"], 8))
    near = run("advise", *flags, *NEAR, "--near-distance", 0.001)
    assert near.code == 0 and "No two of 24 train images are near-duplicates" in near.err
    mistake(run("advise", *flags, "--group-by", "doctor"), "Unknown column 'doctor'", "patient")
