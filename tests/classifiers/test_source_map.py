"""source-map: classes from the network's own classes, as LEEP and NCE count them, or as a person says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import mistake
from scipy.special import softmax

from pipeline.analysis.transferability import leep
from pipeline.classifiers import persistence, scoring, search
from pipeline.classifiers.source_map import SourceMap
from pipeline.classifiers.training_data import TrainingData
from pipeline.data.class_maps import read_pairs
from pipeline.errors import PipelineError

LOGITS = ("--dataset", "photos", "--layer", "logits", "--model", "source-map")


def scores(n: int = 60, n_sources: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of a network's own classes, and labels of three classes that they tell something of."""
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    return (rng.normal(size=(n, n_sources)) + 2 * np.eye(3, n_sources)[y]).astype(np.float32), y


def test_probabilities_are_those_of_leep() -> None:
    X, y = scores()
    pipeline, converged = search.refit(TrainingData.of_independent(X, y), "source-map", "probabilities", {})
    margins = scoring.margins_of(pipeline, X, len(X))
    np.testing.assert_allclose(margins.sum(1), 1, rtol=1e-5)
    assert converged and np.log(margins[np.arange(len(y)), y]).mean() == pytest.approx(leep(softmax(X, 1), y), rel=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_commonest_class_of_the_predicted_source_class_is_named(n_classes: int) -> None:
    sources = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    y = np.array([1, 1, 0, 0, 0, 1, 1, 1]) if n_classes == 2 else np.array([1, 1, 0, 2, 2, 1, 0, 0])
    X = 10 * np.eye(4, dtype=np.float32)[sources]
    pipeline, _ = search.refit(TrainingData.of_independent(X, y), "source-map", "one-hot", {})
    unseen = 10 * np.eye(4, dtype=np.float32)
    overall = 1 if n_classes == 2 else 0
    assert pipeline.predict(unseen).tolist() == ([1, 0, 1, overall] if n_classes == 2 else [1, 2, 0, overall])


def test_weights_count_like_rows() -> None:
    X, y = np.eye(2, dtype=np.float32)[[0, 0, 1]], np.array([0, 1, 1])
    weighted = SourceMap().fit(X, y, sample_weight=[1, 3, 1])
    repeated = SourceMap().fit(X[[0, 1, 1, 1, 2]], y[[0, 1, 1, 1, 2]])
    np.testing.assert_allclose(weighted.coef_, repeated.coef_)


def test_a_given_map_needs_no_images_to_count() -> None:
    X, y = scores()
    given = SourceMap(given=((3, 0), (4, 1), (5, 1), (6, 2))).fit(X, y)
    assert given.predict(np.eye(7, dtype=np.float32)[3:]).tolist() == [0, 1, 1, 2] and given.coef_.sum() == 4
    with pytest.raises(ValueError, match="pairs of one of 7 source classes"):
        SourceMap(given=((7, 0),)).fit(X, y)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source,class\nfox,cat\n", "Unknown source class 'fox' for list.csv, line 2"),
        ("source,class\ntabby,cow\n", "Unknown class 'cow' for list.csv, line 2"),
        ("source,class\ntabby,cat\ntabby,dog\n", "line 3: the source class 'tabby' stands for another class"),
        ("source,label\ntabby,cat\n", "Unknown column 'class'"),
        ("source,class\n", "no line but the first"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_no_map(project: Path, text: str, words: str) -> None:
    Path("list.csv").write_text(text)
    with pytest.raises(PipelineError, match=words):
        read_pairs(Path("list.csv"), ["tabby", "beagle"], ["cat", "dog"])


def test_a_network_names_classes_by_its_own(run: Callable[..., Outcome], photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    assert run("extract", "--dataset", "photos", "--layer", "logits").code == 0
    assert "27 images" in run("classify", *LOGITS).out and "top-1" in run("evaluate", *LOGITS).out
    Path("map.csv").write_bytes("\ufeffsource;class\ngoldfish;red\nbullfrog;green\n".encode())
    outcome = run("classify", *LOGITS, "--source-map", "map.csv")
    assert outcome.code == 0 and "No source class stands for 'blue'" in outcome.err, outcome
    pipeline = persistence.load(Path("models/photos/tinyvgg/logits-source-map.skops")).pipeline
    assert pipeline[-1].coef_.shape == (3, 200) and pipeline[-1].coef_.sum() == 2
    named = run("predict", *sorted(photos.glob("*/00.png")), *LOGITS).out
    assert {line.split(",")[2] for line in named.splitlines()[1:]} <= {"red", "green"}
    page = run("report").out
    assert "logits  source-map" in page and "no codes" not in page, page
    mistake(run("classify", *LOGITS, "--source-map", "none.csv"), "no CSV file at none.csv")
