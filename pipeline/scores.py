"""Scores of a classifier on images it never saw: accuracies with intervals, per class, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scores:
    """What a classifier reached.

    metrics: top1, its 95% interval top1_low…top1_high, top5 where there are more than 5 classes, balanced (mean
    accuracy of the classes), all in [0, 1]; n images, classes. per_class: precision, recall, f1, support of each.
    confusion: (classes, classes) int64, rows the true classes, columns the predicted.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion: np.ndarray


def score(labels: np.ndarray, margins: np.ndarray, classes: Sequence[str]) -> Scores:
    """Score predictions.

    labels: (n,) int64 true classes; margins: (n, classes) float, the highest is the prediction.
    """
    predicted = margins.argmax(1)
    right = int((predicted == labels).sum())
    low, high = wilson(right, len(labels))
    numbers = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    metrics: dict[str, float] = {"top1": right / len(labels), "top1_low": low, "top1_high": high}
    if len(classes) > 5:
        metrics["top5"] = float((ranks(labels, margins) < 5).mean())
    metrics |= {"balanced": float(recall[support > 0].mean()), "n": len(labels), "classes": len(classes)}
    per_class = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for name, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
    ]
    return Scores(metrics, per_class, confusion_matrix(labels, predicted, labels=numbers))


def ranks(labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Return (n,) how many classes have a higher margin than the true one: 0 where the prediction is right."""
    true = margins[np.arange(len(labels)), labels]
    return (margins > true[:, None]).sum(1)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion by Wilson's score (JASA 22, 1927)."""
    interval = binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def sentence(metrics: dict[str, float]) -> str:
    """Say the accuracy with its interval and the number of images."""
    return f"top-1 {metrics['top1']:.4f} (95% {metrics['top1_low']:.4f}–{metrics['top1_high']:.4f}), n = {metrics['n']}"
