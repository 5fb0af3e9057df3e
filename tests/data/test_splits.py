"""Folds: every class in each, groups whole, and a sentence where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import errors
from pipeline.data.splits import make_folds, number_groups, rarest_label, validate_folds, validate_trainable


def test_groups_stay_whole_whether_they_have_one_label_or_several() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(rng.permutation(60), rng.integers(1, 6, 60))
    for y in (groups % 3, rng.integers(0, 3, len(groups))):
        splits = make_folds(y, 4, 0, groups)
        assert sorted(np.concatenate([held for _, held in splits])) == list(range(len(y)))
        for fitted, held in splits:
            assert not set(groups[fitted]) & set(groups[held])
            assert set(y[fitted]) == set(y[held]) == {0, 1, 2}


def test_groups_may_be_anything() -> None:
    assert number_groups(["b", None, ("a", 1), "b", None]).tolist() == [0, 1, 2, 0, 1]


def test_an_image_of_several_labels_counts_by_its_rarest() -> None:
    y = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert rarest_label(y).tolist() == [1, 0, 2, 2, 1, 3]
    many = np.random.default_rng(0).random((400, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]
    held = [many[held].sum(0) for _, held in make_folds(many.astype(np.uint8), 4, 0)]
    assert np.ptp([counts[4] for counts in held]) <= 1


@pytest.mark.parametrize(
    ("y", "groups", "words"),
    [
        ([0] * 6 + [1] * 6, [0] * 6 + [1, 2, 3, 4, 5, 6], "'a' lie in 1 group, .*take the class out"),
        ([0] * 6 + [1] * 6, [0, 0, 0, 7, 7, 7, 1, 2, 3, 4, 5, 6], "'a' lie in 2 groups, .*--folds 2"),
        ([0] * 6 + [1] * 2, None, "'b' has 2 training images, fewer than the 3 folds"),
        ([1] * 6, None, "one class only, 'b'"),
        ([], None, "no training images"),
        ([[1, 0], [0, 0]] * 6, None, "No training image has the label 'b'"),
        ([[1, 1], [1, 0]] * 6, None, "Every training image has the label 'a'"),
        ([[1, 1], [0, 0]] + [[1, 0]] * 6, None, "'b' has 1 training images"),
    ],
)
def test_labels_that_cannot_be_cross_validated_are_refused(y: list, groups: list | None, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        validate_trainable(np.array(y), ["a", "b"], 3, None if groups is None else np.array(groups))


def test_a_fold_without_a_class_to_learn_from_is_refused() -> None:
    y = np.array([0, 0, 1, 1])
    with pytest.raises(errors.PipelineError, match="Fold 2 would have no image of class 'bee'"):
        validate_folds([(np.array([0, 2]), np.array([1])), (np.array([0, 1]), np.array([2]))], y, ["ant", "bee"])
    with pytest.raises(errors.PipelineError, match="Fold 1 would hold out no image"):
        validate_folds([(np.arange(4), np.array([], int))], y, ["ant", "bee"])
