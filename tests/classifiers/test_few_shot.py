"""Few-shot curves learn from the same few images for every count, and score on images that are in no unit of theirs."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.classifiers import few_shot, search
from pipeline.classifiers.scoring import wilson_interval
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.errors import PipelineError

PLAN = SearchPlan("svm", {"l2": {"C": [1]}}, 5, 0)


def training_data(n: int = 80, views: int = 1, per_unit: int = 1) -> TrainingData:
    """Return codes of two classes that can be learned; units are runs of `per_unit` images of a class."""
    images = np.repeat(np.arange(n), views)
    y, units = images % 2, images // (2 * per_unit) * 2 + images % 2
    X = (np.eye(2, 5)[y] + 0.4 * np.random.default_rng(0).random((n * views, 5))).astype(np.float32)
    return TrainingData(X, y, units, None if views == 1 else images)


def learned_from(data: TrainingData, shots: list[int], monkeypatch: pytest.MonkeyPatch) -> list[TrainingData]:
    """Return the data of each fit of a curve of one draw."""
    seen, refit = [], search.refit

    def recorded(taken: TrainingData, *setting: object, **more: object) -> object:
        seen.append(taken)
        return refit(taken, *setting, **more)

    monkeypatch.setattr(search, "refit", recorded)
    few_shot.learning_curve(data, PLAN, shots, few_shot.hold_out_quarters(data, 1, 0))
    return seen


def test_each_draw_holds_out_a_quarter_on_which_all_counts_are_scored() -> None:
    data = training_data()
    curve = few_shot.learning_curve(data, PLAN, [1, 4], few_shot.hold_out_quarters(data, 2, 0))
    assert [(draw.shots, draw.draw, draw.n_scored) for draw in curve] == [
        (1, 0, 20),
        (4, 0, 20),
        (1, 1, 20),
        (4, 1, 20),
    ]
    for draw in curve:
        assert (draw.low, draw.high) == wilson_interval(round(20 * draw.accuracy), 20)
        assert draw.setting == {"normalisation": "l2", "parameters": {"C": 1}}


def test_fewer_images_are_a_subset_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    few, more = learned_from(training_data(), [2, 5], monkeypatch)
    assert np.bincount(few.y).tolist() == [2, 2] and np.bincount(more.y).tolist() == [5, 5]
    assert set(few.units) < set(more.units)


def test_counts_are_of_images_whose_views_are_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data(40, views=3)
    (taken,) = learned_from(data, [4], monkeypatch)
    assert taken.images is not None
    assert np.unique(taken.images, return_counts=True)[1].tolist() == [3] * 8
    (draw,) = few_shot.learning_curve(data, PLAN, [4], few_shot.hold_out_quarters(data, 1, 0))
    assert draw.n_scored == draw.images == 10
    assert (draw.low, draw.high) == wilson_interval(10 * draw.accuracy, 10)


def test_one_image_of_each_unit_is_taken_before_the_second_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    few, more = learned_from(training_data(80, per_unit=4), [6, 12], monkeypatch)
    assert len(np.unique(few.units)) == len(few.units) == 12 and len(np.unique(more.units)) < len(more.units)


def test_the_rest_is_held_out_except_for_units_of_what_was_drawn() -> None:
    data = training_data(80, per_unit=2)
    ((available, held),) = few_shot.hold_out_rest(data, 8, 0)
    assert np.bincount(data.y[available]).tolist() == [8, 8]
    assert not set(data.units[available]) & set(data.units[held]) and len(held) == 80 - 32
    with pytest.raises(PipelineError, match="none is left to score on"):
        few_shot.hold_out_rest(training_data(80, per_unit=20), 4, 0)


def test_the_middle_of_the_grid_is_taken_where_nothing_can_be_held_out() -> None:
    grid = {"l2": {"n_neighbors": [1, 3, 20]}, "standard": {"n_neighbors": [1]}}
    data, plan = training_data(), SearchPlan("knn", grid, 5, 0)
    one, four = few_shot.learning_curve(data, plan, [1, 4], few_shot.hold_out_quarters(data, 1, 0))
    assert one.setting == {"normalisation": "l2", "parameters": {"n_neighbors": 2}}, "two images have two neighbours"
    assert four.setting["parameters"]["n_neighbors"] <= 6


def test_draws_become_means_and_standard_deviations() -> None:
    setting = {"normalisation": "l2", "parameters": {}}
    scores = [(1, 0.5, 0.4), (2, 0.8, 0.7), (1, 0.7, 0.6)]
    curve = [
        few_shot.Draw(shots, 0, 24, 20, accuracy, 0, 1, balanced, setting) for shots, accuracy, balanced in scores[::2]
    ]
    (row,) = few_shot.summarise(curve)
    assert row["accuracy"] == pytest.approx(0.6) and row["standard_deviation"] == pytest.approx(0.02**0.5)
    assert row["balanced_accuracy"] == pytest.approx(0.5) and (row["draws"], row["images"], row["n_scored"]) == (
        2,
        24,
        20,
    )


@pytest.mark.parametrize(
    ("shots", "draws", "words"),
    [([0], 2, "1 or more"), ([1], 1, "--draws 2 or more"), ([8], 2, "'a' has 10 training images; .* 7 are left")],
)
def test_curves_that_cannot_be_are_refused(shots: list[int], draws: int, words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        few_shot.validate_shots(np.repeat([0, 1], [10, 30]), "ab", shots, draws)
