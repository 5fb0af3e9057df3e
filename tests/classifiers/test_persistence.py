"""A saved classifier gives the same outputs, and files that were changed or hold foreign types are refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
from conftest import make_spec
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer
from sklearn.svm import LinearSVC

from pipeline.classifiers import persistence, solvers
from pipeline.errors import PipelineError

CLASSES = ("ant", "bee", "fly", "wasp")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved classifier of four classes, one of which had no training images."""
    X, y = np.random.default_rng(0).random((60, 16), np.float32), np.arange(60) % 3
    pipeline = Pipeline([("normalise", Normalizer()), ("classify", solvers.LinearSVM())]).fit(X, y)
    path = tmp_path / "fc7-svm.skops"
    classifier = persistence.SavedClassifier(pipeline, make_spec(), CLASSES)
    persistence.save(path, classifier, {"dataset": "insects", "model": "svm"})
    return path


def refused(path: Path, words: str) -> None:
    """See that loading the classifier raises an error with these words."""
    with pytest.raises(PipelineError, match=words):
        persistence.load(path)


def test_a_saved_classifier_gives_the_same_outputs(saved: Path) -> None:
    classifier, metadata = persistence.load(saved), persistence.read_metadata(saved)
    assert (classifier.spec, classifier.classes) == (metadata.spec, metadata.classes) == (make_spec(), CLASSES)
    assert metadata.facts == {"dataset": "insects", "model": "svm"}
    assert set(metadata.versions) == {"python", *persistence.PACKAGES}
    assert metadata.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    values = np.random.default_rng(1).random((5, 16), np.float32)
    margins = persistence.margins(classifier, values)
    np.testing.assert_array_equal(margins[:, :3], classifier.pipeline.decision_function(values))
    assert margins.shape == (5, 4) and (margins[:, 3] == -np.inf).all()
    assert persistence.probabilities(classifier, values) is None
    classifier.pipeline[-1].calibrate(classifier.pipeline.decision_function(values), np.arange(5) % 3)
    probabilities = persistence.probabilities(classifier, values)
    assert probabilities is not None and (probabilities[:, 3] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)  # they are float32


def test_a_tampered_classifier_is_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    for place in (100, len(data) // 2, len(data) - 30):
        changed = bytearray(data)
        changed[place] ^= 1
        saved.write_bytes(changed)
        refused(saved, "was changed")


def test_a_classifier_without_its_metadata_is_refused(saved: Path) -> None:
    saved.with_suffix(".json").unlink()
    refused(saved, "no metadata file")


@pytest.mark.parametrize(
    "text", ["", "[1]", json.dumps({"format": persistence.FORMAT, "sha256": "", "spec": {}, "classes": []})]
)
def test_files_that_are_no_metadata_are_refused(saved: Path, text: str) -> None:
    saved.with_suffix(".json").write_text(text)
    refused(saved, "no metadata of a classifier")


@pytest.mark.parametrize("changes", [{}, {"format": "cnn-codes-classifier 1"}])
def test_a_classifier_of_another_format_is_refused(saved: Path, changes: dict[str, str]) -> None:
    metadata = json.loads(saved.with_suffix(".json").read_text())
    del metadata["format"]
    saved.with_suffix(".json").write_text(json.dumps(metadata | changes))
    refused(saved, "was saved by an earlier release. Train it again. Run:\n  python -m pipeline.classify")


class Evil(LinearSVC):
    """Foreign code: to be loaded, this class would have to be imported and called."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)

    def __setstate__(self, state: object) -> None:
        os.mkdir("owned")  # noqa: PTH102


def replace_classifier(path: Path, data: bytes) -> None:
    """Put a file in the classifier's place, with metadata that fit it, as an attacker would."""
    path.write_bytes(data)
    metadata = persistence.metadata_path(path)
    content = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(content | {"sha256": hashlib.sha256(data).hexdigest()}))


def test_a_foreign_classifier_is_refused_and_nothing_of_it_runs(saved: Path) -> None:
    evil = Pipeline([("normalise", FunctionTransformer(os.mkdir)), ("classify", Evil())])
    replace_classifier(saved, skops.io.dumps(evil))
    refused(saved, "not trusted")
    replace_classifier(saved, pickle.dumps(Evil()))
    refused(saved, "damaged, or no classifier of ours")
    assert not Path("owned").exists()


def test_files_that_are_no_classifier_are_refused(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    replace_classifier(saved, (tmp_path / "other.zip").read_bytes())
    refused(saved, "damaged, or no classifier of ours")
    replace_classifier(saved, skops.io.dumps(LinearSVC()))
    refused(saved, "holds a LinearSVC")
    assert all(name.startswith("pipeline.classifiers.") for name in persistence.TRUSTED)
