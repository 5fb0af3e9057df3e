"""Which source images a step sees, and what a source is refused for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import make_manifest

from pipeline import errors
from pipeline.data.manifest import Manifest
from pipeline.finetuning.source import Source, of_dataset
from pipeline.texts import Texts

K = 4


def manifest(name: str, labels: list[int], first_digest: int = 0) -> Manifest:
    """Return a dataset of training images that are all different."""
    n = len(labels)
    digests = tuple(f"{first_digest + row:064x}" for row in range(n))
    names, splits = tuple(f"{row}.png" for row in range(n)), ("train",) * n
    return make_manifest(name, names, np.array(labels), splits, tuple("abcd"[:K]), digests)


LABELS = [row % K for row in range(40)]
SOURCE = Source(manifest("source", LABELS), np.arange(40))
WEIGHTS = np.array([0.2, 0.9, 0.0, 0.5])


def test_the_heaviest_of_the_images_drawn_are_kept_and_scaled_to_the_batch() -> None:
    chosen = SOURCE.choose(WEIGHTS, 8, 4, np.random.default_rng(0))
    labels = SOURCE.manifest.labels[chosen.rows]
    assert len(set(chosen.rows)) == 8 and (labels == 1).sum() == 8 and chosen.weights.tolist() == [1.0] * 8
    chosen = SOURCE.choose(WEIGHTS, 15, 4, np.random.default_rng(0))
    labels = SOURCE.manifest.labels[chosen.rows]
    assert np.bincount(labels, minlength=K).tolist() == [0, 10, 0, 5] and chosen.weights.sum() == pytest.approx(15)
    np.testing.assert_allclose(chosen.weights[labels == 1] / chosen.weights[labels == 3][0], 0.9 / 0.5)


def test_equal_weights_are_kept_by_chance_not_by_place() -> None:
    seen = [SOURCE.choose(np.ones(K), 5, 4, np.random.default_rng(seed)).rows for seed in range(400)]
    counts = np.bincount(np.concatenate(seen), minlength=40)
    assert np.abs(counts - 50).max() < 4 * 50**0.5
    np.testing.assert_array_equal(seen[7], SOURCE.choose(np.ones(K), 5, 4, np.random.default_rng(7)).rows)


def test_images_without_weight_are_left_out_down_to_none() -> None:
    chosen = SOURCE.choose(np.zeros(K), 8, 2, np.random.default_rng(0))
    assert len(chosen.rows) == len(chosen.weights) == 0 and chosen.drawn.all()
    chosen = SOURCE.choose(WEIGHTS, 32, 4, np.random.default_rng(0))  # a source that is smaller than what is drawn
    assert len(chosen.rows) == 30 and chosen.weights.sum() == pytest.approx(32) and (chosen.weights > 0).all()


def test_classes_that_were_not_drawn_are_told() -> None:
    few = replace(SOURCE, rows=np.arange(0, 40, 2))  # classes a and c alone
    assert few.choose(WEIGHTS, 4, 2, np.random.default_rng(0)).drawn.tolist() == [True, False, True, False]
    chosen = few.choose(np.array([0.0, 1.0, 0.0, 1.0]), 4, 2, np.random.default_rng(0))
    assert not len(chosen.rows)


def test_copies_of_images_that_the_target_keeps_are_left_out() -> None:
    target = manifest("target", LABELS[:10], first_digest=35)  # its first five images are the source's last
    source = of_dataset(SOURCE.manifest, target, np.array([0, 1, 5, 6, 7, 8, 9]))
    assert source.left_out == 3 and not set(source.rows) & {37, 38, 39} and len(source.rows) == 37


def test_sources_that_cannot_teach_are_refused() -> None:
    target = manifest("target", LABELS, first_digest=100)
    rows = np.arange(40)
    with pytest.raises(errors.PipelineError, match="is the target itself"):
        of_dataset(target, target, rows)
    with pytest.raises(errors.PipelineError, match="several labels"):
        of_dataset(replace(SOURCE.manifest, labels=np.ones((40, K), np.uint8)), target, rows)
    unlabelled = replace(SOURCE.manifest, splits=Texts.of(["unlabelled"] * 40), labels=np.full(40, -1))
    for poor in (unlabelled, replace(SOURCE.manifest, labels=np.zeros(40, np.int64))):
        with pytest.raises(errors.PipelineError, match="of two classes or more"):
            of_dataset(poor, target, rows)
