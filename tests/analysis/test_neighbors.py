"""Neighbours, outliers and leave-one-out predictions equal brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Listing, put_codes, write_codes
from helpers import CODES
from sklearn.linear_model import Ridge

from pipeline.analysis import neighbors


@pytest.mark.parametrize("judged", [45, 9])
def test_leave_one_out_predictions_equal_training_without_each_image(
    project: Path, monkeypatch: pytest.MonkeyPatch, judged: int
) -> None:
    monkeypatch.setattr(neighbors, "JUDGED", judged)
    labels = [number % 3 for number in range(45)]
    values = write_codes(CODES, labels, ["train"] * 45, ["a", "b", "c"])
    # Labels at random: 9 of the images and all of them choose different regularisations.
    rows, y = np.arange(45), np.random.default_rng(2).integers(0, 3, 45)
    predicted, margins = neighbors.leave_one_out_predictions(CODES, rows, y, 3)
    X = np.column_stack([values / np.linalg.norm(values, axis=1, keepdims=True), np.ones(45)]).astype(float)
    by_ridge = []
    for share in neighbors.RIDGES:
        ridge = Ridge(share * np.trace(X.T @ X) / X.shape[1], fit_intercept=False)
        scores = np.stack([ridge.fit(X[rows != i], np.eye(3)[y[rows != i]]).predict(X[[i]])[0] for i in rows])
        by_ridge.append(scores)
    best = max(by_ridge, key=lambda scores: (scores.argmax(1) == y)[:: 45 // judged].sum())
    np.testing.assert_array_equal(predicted, best.argmax(1))
    np.testing.assert_allclose(margins, best.max(1) - best[rows, y], atol=1e-6)


def test_nearest_equals_brute_force_across_blocks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = write_codes(CODES, [0, 1] * 30, ["train"] * 60, ["a", "b"], width=100)
    monkeypatch.setattr("pipeline.codes.stored.BLOCK_BYTES", 4 * 100 * 7)
    queries, among = np.array([3, 50, 4]), np.arange(0, 60, 2)
    distances, rows = neighbors.nearest(CODES, queries, among, 4)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    expected = 1 - unit[queries] @ unit[among].T
    expected[1, 25] = expected[2, 2] = np.inf  # an image is not its own neighbour
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :4], atol=1e-6)
    np.testing.assert_array_equal(rows, among[expected.argsort(1)[:, :4]])


def write_wide_codes(values: np.ndarray) -> None:
    """Write codes of one class, all for training."""
    n = len(values)
    names, digests = zip(*((f"{row}.png", f"{row:064x}") for row in range(n)), strict=True)
    put_codes(CODES, values, Listing(names, [0] * n, ["train"] * n, digests, ["a"]))


def test_the_farthest_image_is_the_outlier(project: Path) -> None:
    """Outliers equal brute force on codes that are too narrow to be projected."""
    values = np.random.default_rng(0).random((40, 16))
    write_wide_codes(values)
    rows, checked = neighbors.find_outliers(CODES, np.arange(40), np.arange(0, 40, 2), most=3)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    distances = 1 - unit @ unit[::2].T
    distances[np.arange(0, 40, 2), np.arange(20)] = np.inf
    assert rows.tolist() == np.argsort(-distances.min(1))[:3].tolist() and checked == 40
