"""What training brought: the sentence follows from the paired difference, and says who chose the epoch."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.analysis.gain import Gain, judge_training


def gain(only_before: int, only_after: int, both: int = 60) -> Gain:
    """Return the gain where some images are correct before training only, after it only, or both times."""
    before = np.array([True] * only_before + [False] * only_after + [True] * both)
    after = np.array([False] * only_before + [True] * only_after + [True] * both)
    return Gain.of(before, after, np.arange(len(before)))


@pytest.mark.parametrize(
    ("only_before", "only_after", "epoch", "words"),
    [
        (2, 20, 3, "Training helped: accuracy 0.9756 after and 0.7561 before, a difference of +0.2195 (95% +0.1"),
        (5, 9, 3, "Whether training helped is open: accuracy"),
        (9, 5, 3, "Training did not help: accuracy 0.8784 after and 0.9324 before, a difference of -0.0541 (95%"),
        (4, 4, 3, "Training did not help: accuracy"),
        (0, 0, 0, "Training did not help: no epoch did better than the start"),
    ],
)
def test_the_sentence_follows_from_the_paired_difference(
    only_before: int, only_after: int, epoch: int, words: str
) -> None:
    judgement = judge_training(gain(only_before, only_after), epoch, from_codes=True)
    assert judgement.startswith(words)
    assert ("paired, n = " in judgement) == (epoch > 0)
    assert ("Stay with the frozen codes" in judgement) != judgement.startswith("Training helped")


def test_a_random_head_is_no_frozen_classifier_to_compare_with() -> None:
    assert judge_training(gain(2, 20), 3, from_codes=False) == ""
    assert "no epoch did better" in judge_training(gain(0, 0), 0, from_codes=False)


def test_copies_count_once() -> None:
    before, after, units = np.array([False] * 8), np.array([True] * 8), np.repeat([0, 1], 4)
    assert Gain.of(before, after, units).sign == "not told apart" and Gain.of(before, after, units).n_units == 2
    assert Gain.of(before, after, np.arange(8)).sign == "higher"
