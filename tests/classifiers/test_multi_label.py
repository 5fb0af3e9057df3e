"""Multi-label images, from the CSV to the mean average precision and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import mistake, read_page_data
from PIL import Image
from sklearn.metrics import average_precision_score

from pipeline.classifiers import persistence
from pipeline.codes import reader

Run = Callable[..., Outcome]
CHANNELS = ("red", "green", "blue")


def write_mixtures(folder: Path, count: int, columns: str = "path,labels") -> Path:
    """Write images whose labels are the channels that are bright, none to three of them, and the CSV of them."""
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


def test_multi_label_images_go_through_all_commands(run: Run, project: Path) -> None:
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
    assert outcome.code == 0 and f"{metrics['map_low']:.4f}–{metrics['map_high']:.4f}" in outcome.out
    data = read_page_data()["multi_label"]["mixtures"]
    assert data["experiments"][0]["map"] == metrics["map"]
    assert [row[0] for row in data["experiments"][0]["per_class"]] == pytest.approx(precisions)
    mistakes = data["lists"]["multi_label_mistakes"]
    assert mistakes["found"] == ((margins > 0) != test.labels).any(1).sum()
    assert sum(len(card["missed"]) for card in mistakes["cards"]) == ((margins <= 0) & (test.labels == 1)).sum()
    mistake(run("classify", "--dataset", "mixtures", "--layer", "fc7", "--model", "softmax"), "several labels", "svm")
    mistake(run("finetune", "--dataset", "mixtures"), "several labels")
    assert "No advice: The images have several labels" in run("advise", "--dataset", "mixtures").out


def test_labels_that_are_empty_columns_are_refused(run: Run, project: Path) -> None:
    listed = write_mixtures(project / "photos", 40)
    text = listed.read_text().replace("blue", "").replace("002.png,", "002.png,blue;")
    listed.write_text(text)
    run("prepare", "--dataset", listed, "--test", "0")
    run("extract", "--dataset", "mixtures", "--layer", "fc7")
    mistake(run("classify", "--dataset", "mixtures", "--layer", "fc7"), "'blue' has 1 training image,")
