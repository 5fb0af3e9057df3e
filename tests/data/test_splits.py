"""Folds: every class in each, groups whole, and a sentence where that cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_spec
from helpers import make_manifest

from pipeline import advise, errors
from pipeline.analysis import layer_measures
from pipeline.classifiers import few_shot, search
from pipeline.classifiers.scoring import wilson_interval
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.data.manifest import ListedImage
from pipeline.data.splits import (
    assign_splits,
    find_units,
    make_folds,
    rarest_label,
    validate_folds,
    validate_trainable,
)
from pipeline.finetuning.initialization import split_train_val
from pipeline.texts import Texts


def test_groups_stay_whole_whether_they_have_one_label_or_several() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(rng.permutation(60), rng.integers(1, 6, 60))
    for y in (groups % 3, rng.integers(0, 3, len(groups))):
        splits = make_folds(y, 4, 0, groups)
        assert sorted(np.concatenate([held for _, held in splits])) == list(range(len(y)))
        for fitted, held in splits:
            assert not set(groups[fitted]) & set(groups[held])
            assert set(y[fitted]) == set(y[held]) == {0, 1, 2}


def test_units_are_numbered_by_their_first_row() -> None:
    assert find_units(["b", "c", "a", "b", "c"]).tolist() == [0, 1, 2, 0, 1]
    assert find_units([]).tolist() == find_units([], []).tolist() == []
    assert find_units(["b", "c", "a"], [None, ("a", 1), None]).tolist() == [0, 1, 0]


def test_a_copy_in_two_groups_joins_them_and_so_does_a_second_grouping() -> None:
    digests = ["a", "b", "b", "c", "d", "e"]
    assert find_units(digests, [1, 1, 2, 2, 3, 3]).tolist() == [0, 0, 0, 0, 1, 1]
    assert find_units(digests, [1, 1, 2, 2, 3, 3], "vwxyzv").tolist() == [0] * 6


def test_an_image_of_several_labels_counts_by_its_rarest() -> None:
    y = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    assert rarest_label(y).tolist() == [1, 0, 2, 2, 1, 3]
    many = np.random.default_rng(0).random((400, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]
    held = [many[held].sum(0) for _, held in make_folds(many.astype(np.uint8), 4, 0)]
    assert np.ptp([counts[4] for counts in held]) <= 1


@pytest.mark.parametrize(
    ("y", "groups", "words"),
    [
        (
            [0] * 6 + [1] * 6,
            [0] * 6 + [1, 2, 3, 4, 5, 6],
            "'a' lie in 1 group, .*groups, or take the class out .*--drop",
        ),
        (
            [0] * 6 + [1] * 6,
            [0, 0, 0, 7, 7, 7, 1, 2, 3, 4, 5, 6],
            "'a' lie in 2 groups, .*groups, take --folds 2, or",
        ),
        ([0] * 6 + [1] * 2, None, "'b' has 2 training images, fewer than the 3 folds"),
        ([1] * 6, None, "one class only, 'b'"),
        ([], None, "no training images"),
        ([[1, 0], [0, 0]] * 6, None, "No training image has the label 'b'"),
        ([[1, 1], [1, 0]] * 6, None, "Every training image has the label 'a'"),
        (
            [[1, 1], [0, 0]] + [[1, 0]] * 6,
            None,
            "'b' has 1 training image, .*or take the class out of the dataset\\.$",
        ),
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


# Files copied four times, random labels, codes of noise: whatever parts the copies scores far above chance.

COPIES, IMAGES = 4, 60
GRID = {"l2": {"C": [1.0, 100.0]}}
PLAN = search.SearchPlan("svm", GRID, folds=4, seed=0)


def copied_noise() -> reader.Codes:
    """Return codes of 60 images of noise, each four times; two random labels, the same for all copies of an image."""
    rng = np.random.default_rng(0)
    image = rng.permutation(np.repeat(np.arange(IMAGES), COPIES))
    values = rng.normal(size=(IMAGES, 200)).astype(np.float32)[image]
    labels, names = rng.permutation(np.arange(IMAGES) % 2)[image], Texts.of(f"{row}.png" for row in range(len(image)))
    splits, digests = Texts.of(["train"] * len(image)), Texts.of(f"{number:064x}" for number in image)
    return reader.Codes(values, labels, names, splits, digests, ("a", "b"), make_spec())


@pytest.fixture
def noise() -> reader.Codes:
    return copied_noise()


def chance(accuracy: float) -> None:
    assert 0.25 <= accuracy <= 0.75


def training_data(noise: reader.Codes, units: np.ndarray | None = None) -> TrainingData:
    return TrainingData(noise.values, noise.labels, find_units(noise.digests) if units is None else units)


def test_copies_parted_would_score_high(noise: reader.Codes) -> None:
    parted = training_data(noise, np.arange(len(noise.labels)))
    assert search.train(parted, PLAN).chosen["accuracy"] > 0.95


def test_cross_validation_of_copied_noise_is_at_chance(noise: reader.Codes) -> None:
    chance(search.train(training_data(noise), PLAN).chosen["accuracy"])
    nested = search.nested_cv(training_data(noise), PLAN)
    chance(nested["accuracy"])
    assert (nested["n"], nested["images"]) == (IMAGES, COPIES * IMAGES)
    assert (nested["low"], nested["high"]) == wilson_interval(nested["accuracy"] * IMAGES, IMAGES)


def test_few_shots_of_copied_noise_are_at_chance(noise: reader.Codes) -> None:
    data = training_data(noise)
    draws = few_shot.learning_curve(data, PLAN, [2, 8, 20], few_shot.hold_out_quarters(data, 4, 0))
    for draw in draws:
        assert draw.images == COPIES * draw.n_scored == 60
        assert (draw.low, draw.high) == wilson_interval(draw.accuracy * draw.n_scored, draw.n_scored)
    for shots in (2, 8, 20):
        chance(float(np.mean([draw.accuracy for draw in draws if draw.shots == shots])))


def test_advice_on_copied_noise_is_at_chance(noise: reader.Codes) -> None:
    data = training_data(noise)
    measured = layer_measures.measure_layer("fc7", data, PLAN)
    chance(measured.accuracy)
    assert (measured.low, measured.high) == wilson_interval(measured.accuracy * IMAGES, IMAGES)
    points = layer_measures.trace_curve(noise.spec, data, measured.setting, PLAN, [2, 20])
    for point in points:
        chance(point.accuracy)


def test_the_images_that_advise_draws_are_distinct_before_they_repeat() -> None:
    names = tuple(f"{row}.png" for row in range(40))
    digests = tuple(f"{row // 4}" for row in range(40))
    labels = np.repeat([0, 1], 20)
    chosen = advise.choose_images(make_manifest("", names, labels, ("train",) * 40, ("a", "b"), digests), 10, 0)
    assert len(chosen.paths) == len(set(chosen.digests)) == 10


def test_fine_tuning_keeps_copies_and_groups_out_of_validation() -> None:
    names, patients = tuple(f"{row}.png" for row in range(80)), tuple(f"p{row // 8}" for row in range(80))
    digests = tuple(f"{row // 4}" for row in range(80))
    data = make_manifest("", names, np.repeat([0, 1], 40), ("train",) * 80, ("a", "b"), digests, patient=patients)
    for column, values in (("", digests), ("patient", patients)):
        parted = split_train_val(data, 0.3, 0, column)
        assert len(parted.val) >= 16
        assert not {values[row] for row in parted.train} & {values[row] for row in parted.val}
    with pytest.raises(errors.PipelineError, match="Unknown column 'doctor'"):
        split_train_val(data, 0.3, 0, "doctor")
    with pytest.raises(errors.PipelineError, match="share 10 groups of 'patient', the first is 'p0'"):
        split_train_val(replace(data, splits=Texts.of(("train", "val") * 40)), 0.3, 0, "patient")


def test_a_few_conflicting_copies_leave_the_folds_balanced() -> None:
    y, units = np.random.default_rng(0).integers(0, 3, 300), np.arange(300)
    units[1::100] = units[::100]
    y[1::100] = (y[::100] + 1) % 3
    for fitted, held in make_folds(y, 5, 0, units):
        assert not set(units[fitted]) & set(units[held])
        assert np.ptp(np.bincount(y[held]) / np.bincount(y)) < 0.04


def test_a_copy_in_two_groups_ties_them_together() -> None:
    digests = [f"d{n if n != 2 else 1}" for n in range(40)]  # image 2, of group 1, is a copy of image 1, of group 0
    listed = [ListedImage(Path(f"{n}.png"), "a", metadata={"who": f"{n // 2}"}, digest=digests[n]) for n in range(40)]
    for seed in range(5):
        settled = assign_splits(listed, {"test": 0.5}, seed, "who")
        assert len({image.split for image in settled[:4]}) == 1
        assert all(settled[n].split == settled[n + 1].split for n in range(0, 40, 2))
