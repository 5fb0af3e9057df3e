"""Few-shot curves: how accurate a classifier is that learns from 1, 2, 4, … images per class, over several draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, cast

import numpy as np
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import Pipeline

from pipeline import errors
from pipeline.classifiers import cv_table, scoring, search, semi_supervised
from pipeline.classifiers.cv_table import Grid, Setting
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.semi_supervised import Unlabelled
from pipeline.classifiers.training_data import TrainingData
from pipeline.data.splits import Folds, draw_distinct

HOLD_OUT_PARTS = 4
"""`hold_out_quarters` holds out one of this many parts of the training images in each draw."""


@dataclass(frozen=True)
class Draw:
    """What a classifier reached that learned from `shots` images of each class.

    draw: number of the draw; images: number of images held out; n_scored: number of independent units among them;
    accuracy: share of the images that is predicted correctly, with its 95% interval low…high, as in `scoring.Interval`;
    balanced_accuracy: mean accuracy of the classes; setting: the one that was chosen; unlabelled: the method by which
    it learned from other images without a label as well, "" for none.
    """

    shots: int
    draw: int
    images: int
    n_scored: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    setting: Setting
    unlabelled: str = ""


class FewShotRow(TypedDict):
    """Means and standard deviations over draws of `shots` images per class, as in `Draw`.

    images, n_scored: the fewest of a draw; unlabelled: as in `Draw`; gain: by how much the accuracy is above that of
    the same draws without the unlabelled images, on average, with the 95% interval of the mean, gain_low…gain_high,
    which counts how the draws differ but not that they share their images; None where no such images were there.
    """

    shots: int
    accuracy: float
    standard_deviation: float
    balanced_accuracy: float
    balanced_accuracy_standard_deviation: float
    draws: int
    images: int
    n_scored: int
    unlabelled: str
    gain: float | None
    gain_low: float | None
    gain_high: float | None


def learning_curve(
    data: TrainingData,
    plan: SearchPlan,
    shots: Sequence[int],
    draws: Folds,
    unlabelled: Unlabelled | None = None,
) -> list[Draw]:
    """Learn from `shots` images of each class alone, for every draw, and from these and unlabelled ones, if any.

    All of it happens within the training split. draws: for each draw the rows to take images from, and the rows held
    out to score on, as `hold_out_quarters` or `hold_out_rest` return them. The images are taken in a random order, one
    of each unit before the second of any, so that fewer images are a subset of more images, and all counts are scored
    on the same images. A grid of several settings is cross-validated on the images taken; where some class has one unit
    among them, and nothing can be held out, the setting is the middle of the grid. Where images without a label are
    given, those that a draw neither takes nor holds out lose their labels and join them; the setting is the same.
    """
    curve = []
    for draw, (available, held) in enumerate(draws):
        for count in shots:
            taken = _take(data, available, count, [plan.seed, draw])
            labelled, scored = data.subset(taken), data.subset(held)
            setting, pipeline = _train(labelled, plan)
            curve.append(_score(scored, pipeline, setting, count, draw))
            if unlabelled:
                others = unlabelled.without(scored.units).joined(data.subset(np.setdiff1d(available, taken)))
                pipeline, _ = semi_supervised.refit(labelled, others, plan.model, setting)
                curve.append(replace(_score(scored, pipeline, setting, count, draw), unlabelled=unlabelled.method))
    return curve


def hold_out_quarters(data: TrainingData, draws: int, seed: int) -> Folds:
    """Return a quarter of the rows to hold out for each draw, stratified, units whole."""
    return [data.folds(HOLD_OUT_PARTS, seed + draw)[0] for draw in range(draws)]


def hold_out_rest(data: TrainingData, most: int, seed: int) -> Folds:
    """Return one draw: `most` images of each class to take images from, and the images of all other units to score on.

    As in "How transferable are features in deep neural networks?" (Yosinski et al., NIPS 2014).
    """
    available = _take(data, np.arange(len(data.y)), most, [seed])
    held = np.flatnonzero(~np.isin(data.units, data.units[available]))
    if not len(held):
        raise errors.PipelineError(
            f"With {most} images per class, all training images are among those drawn, or copies of them, so none is "
            "left to score on. Take smaller numbers."
        )
    return [(available, held)]


def _take(data: TrainingData, available: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """Return all rows of the first `count` images of each class, in a random order of the images available."""
    images = np.arange(len(data.y)) if data.images is None else data.images
    _, first = np.unique(images[available], return_index=True)
    order = draw_distinct(available[first], data.units, np.random.default_rng(seed))
    by_class = [order[data.y[order] == label][:count] for label in np.unique(data.y)]
    if (fewest := min(map(len, by_class))) < count:
        raise errors.PipelineError(
            f"A class has {fewest} training images that are not held out, fewer than {count}. Take fewer images per "
            "class."
        )
    return np.concatenate([np.flatnonzero(images == images[row]) for row in np.concatenate(by_class)])


def _train(data: TrainingData, plan: SearchPlan) -> tuple[Setting, Pipeline]:
    """Return the chosen setting, and a pipeline trained with it."""
    folds = min(plan.folds, *(len(np.unique(data.units[data.y == label])) for label in np.unique(data.y)))
    grid = search.feasible_grid(plan.grid if folds > 1 else middle_setting(plan.grid), len(data.y))
    if setting := only_setting(grid):
        return setting, search.refit(data, plan.model, **setting)[0]
    trained = search.train(data, SearchPlan(plan.model, grid, folds, plan.seed))
    return cv_table.setting_of(trained.chosen), trained.pipeline


def _score(held: TrainingData, pipeline: Pipeline, setting: Setting, shots: int, draw: int) -> Draw:
    """Return what a pipeline reaches on the images held out."""
    predicted, labels, units = held.predict_images(pipeline)
    accuracy, balanced = float((predicted == labels).mean()), float(balanced_accuracy_score(labels, predicted))
    low, high, n = scoring.interval(accuracy, units)
    return Draw(shots, draw, len(labels), n, accuracy, low, high, balanced, setting)


def middle_setting(grid: Grid) -> Grid:
    """Return a grid of the first normalisation and the middle value of each parameter."""
    normalisation, values = next(iter(grid.items()))
    return {normalisation: {name: [column[len(column) // 2]] for name, column in values.items()}}


def only_setting(grid: Grid) -> Setting | None:
    """Return the setting of a grid that has just one, else None."""
    (normalisation, values), *others = grid.items()
    if others or any(len(column) > 1 for column in values.values()):
        return None
    return {"normalisation": normalisation, "parameters": {name: column[0] for name, column in values.items()}}


def validate_shots(y: np.ndarray, classes: Sequence[str], shots: Sequence[int], draws: int) -> None:
    """Refuse more images than some class has after a quarter is held out, and too few draws."""
    if min(shots) < 1 or draws < 2:
        raise errors.PipelineError("--shots must be 1 or more each, and --draws 2 or more, for a standard deviation.")
    counts = np.bincount(y, minlength=len(classes))
    smallest = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    left = counts[smallest] - -(-counts[smallest] // HOLD_OUT_PARTS)
    if left < max(shots):
        raise errors.PipelineError(
            f"The class {classes[smallest]!r} has {errors.counted(counts[smallest], 'training image')}; with a quarter "
            f"held out {left} are left, fewer than --shots {max(shots)}. Take fewer."
        )


def summarise(curve: Sequence[Draw]) -> list[FewShotRow]:
    """Return a row per number of images: means and standard deviations over its draws.

    The rows without unlabelled images come first.
    """
    groups: dict[tuple[str, int], list[Draw]] = {}
    for draw in curve:
        groups.setdefault((draw.unlabelled, draw.shots), []).append(draw)
    return [_row(groups[key], groups["", key[1]]) for key in sorted(groups)]


def _row(draws: Sequence[Draw], alone: Sequence[Draw]) -> FewShotRow:
    """Return the row of draws of the same number of images; alone: these draws without unlabelled images."""
    accuracies, balanced = [draw.accuracy for draw in draws], [draw.balanced_accuracy for draw in draws]
    gain, low, high = _mean_gain(draws, alone) if draws[0].unlabelled else (None, None, None)
    return {
        "shots": draws[0].shots,
        "accuracy": float(np.mean(accuracies)),
        "standard_deviation": float(np.std(accuracies, ddof=1)),
        "balanced_accuracy": float(np.mean(balanced)),
        "balanced_accuracy_standard_deviation": float(np.std(balanced, ddof=1)),
        "draws": len(draws),
        "images": min(draw.images for draw in draws),
        "n_scored": min(draw.n_scored for draw in draws),
        "unlabelled": draws[0].unlabelled,
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
    }


def lines_of(rows: Sequence[FewShotRow]) -> list[str]:
    """Return rows as lines of text: first those of labels alone, then those with other images without labels."""
    lines = []
    for row in rows:
        figures = f"{row['shots']:4} per class: {row['accuracy']:.4f} ± {row['standard_deviation']:.4f}"
        if not row["unlabelled"]:
            lines.append(f"{figures} (standard deviation)")
            continue
        if row["shots"] == rows[0]["shots"]:
            lines.append(f"With other images without their labels, by {row['unlabelled']}:")
        lines.append(f"{figures}, {gain_text(row)}")
    return lines


def gain_text(row: FewShotRow) -> str:
    """Say what images without a label brought to a row that has them, and whether that helps."""
    gain, low, high = (cast(float, row[name]) for name in ("gain", "gain_low", "gain_high"))
    verdict = "" if low > 0 else ": they do harm" if high < 0 else ": that may be chance"
    return f"a gain of {gain:+.4f} (95% {low:+.4f} to {high:+.4f}, paired){verdict}"


def _mean_gain(draws: Sequence[Draw], alone: Sequence[Draw]) -> tuple[float, float, float]:
    """Return the mean gain over draws of the same images, and the ends of its 95% interval by Student's t."""
    gains = [one.accuracy - other.accuracy for one, other in zip(draws, alone, strict=True)]
    mean, quantile = float(np.mean(gains)), float(student.ppf((1 + scoring.CONFIDENCE) / 2, len(gains) - 1))
    half = quantile * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    return mean, mean - half, mean + half
