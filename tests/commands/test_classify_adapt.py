"""classify: images may have weights, and other datasets may help, in the ways in which they can."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Listing, Outcome, put_codes
from helpers import CODES, MODEL, PAGE, mistake

from pipeline import files
from pipeline.analysis.gain import Gain
from pipeline.classifiers import persistence
from pipeline.reporting.rendering import points

Run = Callable[..., Outcome]

GRID = ("--grid", "{l2: {C: [1, 10]}}")
SOURCE = Path("features/source/tinyvgg/fc7.h5")
NAMES = ("ant", "bee", "fly")
HEADER = ("path", "label", "split", "digest", "weight")


def draw(n: int, shares: tuple[float, ...], seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping codes (n, 8) of three classes in these shares, and labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), (n * np.array(shares)).round().astype(int))
    centres = np.pad(1.2 * np.eye(3), ((0, 0), (0, 5)))
    return np.maximum(centres[labels] + 0.6 * rng.normal(size=(len(labels), 8)) + shift, 0), labels


def put(path: Path, values: np.ndarray, labels: np.ndarray, splits: list[str], first: int = 0) -> None:
    """Write codes of images whose digests are numbers from `first` on."""
    names, digests = zip(*((f"{row}.png", f"{first + row:064x}") for row in range(len(labels))), strict=True)
    put_codes(path, values, Listing(names, labels.tolist(), splits, digests, NAMES))


def put_target(n: int = 60, shares: tuple[float, ...] = (0.8, 0.1, 0.1), **more: float) -> np.ndarray:
    """Write a target, two thirds of it for training; return its labels."""
    values, labels = draw(n, shares, 1, **more)
    put(CODES, values, labels, ["test" if row % 3 == 2 else "train" for row in range(len(labels))])
    return labels


def put_source(n: int = 300, shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3), first: int = 1000) -> None:
    """Write a source of many training images."""
    values, labels = draw(n, shares, 2)
    put(SOURCE, values, labels, ["train"] * len(labels), first)


def weigh(weights: list[str]) -> None:
    """Write the manifest of a target of 60 images with these weights."""
    labels = put_target(60, (1 / 3, 1 / 3, 1 / 3))
    splits = ["test" if row % 3 == 2 else "train" for row in range(60)]
    rows = [(f"{row}.png", NAMES[labels[row]], splits[row], f"{row:064x}", weights[row]) for row in range(60)]
    files.write_csv(Path("data/digits/manifest.csv"), HEADER, rows)


def test_weights_of_a_column_count_and_those_of_test_images_do_not(run: Run) -> None:
    weights = ["" if row % 3 == 2 else "1" for row in range(60)]
    weigh(weights)
    assert run("classify", *GRID, "--folds", 3).code == 0
    alike = persistence.load(MODEL).pipeline[-1].coef_
    assert run("classify", *GRID, "--folds", 3, "--weight-by", "weight").code == 0
    np.testing.assert_array_equal(persistence.load(MODEL).pipeline[-1].coef_, alike)
    weigh(["0" if row in (0, 1) else weight for row, weight in enumerate(weights)])
    outcome = run("classify", *GRID, "--folds", 3, "--weight-by", "weight", "--calibrate", "--nested")
    facts = json.loads(MODEL.with_suffix(".json").read_text())
    assert outcome.code == 0 and "2 training images left out, with the weight 0" in outcome.err, outcome
    assert facts["n_units"] == 38 and facts["weight_by"] == "weight" and facts["nested"]["n"] == 38
    assert run("evaluate").code == 0


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("-1", "0.png: '-1' is no weight"),
        ("1e308", "'1e308' is no weight. Write 0, or a number from 0.000001 to 1,000,000"),
        ("1e-300", "is no weight"),
        ("", "an empty cell is no weight"),
        ("much", "'much' is no weight"),
        ("nan", "'nan' is no weight"),
        ("inf", "'inf' is no weight"),
    ],
)
def test_what_is_no_weight_is_refused(run: Run, cell: str, what: str) -> None:
    weigh([cell, *["1"] * 59])
    mistake(run("classify", "--weight-by", "weight"), what, "prepare the dataset again")


def test_weights_that_leave_nothing_are_refused(run: Run) -> None:
    weigh(["0"] * 60)
    mistake(run("classify", "--weight-by", "weight"), "All training images", "weight 0")
    mistake(run("classify", "--weight-by", "height"), "Unknown column 'height'", "--weight-by", "weight")
    mistake(run("classify", "--model", "knn", "--weight-by", "weight"), "knn does not")


@pytest.mark.parametrize(
    ("method", "model"), [("density-ratio", "svm"), ("easyadapt", "svm"), ("easyadapt", "softmax")]
)
def test_a_source_is_learned_from_and_never_held_out(run: Run, method: str, model: str) -> None:
    put_target(30, (1 / 3, 1 / 3, 1 / 3), shift=0.1)
    put_source()
    address, calibrate = ("--model", model), ("--calibrate",) if model == "svm" else ()
    outcome = run("classify", *address, *GRID, "--folds", 3, "--source", "source", "--adapt", method, *calibrate)
    assert outcome.code == 0 and f"300 images of source, by {method}" in outcome.out, outcome
    path = MODEL.with_name(f"fc7-{model}.skops")
    facts, saved = json.loads(path.with_suffix(".json").read_text()), persistence.load(path)
    assert facts["n_train"] == 20 == facts["adapted"]["gain"]["n_images"], "of the target alone"
    assert (facts["adapted"]["effective"] is None) == (method == "easyadapt")
    assert saved.pipeline[-1].coef_.shape == (3, 8)
    assert run("evaluate", *address).code == 0


def test_the_page_shows_what_a_source_brought_or_corrected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "NAMES", ("<b>ant", "bee", "fly"))
    put_target(60)
    put_source()
    source, corrected = ("--source", "source", "--adapt"), ("--model", "softmax")
    assert run("classify", "--dataset", "source", *corrected, *GRID).code == 0
    assert run("classify", *GRID, "--folds", 3, *source, "density-ratio").code == 0
    assert run("classify", *corrected, *source, "em").code == 0
    assert run("evaluate").code == run("evaluate", *corrected).code == 0
    assert run("report", "--dataset", "digits").code == 0
    adapted = json.loads(MODEL.with_suffix(".json").read_text())["adapted"]
    gain, html = Gain.of_dict(adapted["gain"]), PAGE.read_text()
    cells = ("<bdi>source</bdi>", "density-ratio", "300", f"{adapted['effective']:,.1f}", f"{100 * gain.after:.1f}%")
    assert re.search(".*".join(map(re.escape, cells)), html), cells
    assert f"{points(gain.low)} to {points(gain.high)})" in html
    shares = json.loads(MODEL.with_name("fc7-softmax.json").read_text())["label_shift"]["shares"]["<b>ant"]
    assert "<b>ant" not in html and "by em; their labels were not looked at" in html
    assert re.search(rf"&lt;b&gt;ant</bdi></th>.*{shares[0]:.4f}</td>.*{shares[1]:.4f}</td>", html), shares


def test_copies_and_other_classes_stay_out_of_the_source(run: Run) -> None:
    labels = put_target(60, (0.5, 0.5, 0.0))
    assert not (labels == 2).any()
    put_source(first=0)
    outcome = run("classify", *GRID, "--folds", 3, "--source", "source", "--adapt", "easyadapt")
    assert "100 images of the source left out: of other classes" in outcome.err
    assert "60 images of the source left out: that the target has as well" in outcome.err
    assert outcome.code == 0 and "140 images of source" in outcome.out


def test_where_a_source_cannot_help(run: Run) -> None:
    put_target(30, (1 / 3, 1 / 3, 1 / 3))
    put_source(300, (0.5, 0.5, 0.0))
    flags = ("classify", *GRID, "--folds", 3, "--source", "source")
    mistake(run(*flags, "--adapt", "density-ratio"), "no training images of the class 'fly'")
    mistake(run(*flags), "give both, or neither")
    mistake(run("classify", "--adapt", "easyadapt"), "give both, or neither")
    mistake(run("classify", "--adapt", "em"), "name --source")
    mistake(run(*flags, "--adapt", "easyadapt", "--shots", 2), "--adapt takes no --shots")
    mistake(run("classify", "--source", "source", "--adapt", "easyadapt", "--model", "knn"), "linear models, not knn")
    mistake(run("classify", "--source", "source", "--adapt", "density-ratio", "--model", "knn"), "knows no weights")
    mistake(run("classify", "--source", "none", "--adapt", "easyadapt"), "features/none")
    for method in ("density-ratio", "em"):
        mistake(run("classify", *GRID, "--folds", 3, "--source", "digits", "--adapt", method), "is the dataset itself")
    shutil.copytree(CODES.parent, "features/copies/tinyvgg")
    mistake(run(*flags[:-1], "copies", "--adapt", "density-ratio"), "0 training images of other bytes")
    values, labels = draw(300, (1 / 3, 1 / 3, 1 / 3), 2)
    put(SOURCE, np.roll(values, 4, 1) + 9 * np.eye(8)[7], labels, ["train"] * 300, 1000)
    mistake(run(*flags, "--adapt", "density-ratio"), "nothing in common")


@pytest.mark.parametrize(("method", "model"), [("em", "softmax"), ("em", "svm"), ("bbse", "softmax")])
def test_a_classifier_is_corrected_for_other_shares_without_a_label(run: Run, method: str, model: str) -> None:
    put_target(900)
    put_source(1200)
    address = ("--model", model)
    assert run("classify", "--dataset", "source", *address, *GRID).code == 0
    before = Path("models/source/tinyvgg", f"fc7-{model}.skops")
    assert run("evaluate", *address, "--classifier", before, "--out", "before").code == 0
    outcome = run("classify", *address, "--source", "source", "--adapt", method)
    assert outcome.code == 0 and "labels were not looked at" in outcome.out, outcome
    facts = json.loads(MODEL.with_name(f"fc7-{model}.json").read_text())["label_shift"]
    assert facts["images"] == 600 and abs(facts["shares"]["ant"][1] - 0.8) < 0.05, facts
    outcome = run("evaluate", *address, "--out", "after")
    assert outcome.code == 0 and "trained on the dataset 'source'" in outcome.out, outcome
    accuracies = [json.loads(Path(name, "metrics.json").read_text())["top1"] for name in ("before", "after")]
    assert accuracies[1] > accuracies[0] + 0.02, accuracies


def test_shares_are_told_of_a_target_without_labels_or_with_some_of_the_classes(run: Run) -> None:
    put_source(600)
    assert run("classify", "--dataset", "source", *GRID).code == 0
    values, labels = draw(300, (0.5, 0.5, 0.0), 1)
    names, digests = [f"{row}.png" for row in range(300)], [f"{row:064x}" for row in range(300)]
    put_codes(CODES, values, Listing(names, [-1] * 300, ["unlabelled"] * 300, digests, ()))
    assert run("classify", "--source", "source", "--adapt", "bbse").code == 0
    assert persistence.load(MODEL).classes == NAMES
    put_codes(CODES, values, Listing(names, labels, ["train", "test", "train"] * 100, digests, NAMES[:2]))
    assert run("classify", "--source", "source", "--adapt", "em").code == 0
    saved = persistence.load(MODEL)
    assert saved.classes == NAMES[:2] and saved.pipeline[-1].coef_.shape == (1, 8)
    assert run("evaluate").code == 0
    assert json.loads(Path("reports/digits/tinyvgg/fc7-svm/metrics.json").read_text())["top1"] > 0.85


def test_where_shares_cannot_be_told(run: Run) -> None:
    put_target(60, (1 / 3, 1 / 3, 1 / 3))
    put_source(300, (0.5, 0.5, 0.0))
    assert run("classify", "--dataset", "source", *GRID).code == 0
    mistake(run("classify", "--source", "source", "--adapt", "em"), "does not know the class 'fly'")
    mistake(run("classify", "--source", "none", "--adapt", "em"), "no classifier at models/none", "--dataset none")
    put_source(300)
    assert run("classify", "--dataset", "source", *GRID).code == 0
    assert run("classify", "--source", "source", "--adapt", "em").code == 0
    mistake(run("classify", "--dataset", "source", "--source", "digits", "--adapt", "em"), "takes an svm or softmax")
