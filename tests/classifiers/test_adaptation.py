"""Weights count as repetitions; a source counts by its likeness; other shares of classes follow Bayes' rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.classifiers import adaptation, label_shift, search, solvers
from pipeline.classifiers.cv_table import Setting
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.errors import PipelineError


def overlapping(n: int, classes: int = 3, seed: int = 0, shift: float = 0.0) -> TrainingData:
    """Return codes (n, 6) of classes that overlap."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = (np.eye(classes, 6)[y] + 0.6 * rng.normal(size=(n, 6)) + shift).astype(np.float32)
    return TrainingData.of_independent(X, y)


@pytest.mark.parametrize("class_weight", [None, {0: 3.0, 1: 1.0, 2: 0.5}])
@pytest.mark.parametrize("model", ["svm", "softmax"])
def test_whole_weights_are_repeated_rows(model: str, class_weight: dict[int, float] | None) -> None:
    data = overlapping(60)
    counts = np.random.default_rng(1).integers(1, 4, 60)
    weighted, repeated = replace(data, weights=counts.astype(float)), data.subset(np.repeat(np.arange(60), counts))
    parameters = {"C": 3.0, "class_weight": class_weight, "tol": 1e-9}
    one, other, alike = (search.refit(rows, model, "l2", parameters)[0][-1] for rows in (weighted, repeated, data))
    np.testing.assert_allclose(one.coef_, other.coef_, atol=2e-4)
    np.testing.assert_allclose(one.intercept_, other.intercept_, atol=2e-4)
    assert np.abs(one.coef_ - alike.coef_).max() > 0.01


def test_weights_reach_every_fold_and_held_out_rows_count_once() -> None:
    """Where one of three labels is wrong, and always in the same way, but weighs next to nothing, none is learned."""
    data = overlapping(240)
    flipped = np.random.default_rng(0).random(240) < 0.45
    y = np.where(flipped, (data.y + 1) % 3, data.y)
    plan = SearchPlan("svm", {"l2": {"C": [1.0]}}, 3, 0)
    setting: Setting = {"normalisation": "l2", "parameters": {"C": 1.0}}
    trusted, misled = replace(data, y=y, weights=np.where(flipped, 1e-6, 1.0)), replace(data, y=y)
    said, wrongly = (search.held_out_margins(rows, plan, setting).argmax(1) for rows in (trusted, misled))
    assert (said == data.y).mean() > (wrongly == data.y).mean() + 0.05
    assert search.train(trusted, plan).chosen["accuracy"] == pytest.approx((said == y).mean())
    assert search.nested_cv(trusted, plan)["accuracy"] == pytest.approx((said == y).mean())


def test_source_rows_count_by_their_likeness_to_the_target() -> None:
    rng = np.random.default_rng(0)
    near, far, target = (rng.normal(mean, 0.5, (200, 8)) for mean in (1.0, np.r_[0, 0, 2, 2, 1, 1, 1, 1], 1.0))
    weighing = adaptation.density_ratio(np.concatenate([near, far]).astype(np.float32), target.astype(np.float32))
    assert weighing.weights[:200].mean() > 2 * weighing.weights[200:].mean() and 0.5 < weighing.separation < 0.9
    assert weighing.weights.mean() == pytest.approx(1) and 100 < weighing.effective < 400
    with pytest.raises(PipelineError, match="nothing in common"):
        adaptation.weigh_source(overlapping(60), overlapping(90, shift=30.0))


@pytest.mark.parametrize("normalisation", adaptation.DOMAIN_ROWS)
@pytest.mark.parametrize(("model", "classes"), [("svm", 3), ("svm", 2), ("softmax", 2), ("ridge", 3)])
def test_folded_features_predict_what_augmented_ones_do(model: str, classes: int, normalisation: str) -> None:
    target, source = overlapping(30, classes), overlapping(80, classes, 1, 0.2)
    adapted = adaptation.augment_features(target, source)
    held = np.concatenate([held for _, held in adapted.data.folds(3, 0)])
    assert sorted(held) == list(range(30)), "rows of the source are never held out"
    pipeline, _ = search.refit(adapted.data, model, normalisation, {} if model == "ridge" else {"C": 10.0})
    margins = pipeline.decision_function(adaptation.augment(target.X[:], 2))
    np.testing.assert_allclose(adapted.finish(pipeline).decision_function(target.X), margins, atol=1e-4)


def test_shares_follow_the_images_and_the_correction_bayes_rule() -> None:
    rng, shares = np.random.default_rng(0), np.array([0.7, 0.2, 0.1])
    X, means = rng.normal(size=(4000, 3)), 1.5 * np.eye(3)
    labels, others = np.arange(3000) % 3, rng.choice(3, 1000, p=shares)
    scores = (X + means[np.r_[labels, others]]) @ means.T
    evidence = label_shift.Evidence(scores[:3000], labels, scores[3000:], 1.0)
    for estimate in label_shift.METHODS.values():
        assert np.abs(estimate(evidence) - shares).max() < 0.06
    confused = replace(evidence, held_out=np.zeros((3000, 3)))
    with pytest.raises(PipelineError, match="confuses classes"):
        label_shift.estimate_by_confusion(confused)
    assert label_shift.temperature_of(2 * scores[:3000], labels) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("classes", "kept"), [(3, [0, 1, 2]), (3, [1, -1, 0]), (2, [0, 1])])
def test_a_corrected_softmax_gives_the_probabilities_of_the_new_shares(classes: int, kept: list[int]) -> None:
    data = overlapping(90, classes)
    pipeline, _ = search.refit(data, "softmax", "l2", {"C": 10.0})
    ratios = np.array([2.0, 0.5, 0.3])[:classes]
    corrected = label_shift.correct(pipeline, ratios, 1.0, np.array(kept))
    expected = (pipeline.predict_proba(data.X) * ratios)[:, np.argsort(kept)[np.sort(kept) >= 0]]
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(corrected.predict_proba(data.X), expected, atol=1e-5)
    assert isinstance(corrected[-1], solvers.Softmax) and corrected.classes_.tolist() == list(range(expected.shape[1]))
