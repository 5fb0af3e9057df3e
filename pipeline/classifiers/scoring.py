"""Scores of a classifier on images it never saw: accuracies with their intervals, figures per class, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
)
from sklearn.pipeline import Pipeline

from pipeline.errors import counted

CONFIDENCE = 0.95
"""Probability with which an interval contains the true proportion."""

BOOTSTRAPS = 100
"""Number of bootstrap samples from which a standard deviation is estimated."""

QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""The standard normal deviate of the confidence, 1.96."""

ONCE = "copies, and the images of a group, count once"
"""Why there are fewer independent units than images."""


class Validation(TypedDict):
    """The accuracy on n training images that were held out, of the setting or epoch that was chosen by it.

    low: the lower end of its 95% interval; deviation: standard deviation over the folds of a cross-validation, None for
    a fine-tuned network, which was validated on one set of images.
    """

    accuracy: float
    low: float
    deviation: float | None
    n: int


class Metrics(TypedDict, total=False):
    """The figures of metrics.json, all but the counts in [0, 1].

    top1: share of the images that are predicted correctly, with its 95% interval top1_low…top1_high; top5: share of
    images whose class is among the five of the highest margins, where there are more than five classes;
    balanced_accuracy: mean accuracy of the classes; images: their number; n: number of independent units among them, as
    in `Interval`; classes: number of classes; related: number of test images that have relatives among the training
    images (copies, near-duplicates, images of the same group); compared: number of those that near-duplicates were
    looked for, where they are not all; unrelated: the metrics of those that have no relatives; validation:
    the accuracy by which the classifier was chosen, None where there is none. Multi-label images have map and map_voc07
    instead of accuracies, the mean average precisions of `average_precisions`, and the 95% interval map_low…map_high of
    the former.
    """

    top1: float
    top1_low: float
    top1_high: float
    top5: float
    balanced_accuracy: float
    map: float
    map_low: float
    map_high: float
    map_voc07: float
    n: int
    images: int
    classes: int
    related: int
    compared: int
    unrelated: Metrics
    validation: Validation | None


ClassRow = TypedDict(
    "ClassRow",
    {
        "class": str,
        "ap": NotRequired[float],
        "ap_voc07": NotRequired[float],
        "precision": float,
        "recall": float,
        "f1": float,
        "support": int,
    },
)
"""A line of per_class.csv; ap, ap_voc07: average precisions, of multi-label images only; support: number of images."""


@dataclass(frozen=True)
class Scores:
    """What a classifier reached on images of one label each, or on multi-label images.

    confusion: (classes, classes) int64 counts, a row per true class and a column per predicted class; of multi-label
    images (classes, 2, 2), for each label the images that lack it and have it, in rows, without and with it predicted,
    in columns.
    """

    metrics: Metrics
    per_class: list[ClassRow]
    confusion: np.ndarray


class Interval(NamedTuple):
    """The 95% interval low…high of an accuracy over images, and how many independent units these are.

    What is no independent evidence counts once: copies of the same bytes, and the images of a group.
    """

    low: float
    high: float
    n: int


def interval(accuracy: float, units: np.ndarray) -> Interval:
    """Return the interval of the share of images that are predicted correctly; units: (n,) int, the unit of each.

    It is Wilson's (JASA 22, 1927) for the effective number of images, (Σm)² / Σm² for units of m images (Kish, "Survey
    Sampling", 1965): the number of units where all are of one size, and fewer where some outweigh others. This takes
    the images of a unit to be all correct or all wrong together; where they are not, the interval is a little wide.
    """
    effective = effective_number(units)
    return Interval(*wilson_interval(accuracy * effective, effective), len(np.unique(units)))


def effective_number(units: np.ndarray) -> float:
    """Return as how many independent images those of these units (n,) count, as `interval` explains."""
    sizes = np.unique(units, return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def count_text(n: int, images: int) -> str:
    """Return the number of independent units that an interval is of, and of images where these are more."""
    return f"n = {n}" if n == images else f"n = {n} ({counted(images, 'image')}; {ONCE})"


def images_text(n: int, images: int, noun: str = "image") -> str:
    """Return the number of images, and of independent units where these are fewer."""
    return counted(images, noun) if n == images else f"{counted(images, noun)} (n = {n}; {ONCE})"


def sum_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the sum (n_units,) float64 of the values (n,) of each unit's images; units: (n,) int."""
    return np.bincount(np.unique(units, return_inverse=True)[1], weights=values)


def margins_of(pipeline: Pipeline, X: np.ndarray, n_images: int) -> np.ndarray:
    """Return the margins (n_images, n_trained_classes) float64, or probabilities of a classifier without margins.

    X: (n_images × n_views, d), the views of an image below each other, over which margins are averaged.
    """
    outputs = pipeline.decision_function(X) if hasattr(pipeline, "decision_function") else pipeline.predict_proba(X)
    raw = np.asarray(outputs, dtype=np.float64)
    return mean_of_views(np.stack([-raw, raw], 1) if raw.ndim == 1 else raw, n_images)


def mean_of_views(outputs: np.ndarray, n_images: int) -> np.ndarray:
    """Return the mean (n_images, k) of the outputs (n_images × n_views, k) of each image's views."""
    several = len(outputs) > n_images
    return outputs.reshape(n_images, -1, outputs.shape[1]).mean(1) if several else outputs


def score(labels: np.ndarray, margins: np.ndarray, classes: Sequence[str], units: np.ndarray | None = None) -> Scores:
    """Score predictions.

    labels: (n,) int64 true classes; margins: (n, classes) float, the class of the highest is predicted; units: (n,) as
    in `interval`, None if every image is one.
    """
    predicted = margins.argmax(1)
    top1 = float((predicted == labels).mean())
    low, high, n = interval(top1, np.arange(len(labels)) if units is None else units)
    numbers = np.arange(len(classes))
    table = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)
    _, recall, _, support = table
    metrics: Metrics = {"top1": top1, "top1_low": low, "top1_high": high}
    if len(classes) > 5:
        metrics["top5"] = float((ranks(labels, margins) < 5).mean())
    metrics["balanced_accuracy"] = float(recall[support > 0].mean())
    metrics |= {"n": n, "images": len(labels), "classes": len(classes)}
    return Scores(metrics, _class_rows(classes, *table), confusion_matrix(labels, predicted, labels=numbers))


def score_multi_label(
    labels: np.ndarray, margins: np.ndarray, classes: Sequence[str], units: np.ndarray | None = None
) -> Scores:
    """Score the ranking of images by each label.

    labels: (n, classes) of 0 and 1; margins: (n, classes) float, the label is predicted where its margin is above 0;
    units: as in `score`. The metrics are means over the labels that occur, as in Razavian et al., "CNN features
    off-the-shelf" (2014).
    """
    predicted = margins > 0
    table = precision_recall_fscore_support(labels, predicted, zero_division=0)
    support = table[3]
    precisions = np.array([average_precisions(*columns) for columns in zip(labels.T, margins.T, strict=True)])
    continuous, voc07 = precisions[support > 0].mean(0).tolist()
    rows: list[ClassRow] = [
        {"class": row["class"], "ap": ap, "ap_voc07": ap_voc07, **row}
        for row, (ap, ap_voc07) in zip(_class_rows(classes, *table), precisions.tolist(), strict=True)
    ]
    units = np.arange(len(labels)) if units is None else units
    low, high = mean_precision_interval(labels, margins, continuous, units)
    metrics: Metrics = {"map": continuous, "map_low": low, "map_high": high, "map_voc07": voc07}
    metrics |= {"n": len(np.unique(units)), "images": len(labels), "classes": len(classes)}
    return Scores(metrics, rows, multilabel_confusion_matrix(labels, predicted))


def _class_rows(
    classes: Sequence[str], precision: np.ndarray, recall: np.ndarray, f1: np.ndarray, support: np.ndarray
) -> list[ClassRow]:
    """Return a row per class of arrays (classes,)."""
    columns = (precision.tolist(), recall.tolist(), f1.tolist(), support.tolist())
    return [
        {"class": name, "precision": p, "recall": r, "f1": f, "support": int(s)}
        for name, p, r, f, s in zip(classes, *columns, strict=True)
    ]


def average_precisions(truth: np.ndarray, margins: np.ndarray) -> tuple[float, float]:
    """Return the average precision of a ranking, continuous and VOC 2007's; NaN where nothing is true.

    truth: (n,) of 0 and 1; margins: (n,). Continuous: the area under precision against recall, without interpolation.
    VOC 2007's: the mean, at recalls 0, 0.1, …, 1, of the highest precision at that recall or a higher one (Everingham
    et al., IJCV 88, 2010).
    """
    if not truth.any():
        return float("nan"), float("nan")
    precision, recall, _ = precision_recall_curve(truth, margins)
    eleven = [precision[recall >= level - 1e-9].max() for level in np.linspace(0, 1, 11)]
    return float(average_precision_score(truth, margins)), float(np.mean(eleven))


def mean_precision_interval(
    truth: np.ndarray, margins: np.ndarray, mean: float, units: np.ndarray
) -> tuple[float, float]:
    """Return the 95% interval of a mean average precision, by its standard deviation over bootstrap samples of units.

    truth: (n, labels) of 0 and 1; margins: (n, labels); mean: the mean average precision, in [0, 1]; units: (n,) int64
    of the images. A sample is given by how often it holds each unit, with all of its images (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993).
    """
    rng, numbers = np.random.default_rng(0), np.unique(units, return_inverse=True)[1]
    n = int(numbers.max()) + 1
    order = np.argsort(-margins, axis=0, kind="stable")
    ranked = np.take_along_axis(truth, order, 0)
    means = []
    for _ in range(BOOTSTRAPS):
        counts = np.bincount(rng.integers(0, n, n), minlength=n)[numbers][order]
        hits = ranked * counts
        found = hits.sum(0)
        if found.any():
            sums = (hits * np.cumsum(hits, 0) / np.maximum(np.cumsum(counts, 0), 1)).sum(0)
            means.append((sums[found > 0] / found[found > 0]).mean())
    if len(means) < 2:
        return 0.0, 1.0
    half = QUANTILE * float(np.std(means, ddof=1))
    return max(mean - half, 0.0), min(mean + half, 1.0)


def ranks(labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Return (n,) how many classes have a higher margin than the true one: 0 where the prediction is correct."""
    true = margins[np.arange(len(labels)), labels]
    return (margins > true[:, None]).sum(1)


def wilson_interval(correct: float, total: float) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion by Wilson's score; SciPy's is of whole numbers only."""
    share, spread = correct / total, QUANTILE**2 / total
    half = QUANTILE * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    low, high = ((share + spread / 2 + side) / (1 + spread) for side in (-half, half))
    return max(min(low, share), 0.0), min(max(high, share), 1.0)  # rounding must not exclude the share itself


def sentence(metrics: Metrics) -> str:
    """Return the accuracy with its interval, or the mean average precisions, and the number of images, as text."""
    number = count_text(metrics["n"], metrics["images"])
    if "map" in metrics:
        interval = f"95% {metrics['map_low']:.4f}–{metrics['map_high']:.4f}"
        voc07 = f"VOC 2007's 11 points: {metrics['map_voc07']:.4f}"
        return f"mAP {metrics['map']:.4f} ({interval}; {voc07}), {number}"
    return f"top-1 {metrics['top1']:.4f} (95% {metrics['top1_low']:.4f}–{metrics['top1_high']:.4f}), {number}"
