"""suggest: images without a label, those first that teach most, in a file that `prepare` takes when it is filled in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, write_photos
from helpers import mistake, write_listed_codes
from PIL import Image

from pipeline import files
from pipeline.analysis import suggestion

Run = Callable[..., Outcome]
SHEET = Path("reports/digits/tinyvgg/fc7-suggestions.csv")
GRID = ("--grid", "{l2: {C: [10]}}", "--folds", 2)


def suggested() -> list[str]:
    """Return the names of the images suggested, in order."""
    return [row["path"] for row in files.read_csv(SHEET)]


@pytest.fixture
def between(run: Run) -> Run:
    """Codes of two classes, and of images without a label: a.png between the classes, others certainly of one."""
    values = np.eye(16)[[0, 1] * 6 + [0, 1, 0]] + 0.01 * np.random.default_rng(0).random((15, 16))
    values[13] = np.eye(16)[0] + np.eye(16)[1]
    paths = [f"{number}.png" for number in range(12)] + ["b.png", "a.png", "c.png"]
    write_listed_codes(paths, [0, 1] * 6 + [-1] * 3, ["train"] * 12 + ["unlabelled"] * 3, ["ant", "bee"], values)
    return run


@pytest.mark.parametrize(("model", "by"), [("svm", "margin"), ("softmax", "margin"), ("softmax", "entropy")])
def test_what_the_classifier_is_least_sure_of_comes_first(between: Run, model: str, by: str) -> None:
    assert between("classify", "--model", model, *GRID).code == 0
    outcome = between("suggest", "--model", model, "--by", by, "--count", 2)
    assert outcome.code == 0 and "2 of 3 images without a label" in outcome.out, outcome
    assert suggested()[0] == "a.png" and len(suggested()) == 2
    with Image.open(SHEET.with_suffix(".png")) as sheet:
        assert sheet.width > 100


def test_without_a_classifier_or_probabilities(between: Run) -> None:
    mistake(between("suggest", "--by", "margin"), "no classifier", "pipeline.classify")
    assert between("classify", *GRID).code == 0
    mistake(between("suggest", "--by", "entropy"), "needs probabilities", "--by margin")


def test_images_of_clusters_without_labels_come_first() -> None:
    """Of three clusters the first has labels; the largest of the others is next, then the smaller one."""
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1, 2], [10, 20, 12])
    vectors = (10 * np.eye(3)[clusters] + rng.normal(size=(42, 3))).astype(np.float32)
    labelled = np.arange(42) < 1
    chosen = suggestion.typical_images(vectors, labelled, 2)
    assert clusters[chosen].tolist() == [1, 2]
    centre = np.linalg.norm(vectors[clusters == 1] - vectors[clusters == 1].mean(0), axis=1)
    assert np.flatnonzero(clusters == 1)[np.argsort(centre)[:10]].tolist().count(chosen[0]) == 1
    everything = suggestion.typical_images(vectors, labelled, 41)
    assert sorted(everything.tolist()) == list(range(1, 42))
    assert len(suggestion.typical_images(np.zeros((5, 1), np.float32), np.zeros(5, bool), 3)) == 3


def test_a_pile_without_labels_gets_its_first_ones(run: Run, project: Path) -> None:
    pile = write_photos(project / "pile", {"red": 6, "green": 6, "blue": 6})
    prepared = ("prepare", "--dataset", "", "--unlabelled", pile, "--out", "data/digits")
    assert run(*prepared).code == 0 and run("extract", "--layer", "fc7").code == 0
    outcome = run("suggest", "--count", 3)
    assert outcome.code == 0 and "--corrections" in outcome.out, outcome
    assert {Path(path).parent.name for path in suggested()} == {"red", "green", "blue"}
    rows = [(path, "relabel", Path(path).parent.name) for path in suggested()]
    files.write_csv(SHEET, ("path", "action", "to"), rows)
    mistake(run("suggest"), "has been filled in")
    assert "3 classes (3 train, 15 unlabelled)" in run(*prepared, "--corrections", SHEET).out


def test_where_all_images_have_labels(run: Run) -> None:
    write_listed_codes(["a.png", "b.png"], [0, 1], ["train"] * 2, ["ant", "bee"])
    mistake(run("suggest"), "All images have labels", "--unlabelled")
