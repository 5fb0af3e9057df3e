"""Images without a label help where they lie between images with one, and their own labels are never looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.classifiers import catalogue, few_shot, search, semi_supervised
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.semi_supervised import Unlabelled
from pipeline.classifiers.training_data import TrainingData

PLAN = SearchPlan("svm", {"l2": {"C": [100]}}, 2, 0)
SETTING = {"normalisation": "l2", "parameters": {"C": 100}}


def arcs(n: int = 160, views: int = 1) -> TrainingData:
    """Return codes of two classes, each along an arc over three axes of its own: the ends of an arc share nothing."""
    rng, y = np.random.default_rng(0), np.arange(n) % 2
    places = rng.uniform(0, 2, n)
    X = np.zeros((n, 8))
    for axis in range(3):
        X[np.arange(n), 3 * y + axis] = np.cos(np.minimum(np.abs(places - axis), 1) * np.pi / 2)
    X = np.repeat(X, views, axis=0) + 0.05 * rng.random((n * views, 8))
    images = np.repeat(np.arange(n), views)
    return TrainingData(X.astype(np.float32), y[images], images, None if views == 1 else images)


def at_the_end(data: TrainingData, per_class: int = 2) -> tuple[TrainingData, Unlabelled]:
    """Return the images at one end of each arc with their labels, and all others as if without."""
    order = np.argsort(-data.X[:, [0, 3]].max(1))
    taken = np.concatenate([order[data.y[order] == label][:per_class] for label in (0, 1)])
    rest = data.subset(np.setdiff1d(np.arange(len(data.y)), taken))
    return data.subset(taken), Unlabelled("label-spreading", replace(rest, y=np.full(len(rest.y), -1)))


@pytest.mark.parametrize("method", semi_supervised.METHODS)
@pytest.mark.parametrize("model", ["svm", "softmax", "ridge", "ncm"])
def test_labels_reach_the_far_end_of_a_class(method: str, model: str) -> None:
    data, normalisation = arcs(), "centred" if model == "ncm" else "l2"
    labelled, unlabelled = at_the_end(data)
    setting = {"normalisation": normalisation, "parameters": {"alpha": 1} if model == "ridge" else {}}
    if model in catalogue.PATH_MODELS:
        setting = SETTING
    pipeline, converged = semi_supervised.refit(labelled, replace(unlabelled, method=method), model, setting)
    alone, _ = search.refit(labelled, model, **setting)
    far = data.X[:, [2, 5]].max(1) > 0.9
    with_others, without = ((one.predict(data.X[far]) == data.y[far]).mean() for one in (pipeline, alone))
    assert converged and with_others == 1 and without < 1
    assert pipeline[-1].coef_.size == 8, "it holds coefficients, not images"


def test_a_guess_weighs_less_the_less_certain_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    labelled, unlabelled = at_the_end(arcs(10))
    shares = np.array([[1, 0]] * 4 + [[0.5, 0.5], [0, 0], [0, 3], [0.9, 0.1], [1, 0], [1, 0]])
    monkeypatch.setitem(semi_supervised.METHODS, "label-spreading", lambda vectors, known: shares)
    guessed, weights = semi_supervised.guess_labels(labelled, unlabelled)
    assert guessed[2] == 1 and weights[:3].tolist() == [0, 0, 1] and 0 < weights[3] < 1


def test_the_views_of_an_image_get_one_guess() -> None:
    data = arcs(40, views=3)
    labelled, rest = data.subset(np.arange(12)), data.subset(np.arange(12, 120))
    guessed, weights = semi_supervised.guess_labels(labelled, Unlabelled("label-spreading", rest))
    for column in (guessed, weights):
        assert (column.reshape(-1, 3) == column[::3, None]).all()
    assert (guessed == rest.y).mean() > 0.9


def test_images_may_come_in_any_order() -> None:
    """`few_shot` takes them in a random one, the views of each together."""
    data = arcs(40, views=3)
    rows = np.random.default_rng(0).permutation(40)[:, None] * 3 + np.arange(3)
    in_order, shuffled = (
        semi_supervised.guess_labels(data.subset(taken.ravel()), Unlabelled("label-spreading", data.subset(others)))
        for taken, others in ((np.sort(rows[:8], axis=0), np.sort(rows[8:].ravel())), (rows[:8], rows[8:].ravel()))
    )
    places = np.argsort(rows[8:].ravel())
    np.testing.assert_array_equal(shuffled[0][places], in_order[0])
    np.testing.assert_allclose(shuffled[1][places], in_order[1], atol=1e-4)


def test_copies_of_what_a_fold_holds_out_take_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, data = [], arcs(20)
    real = semi_supervised.guess_labels
    monkeypatch.setattr(semi_supervised, "guess_labels", lambda a, b: seen.append((a, b)) or real(a, b))
    beside = semi_supervised.compare(data, Unlabelled("label-spreading", data), PLAN, SETTING)
    assert len(beside.together) == 20 and len(seen) == 2
    for labelled, unlabelled in seen:
        assert set(unlabelled.data.units) == set(labelled.units)


def test_a_draw_of_a_few_labels_forgets_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[np.ndarray] = []
    spread = semi_supervised.METHODS["label-spreading"]
    monkeypatch.setitem(
        semi_supervised.METHODS, "label-spreading", lambda vectors, y: known.append(y) or spread(vectors, y)
    )
    data, none = arcs(80), arcs(80).subset(np.array([], int))
    draws = few_shot.hold_out_quarters(data, 3, 0)
    rows = few_shot.summarise(few_shot.learning_curve(data, PLAN, [1, 4], draws, Unlabelled("label-spreading", none)))
    assert [np.bincount(y + 1).tolist() for y in known[:2]] == [[58, 1, 1], [52, 4, 4]]
    assert [(row["shots"], row["unlabelled"]) for row in rows] == [
        (1, ""),
        (4, ""),
        (1, "label-spreading"),
        (4, "label-spreading"),
    ]
    assert rows[0]["gain"] is None and rows[2]["gain"] == pytest.approx(rows[2]["accuracy"] - rows[0]["accuracy"])
    assert rows[3]["gain_low"] <= rows[3]["gain"] <= rows[3]["gain_high"]


def test_without_other_images_it_is_the_classifier_of_the_labels() -> None:
    data = arcs(20)
    nothing = Unlabelled("self-training", data.subset(np.array([], int)))
    pipeline, _ = semi_supervised.refit(data, nothing, "svm", SETTING)
    np.testing.assert_array_equal(pipeline[-1].coef_, search.refit(data, "svm", **SETTING)[0][-1].coef_)
