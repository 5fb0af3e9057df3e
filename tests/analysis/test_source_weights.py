"""Weights of source classes: of made-up probabilities, and files of weights as people write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import errors
from pipeline.analysis import source_weights
from pipeline.analysis.source_weights import SourceWeights

SCORES = np.log([[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]])


def test_the_weight_is_the_share_in_the_target_over_the_share_in_the_source(tmp_path: Path) -> None:
    p_target = source_weights.mean_probabilities(SCORES, 1)
    np.testing.assert_allclose(p_target, [0.6, 0.225, 0.175])
    weights = SourceWeights(("a", "b", "c"), np.array([60, 30, 10]), p_target)
    np.testing.assert_allclose(weights.values, [1, 0.75, 1.75])
    assert weights.effective_classes == pytest.approx(3.5**2 / (1 + 0.75**2 + 1.75**2))
    source_weights.write(tmp_path / "weights.csv", weights)
    lines = (tmp_path / "weights.csv").read_text().splitlines()
    assert lines[0] == "class,n,p_source,p_target,weight" and [line[:4] for line in lines[1:]] == [
        "c,10",
        "a,60",
        "b,30",
    ]
    np.testing.assert_allclose(source_weights.read_for(tmp_path / "weights.csv", ("b", "c")), [0.75, 1.75])


def test_temperature_makes_weights_more_alike_and_classes_without_images_weigh_nothing() -> None:
    sharp, soft = (source_weights.mean_probabilities(SCORES, temperature) for temperature in (1, 4))
    assert sharp.max() > soft.max() > 1 / 3 and soft.sum() == pytest.approx(1)
    equal = SourceWeights(("a", "b", "c"), None, np.full(3, 1 / 3))
    np.testing.assert_allclose(equal.values, 1)
    assert equal.effective_classes == pytest.approx(3)
    np.testing.assert_allclose(SourceWeights(("a", "b"), np.array([4, 0]), np.array([0.3, 0.7])).values, [0.3, 0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,weight\na,1\nb,1\n", "needs the columns class and weight"),
        ("class,weight\na,1\n", "no weight for 1 class of the dataset, the first is 'b'"),
        ("class,weight\na,1\nb,2\na,3\n", "line 4: 'a' has a weight already"),
        ("class,weight\na,1\nb,-1\n", "line 3: '-1' is no weight"),
        ("class,weight\na,1\nb,nan\n", "'nan' is no weight"),
        ("class,weight\na,1\nb,\n", "'' is no weight"),
        ("class,weight\na,0\nb,0\nc,1\n", "all classes of the dataset the weight 0"),
    ],
)
def test_unusable_files_of_weights_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "weights.csv"
    with pytest.raises(errors.PipelineError, match="There is no file"):
        source_weights.read_for(path, ("a", "b"))
    path.write_text(text)
    with pytest.raises(errors.PipelineError, match=words):
        source_weights.read_for(path, ("a", "b"))
