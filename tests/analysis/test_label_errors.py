"""Confident learning: an image is suspected where another class is as probable as it usually is for its images."""

from __future__ import annotations

import numpy as np

from pipeline.analysis.label_errors import confident_errors


def test_the_thresholds_are_those_of_each_class() -> None:
    """The mean probabilities of the labels are 0.6 and 0.75: 0.65 is enough for the first class, not for the second."""
    of_second = np.array([0.2, 0.25, 0.75, 0.65, 0.95, 0.35, 0.95])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    assert 1 - of_second[labels == 0].mean() == 0.5375 and of_second[labels == 1].mean() == 0.75
    found = confident_errors(np.stack([1 - of_second, of_second], 1), labels)
    assert found.images.tolist() == [2, 5] and found.classes.tolist() == [1, 0]
    np.testing.assert_allclose(found.probabilities, [0.25, 0.35])


def test_of_several_classes_the_most_probable_counts_and_the_least_probable_label_comes_first() -> None:
    probabilities = np.eye(3)[[0, 0, 1, 1, 2, 2]] * 0.8 + 0.1 / 1.5
    probabilities[1], probabilities[3] = [0.0, 0.1, 0.9], [0.9, 0.05, 0.05]
    probabilities[5] = [0.3, 0.3, 0.4]
    found = confident_errors(probabilities, np.array([0, 0, 1, 1, 2, 2]))
    assert found.images.tolist() == [1, 3] and found.classes.tolist() == [2, 0]
