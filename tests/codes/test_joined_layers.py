"""Codes of several layers as one set of features: each of length 1, the same rows, from classify to predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Listing, Outcome, put_codes, write_codes
from helpers import mistake

from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.networks.frozen import rebuild_network

Run = Callable[..., Outcome]
FEATURES = Path("features/photos/tinyvgg")
ADDRESS = ("--dataset", "photos", "--layer", "pool3+fc7")


def test_each_layer_has_length_one(project: Path) -> None:
    classes, labels, splits = ["a", "b"], [0, 1, 0, 1], ["train", "test"] * 2
    fc6 = write_codes(project / "fc6.h5", labels, splits, classes, 8, layer="fc6", node="classifier.1")
    fc7 = write_codes(project / "fc7.h5", labels, splits, classes, 5)
    found = reader.read_layers(project / "fc6+fc7.h5", {"layer": "fc6+fc7", "backbone": "tinyvgg"})
    assert not fc7[0].any(), "a code of zeros stays one"
    expected = [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-9) for block in (fc6, fc7)]
    np.testing.assert_allclose(found.values, np.hstack(expected), rtol=1e-6)
    assert (found.spec.layer, found.spec.node, found.spec.pool) == ("fc6+fc7", "classifier.1+classifier.4", "none+none")
    assert found.values.dtype == np.float32
    assert reader.read_layers(project / "fc6+fc7.h5", {}, "test").values.shape == (2, 13)
    np.testing.assert_array_equal(reader.read_layers(project / "fc7.h5", {}).values, fc7)


def test_views_are_joined_one_by_one(project: Path) -> None:
    rng = np.random.default_rng(0)
    listing = Listing(["x.png", "y.png"], [0, 1], ["train"] * 2, ["0" * 64, "1" * 64], ["a", "b"])
    parts = {"fc6": rng.random((2, 6)).astype(np.float32), "fc7": rng.random((2, 4)).astype(np.float32)}
    for layer, values in parts.items():
        put_codes(project / f"{layer}.h5", values, listing, layer=layer, views="flips")
    found = reader.read_layers(project / "fc6+fc7.h5", {})
    X, _, images = reader.flatten_views(found)
    assert X.shape == (4, 5) and images is not None and images.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(np.linalg.norm(X[:, :3], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(X[1, 3:], parts["fc7"][0, 2:] / np.linalg.norm(parts["fc7"][0, 2:]), rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "spec", "words"),
    [([0, 1, 1, 1], {}, "other images, or other labels"), ([0, 1, 0, 1], {"crop": 32}, "transform.crop is 32, not 64")],
)
def test_layers_that_do_not_belong_together_are_refused(
    run: Run, labels: list[int], spec: dict[str, object], words: str
) -> None:
    folder = Path("features/digits/tinyvgg")
    write_codes(folder / "fc6.h5", [0, 1, 0, 1], ["train"] * 4, ["a", "b"], layer="fc6")
    write_codes(folder / "fc7.h5", labels, ["train"] * 4, ["a", "b"], **spec)
    mistake(run("classify", "--layer", "fc6+fc7", "--folds", 2), words)
    mistake(run("classify", "--layer", "fc6+fc8", "--folds", 2), "no codes at features/digits/tinyvgg/fc8.h5")
    mistake(run("classify", "--layer", "fc6+fc7", "--memory", "1GB"), "Leave --memory out")


def test_from_classify_to_predict_and_report(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos)
    assert run("extract", "--dataset", "photos", "--layer", "pool3", "fc7", "--pool", "avg").code == 0
    assert run("classify", *ADDRESS, "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
    assert run("evaluate", *ADDRESS).code == 0
    classifier = persistence.load(Path("models/photos/tinyvgg/pool3+fc7-svm.skops"))
    assert classifier.spec.layer == "pool3+fc7" and list(rebuild_network(classifier.spec).nodes) == ["pool3", "fc7"]
    test = reader.read_layers(FEATURES / "pool3+fc7.h5", {}, "test")
    best = [classifier.classes[row] for row in persistence.margins(classifier, test.values).argmax(1)]
    outcome = run("predict", *ADDRESS, *(Path("data/photos", path) for path in test.paths))
    assert outcome.code == 0
    assert [line.split(",")[2] for line in outcome.out.splitlines()[1:]] == best
    assert run("classify", "--dataset", "photos", "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
    assert run("evaluate", "--dataset", "photos").code == 0
    report = run("report")
    assert report.code == 0 and "pool3+fc7" in report.out
