"""A sample of the training images: the same share of each class, and enough images of each for the folds."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_manifest

from pipeline.data.sampling import choose_images, training_images


def test_a_subset_keeps_the_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 3])
    names = tuple(f"{row}.png" for row in range(903))
    manifest = make_manifest("x", names, labels, ("train",) * 903, ("a", "b", "c"), names)
    chosen = choose_images(manifest, 300, 0)
    assert np.bincount(chosen.labels).tolist() == [199, 100, 2]
    assert all(
        int(path[:-4]) // 300 in ((0, 1), (2,), (3,))[label]
        for path, label in zip(chosen.paths, chosen.labels, strict=True)
    )
    assert len(choose_images(manifest, 10_000, 0).paths) == 903


def test_each_class_has_enough_images_for_the_folds_and_copies_come_last() -> None:
    digests = ("a", "a", "b", "c", "d", *(f"{row}" for row in range(95)))
    manifest = make_manifest("x", digests, np.array([0] * 5 + [1] * 95), ("train",) * 100, ("a", "b"), digests)
    chosen = choose_images(manifest, 10, 0, least=4)
    assert np.bincount(chosen.labels).tolist() == [4, 10] and len(set(chosen.digests[:4])) == 4


def test_small_classes_are_dropped_by_name_where_asked_to(caplog: pytest.LogCaptureFixture) -> None:
    digests, splits = ("a", "a", "b", "c", "d", "e"), ("train",) * 5 + ("test",)
    manifest = make_manifest("x", digests, np.array([0, 0, 1, 1, 1, 1]), splits, ("few", "many"), digests)
    assert training_images(manifest, 3, "", drop_small=False).labels.tolist() == [0, 0, 1, 1, 1]
    assert not caplog.text
    assert training_images(manifest, 3, "", drop_small=True).labels.tolist() == [1, 1, 1]
    assert "Left out: class 'few', with 1 training images or groups." in caplog.text
