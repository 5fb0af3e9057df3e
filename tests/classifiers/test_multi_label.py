"""Several labels an image, from the CSV to the mean average precision; groups of images, from the CSV to the folds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import mistake
from PIL import Image
from sklearn.metrics import average_precision_score

from pipeline.classifiers import persistence, scoring
from pipeline.codes import reader
from pipeline.data.manifest import ListedImage, read_manifest
from pipeline.data.splits import assign_splits

Run = Callable[..., Outcome]
CHANNELS = ("red", "green", "blue")


def write_mixtures(folder: Path, count: int, columns: str = "path,labels") -> Path:
    """Write pictures whose labels are the channels that are bright, none to three of them, and the CSV that says so."""
    rng = np.random.default_rng(0)
    lines = [columns]
    folder.mkdir()
    for number in range(count):
        there = rng.random(3) < 0.5
        pixels = rng.integers(0, 110, (24, 24, 3)) + 110 * there
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
        lines.append(f"{number:03}.png,{' ; '.join(np.array(CHANNELS)[there])}")
    (folder / "mixtures.csv").write_text("\n".join(lines) + "\n")
    return folder / "mixtures.csv"


def test_several_labels_go_all_the_way(run: Run, project: Path) -> None:
    listed = write_mixtures(project / "photos", 90)
    for command in (
        ("prepare", "--dataset", listed, "--test", "0.3"),
        ("extract", "--dataset", "mixtures", "--layer", "fc7"),
        ("verify", "features/mixtures/tinyvgg/fc7.h5"),
        ("classify", "--dataset", "mixtures", "--layer", "fc7", "--model", "svm", "--grid", "{l2: {C: [1, 100]}}"),
        ("evaluate", "--dataset", "mixtures", "--layer", "fc7", "--model", "svm"),
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
    assert "mAP" in outcome.out and "VOC 2007" in outcome.out
    test = reader.read(Path("features/mixtures/tinyvgg/fc7.h5"), {}, "test")
    assert test.classes == ("blue", "green", "red") and test.labels.shape == (len(test.paths), 3)
    margins = persistence.margins(persistence.load(Path("models/mixtures/tinyvgg/fc7-svm.skops")), test.values)
    precisions = [average_precision_score(test.labels[:, k], margins[:, k]) for k in range(3)]
    report = Path("reports/mixtures/tinyvgg/fc7-svm")
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["map"] == pytest.approx(np.mean(precisions)) and metrics["map"] > 0.7
    with (report / "per_class.csv").open() as file:
        assert [float(row["ap"]) for row in csv.DictReader(file)] == pytest.approx(precisions)
    with (report / "confusion.csv").open() as file:
        counts = [[int(row[name]) for name in ("missed", "both")] for row in csv.DictReader(file)]
    assert [sum(pair) for pair in counts] == test.labels.sum(0).tolist()
    assert (report / "confusion.png").stat().st_size > 5000
    facts = json.loads(Path("models/mixtures/tinyvgg/fc7-svm.json").read_text())
    assert facts["measure"] == "mean average precision"
    outcome = run(
        "predict", "--classifier", "models/mixtures/tinyvgg/fc7-svm.skops", project / "photos/000.png", "--top", "3"
    )
    assert outcome.code == 0 and len(outcome.out.splitlines()) == 4
    outcome = run("report")
    assert outcome.code == 0 and "multi-label: mixtures" in outcome.out
    mistake(run("classify", "--dataset", "mixtures", "--layer", "fc7", "--model", "softmax"), "several labels", "svm")
    for command in ("finetune", "advise"):
        mistake(run(command, "--dataset", "mixtures"), "several labels")


def test_labels_that_are_empty_columns_are_refused(run: Run, project: Path) -> None:
    listed = write_mixtures(project / "photos", 40)
    text = listed.read_text().replace("blue", "").replace("002.png,", "002.png,blue;")
    listed.write_text(text)
    run("prepare", "--dataset", listed, "--test", "0")
    run("extract", "--dataset", "mixtures", "--layer", "fc7")
    mistake(run("classify", "--dataset", "mixtures", "--layer", "fc7"), "'blue' has 1 training image,")


def test_average_precision_by_hand() -> None:
    truth, margins = np.array([1, 0, 1, 0, 1]), np.array([5.0, 4, 3, 2, 1])
    continuous, eleven = scoring.average_precisions(truth, margins)
    assert continuous == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert eleven == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)
    assert np.isnan(scoring.average_precisions(np.zeros(3), np.arange(3))).all()


def test_the_mean_is_over_labels_that_occur() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    found = scoring.score_multi_label(labels, np.array([[1.0, 0], [2, 0], [3, 0]]), ["a", "b"])
    assert found.metrics["map"] == pytest.approx((1 + 2 / 3) / 2) and found.metrics["n"] == 3


# Groups


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


def test_a_copy_in_two_groups_ties_them_together() -> None:
    digests = [f"d{n if n != 2 else 1}" for n in range(40)]  # image 2, of group 1, is a copy of image 1, of group 0
    listed = [ListedImage(Path(f"{n}.png"), "a", metadata={"who": f"{n // 2}"}, digest=digests[n]) for n in range(40)]
    for seed in range(5):
        settled = assign_splits(listed, {"test": 0.5}, seed, "who")
        assert len({image.split for image in settled[:4]}) == 1
        assert all(settled[n].split == settled[n + 1].split for n in range(0, 40, 2))
