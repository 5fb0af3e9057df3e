"""Tables and a figure of learned weights of source classes: their means, and alpha and reward over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import files
from pipeline.analysis.source_weights import extremes
from pipeline.finetuning.source import Source
from pipeline.finetuning.weighing import LearnedWeights
from pipeline.reporting import figures
from pipeline.reporting.source_charts import EPOCHS, FIGURE, NAMED, STEPS, WEIGHTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write(folder: Path, source: Source, learned: LearnedWeights) -> None:
    """Write tables of the weights at the end, which --source-weights takes, of each epoch and the steps; draw them."""
    classes, weights = source.manifest.classes, learned.expected().weights
    rows = list(zip(classes, source.counts().tolist(), weights.tolist(), strict=True))
    order = np.argsort(-weights, kind="stable")
    files.write_csv(folder / WEIGHTS, ("class", "n", "weight"), [rows[number] for number in order])
    files.write_csv(folder / STEPS, ("epoch", "step", "alpha", "reward", "average_reward"), learned.steps)
    by_epoch = ((epoch, *pair) for epoch, row in learned.weights.items() for pair in zip(classes, row, strict=True))
    files.write_csv(folder / EPOCHS, ("epoch", "class", "weight"), by_epoch)
    draw(folder / FIGURE, classes, learned)


def draw(path: Path, classes: Sequence[str], learned: LearnedWeights) -> None:
    """Draw the weights of classes against epochs; alpha and reward against steps."""
    with figures.new_figure(path, 8, 9) as figure:
        of_classes, of_alpha, of_reward = figure.subplots(3)
        _draw_classes(of_classes, classes, learned)
        steps = np.array(learned.steps).reshape(-1, 5)
        _draw_steps(of_alpha, steps[:, 2], _moving_average(steps[:, 2]), "alpha")
        _draw_steps(of_reward, steps[:, 3], steps[:, 4], f"reward ({learned.reward})")
        of_reward.set_xlabel("step")


def remove(folder: Path) -> None:
    """Delete what an earlier run wrote."""
    for name in (WEIGHTS, STEPS, EPOCHS, FIGURE):
        (folder / name).unlink(missing_ok=True)


def _draw_classes(axes: Axes, classes: Sequence[str], learned: LearnedWeights) -> None:
    """Draw the expected weight of the heaviest and lightest classes against epochs."""
    shown = extremes(np.argsort(-learned.expected().weights, kind="stable").tolist(), NAMED)
    epochs, weights = list(learned.weights), np.array(list(learned.weights.values()))
    for place, number in enumerate(shown):
        style = "-" if place < len(shown) / 2 else "--"
        # A dollar sign would start a formula, and a leading underscore hide the line from the legend
        name = " " + classes[number].replace("$", r"\$")
        axes.plot(epochs, weights[:, number], style, label=name)
    axes.set(xlabel="epoch", ylabel="expected weight", ylim=(0, 1))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_steps(axes: Axes, values: np.ndarray, averages: np.ndarray, name: str) -> None:
    axes.plot(values, ".", markersize=2, color="lightgrey")
    axes.plot(averages)
    axes.set_ylabel(name)


def _moving_average(values: np.ndarray, width: int = 50) -> np.ndarray:
    """Return the mean of each value and those before it, `width` at most."""
    sums = np.r_[0.0, values.cumsum()]
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means
