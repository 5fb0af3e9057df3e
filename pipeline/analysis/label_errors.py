"""Suspected label errors by confident learning, from the probabilities of classifiers that did not see the image.

The rule of "Confident Learning: Estimating Uncertainty in Dataset Labels" (Northcutt, Jiang and Chuang, JAIR 70, 2021),
as cleanlab's filter "confident_learning" has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelErrors:
    """Images whose labels are suspected, the least probable label first.

    images: (k,) int64 places of the images; classes: (k,) int64, the class that each seems to be of; probabilities:
    (k,) of their labels.
    """

    images: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


def confident_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Return the images that seem to be of another class than their label.

    An image seems to be of a class if the probability of it reaches the mean of that probability over the images with
    that label; of several such classes the most probable one counts, of none the image is not suspected. So classes
    that the classifier is sure of need a higher probability than others.

    probabilities: (n, n_classes) of held-out images; labels: (n,) int64 in [0, n_classes), all classes among them.
    """
    n_classes = probabilities.shape[1]
    usual = np.array([probabilities[labels == label, label].mean() for label in range(n_classes)])
    reached = np.where(probabilities >= usual, probabilities, -1.0)
    classes, of_label = reached.argmax(1), probabilities[np.arange(len(labels)), labels]
    suspected = np.flatnonzero((reached.max(1) >= 0) & (classes != labels))
    images = suspected[np.argsort(of_label[suspected], kind="stable")]
    return LabelErrors(images, classes[images], of_label[images])
