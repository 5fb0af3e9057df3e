"""Scores of a classifier on images it never saw: accuracies with intervals, per class, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import (
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scores:
    """What a classifier reached on images of one label each, or of several (see `score_several`).

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
    low, high = wilson_interval(right, len(labels))
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


def score_multi_label(labels: np.ndarray, margins: np.ndarray, classes: Sequence[str]) -> Scores:
    """Score the ranking of images by each label.

    labels: (n, classes) of 0 and 1; margins: (n, classes) float, above 0 where the label is predicted. The metrics are
    the means over the labels that occur of the continuous average precision (map) and of VOC 2007's at 11 recalls
    (map_voc07), as in Razavian et al., "CNN features off-the-shelf" (2014). confusion: (classes, 2, 2), by label the
    counts of images that lack it and have it, in rows, and of those without and with it predicted, in columns.
    """
    precision, recall, f1, support = precision_recall_fscore_support(labels, margins > 0, zero_division=0)
    found = [average_precisions(labels[:, k], margins[:, k]) for k in range(len(classes))]
    occur = [pair for pair, count in zip(found, support, strict=True) if count]
    means = np.mean(occur, axis=0)
    per_class = [
        {
            "class": name,
            "ap": a,
            "ap_voc07": v,
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
            "support": int(s),
        }
        for name, (a, v), p, r, f, s in zip(classes, found, precision, recall, f1, support, strict=True)
    ]
    metrics = {"map": float(means[0]), "map_voc07": float(means[1]), "n": len(labels), "classes": len(classes)}
    return Scores(metrics, per_class, multilabel_confusion_matrix(labels, margins > 0))


def average_precisions(truth: np.ndarray, margins: np.ndarray) -> tuple[float, float]:
    """Return the average precision of a ranking, continuous and VOC 2007's; NaN where nothing is true.

    Continuous: the area under precision against recall, without interpolation. VOC 2007's: the mean, at recalls 0,
    0.1, …, 1, of the highest precision at that recall or a higher one (Everingham et al., IJCV 88, 2010).
    """
    if not truth.any():
        return float("nan"), float("nan")
    precision, recall, _ = precision_recall_curve(truth, margins)
    eleven = [precision[recall >= level - 1e-9].max() for level in np.linspace(0, 1, 11)]
    return float(-(np.diff(recall) * precision[:-1]).sum()), float(np.mean(eleven))


def ranks(labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Return (n,) how many classes have a higher margin than the true one: 0 where the prediction is right."""
    true = margins[np.arange(len(labels)), labels]
    return (margins > true[:, None]).sum(1)


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion by Wilson's score (JASA 22, 1927)."""
    interval = binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def sentence(metrics: dict[str, float]) -> str:
    """Say the accuracy with its interval, or the mean average precisions, and the number of images."""
    if "map" in metrics:
        return f"mAP {metrics['map']:.4f} (VOC 2007's 11 points: {metrics['map_voc07']:.4f}), n = {metrics['n']}"
    return f"top-1 {metrics['top1']:.4f} (95% {metrics['top1_low']:.4f}–{metrics['top1_high']:.4f}), n = {metrics['n']}"
