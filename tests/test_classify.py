"""classify: the setting comes from cross-validation on the training split alone; mistakes are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, write_codes
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from test_prepare import mistake

from pipeline import classifiers, saved, solvers
from pipeline.errors import PipelineError

Run = Callable[..., Outcome]
CODES = Path("features/digits/tinyvgg/fc7.h5")
MODEL = Path("models/digits/tinyvgg/fc7-svm.skops")
GRID = "{l2: {C: [1, 10]}, standard: {C: [0.01, 0.1]}}"


def write_training(path: Path = CODES, per_class: int = 20, **spec: object) -> np.ndarray:
    """Codes of 3 classes, three quarters of them for training."""
    labels = [c for c in range(3) for _ in range(per_class)]
    splits = ["test" if number % 4 == 0 else "train" for number in range(3 * per_class)]
    return write_codes(path, labels, splits, ["ant", "bee", "fly"], **spec)


@pytest.mark.parametrize("model", classifiers.CLASSIFIERS)
def test_every_model_learns_and_says_how(run: Run, model: str) -> None:
    write_training()
    outcome = run("classify", "--model", model)
    assert outcome.code == 0 and "cross-validated accuracy" in outcome.out and "45 images" in outcome.out
    loaded = saved.load(MODEL.with_name(f"fc7-{model}.skops"))
    assert loaded.classes == ("ant", "bee", "fly") and loaded.spec.layer == "fc7"
    facts = json.loads(MODEL.with_name(f"fc7-{model}.json").read_text())
    assert {"sha256", "spec", "classes", "chosen", "cv", "versions", "n_train", "seed"} <= facts.keys()
    assert facts["chosen"] in facts["cv"] and len(facts["chosen"]["folds"]) == 5


def test_the_search_equals_scikit_learns(run: Run) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = np.maximum(rng.normal(size=(90, 10)) + 0.7 * np.eye(3, 10)[y], 0).astype(np.float32)
    grid = {"l2": {"C": [0.1, 1.0]}, "standard": {"C": [0.01, 0.1]}}
    trained = classifiers.train(X, y, "svm", grid, folds=4, seed=3)
    theirs = GridSearchCV(
        Pipeline([("normalise", Normalizer()), ("classify", LinearSVC(max_iter=10_000, random_state=0))]),
        [
            {"normalise": [Normalizer()], "classify__C": [0.1, 1.0]},
            {"normalise": [StandardScaler()], "classify__C": [0.01, 0.1]},
        ],
        cv=StratifiedKFold(4, shuffle=True, random_state=3),
    ).fit(X, y)
    ours = [row["accuracy"] for row in trained.table]
    np.testing.assert_allclose(ours, theirs.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(trained.pipeline.predict(X), theirs.predict(X))


def test_test_images_have_no_say(run: Run) -> None:
    """The same training rows give the same classifier, whatever stands in the other splits."""
    labels, splits = [0, 1] * 20, ["train"] * 30 + ["test"] * 10
    found = []
    for others in ([0, 1] * 5, [1, 0] * 5):
        write_codes(CODES, labels, splits, ["a", "b"])
        write_codes(CODES, labels[:30] + others, splits, ["a", "b"])
        run("classify", "--grid", GRID)
        found.append(saved.load(MODEL).pipeline[-1].coef_)
    np.testing.assert_array_equal(*found)


def test_a_choice_at_the_edge_of_the_grid_is_said(run: Run) -> None:
    write_training()
    assert "edge of its grid" in run("classify", "--grid", "{l2: {C: [1.0e-9, 1.0e-8]}}").out


def test_fits_that_do_not_converge_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(classifiers.PATHS, "svm", 1)
    monkeypatch.setitem(classifiers.CLASSIFIERS, "svm", partial(solvers.LinearSVM, max_iter=1))
    write_training()
    outcome = run("classify", "--grid", "{l2: {C: [100]}}")
    assert "5 of 5 fits of the search stopped before they converged" in outcome.out
    assert "The classifier stopped before it converged" in outcome.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "svn"), ("Unknown model 'svn'", "svm")),
        (
            ("--layer", "fc8"),
            ("no codes at features/digits/tinyvgg/fc8.h5", "pipeline.extract --backbone tinyvgg --layer fc8"),
        ),
        (("--pool", "avg"), ("pool is 'none', not 'avg'",)),
        (("--folds", "16"), ("class 'ant' has 15 training images", "--folds 15")),
        (("--folds", "1"), ("--folds 1", "2 or more")),
        (("--grid", "{l2: "), ("not valid YAML",)),
        (("--grid", "{l3: {C: [1]}}"), ("Unknown normalisation 'l3'", "l2")),
        (("--grid", "{l2: {C: 1}}"), ("must read {parameter: [values]}",)),
        (("--grid", "{l2: {D: [1]}}"), ("Unknown parameter 'D' for svm", "C")),
        (("--grid", "{l2: {C: [-1]}}"), ("C=-1", "svm")),
    ],
)
def test_mistakes(run: Run, flags: tuple[str, str], words: tuple[str, ...]) -> None:
    write_training()
    mistake(run("classify", *flags), *words)
    assert not MODEL.exists()


def test_one_class_in_the_training_split(run: Run) -> None:
    write_codes(CODES, [0] * 10 + [1] * 5, ["train"] * 10 + ["test"] * 5, ["a", "b"])
    mistake(run("classify"), "one class only")


def test_no_training_split(run: Run) -> None:
    write_codes(CODES, [0, 1] * 5, ["test"] * 10, ["a", "b"])
    mistake(run("classify"), "no training images")


def test_a_truncated_features_file(run: Run) -> None:
    write_training()
    CODES.write_bytes(CODES.read_bytes()[:3000])
    mistake(run("classify"), "damaged", "pipeline.extract")


def test_a_mistake_leaves_the_earlier_classifier(run: Run) -> None:
    write_training()
    run("classify", "--grid", GRID)
    before = MODEL.read_bytes()
    write_training(backbone="vgg16")
    mistake(run("classify"), "backbone is 'vgg16', not 'tinyvgg'")
    assert MODEL.read_bytes() == before


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(PipelineError, match="must read"):
        classifiers.demand_grid("svm", {})
