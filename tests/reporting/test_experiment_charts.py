"""experiment_charts: what the files of experiments say, as lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import PAGE

from pipeline import files
from pipeline.networks import backbones, layer_nodes
from pipeline.reporting import experiment_charts, rendering
from pipeline.reporting.experiments import find_experiments


def test_layers_are_in_the_order_of_the_network() -> None:
    layers = {"fc7", "conv1", "pool3", "fc6", "features.24"}
    assert layer_nodes.sort_layers(backbones.get("tinyvgg"), layers) == ["conv1", "pool3", "features.24", "fc6", "fc7"]
    assert layer_nodes.sort_layers(backbones.get("tinyvgg"), ["logits", "fc6+fc7"]) == ["fc6+fc7", "logits"]
    assert experiment_charts.order_layers("unknown", {"b", "a"}) == ["a", "b"]


def test_few_shot_curves_are_drawn(scored: Callable[..., Outcome]) -> None:
    flags = ("--model", "svm", "--grid", "{l2: {C: [1, 10, 100]}}", "--shots", 1, 2, 4, "--draws", 2)
    assert scored("classify", *flags, "--unlabelled", "label-spreading").code == 0
    rows = files.read_csv(Path("models/digits/tinyvgg/fc7-svm-shots.csv"))
    (chart,) = experiment_charts.few_shot_charts(find_experiments(Path("reports")))
    line, together = chart.lines
    assert (line.name, together.name) == ("fc7, svm", "fc7, svm, label-spreading") and [
        tick.label for tick in chart.x_ticks
    ] == ["1", "2", "4"]
    first, second, third = line.points
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.2)
    for point, row in zip((*line.points, *together.points), rows, strict=True):
        assert point.title.startswith(f"{row['shots']} per class: {float(row['accuracy']):.4f} ± ")
    accuracies = [-float(row["accuracy"]) for row in rows[:3]]
    assert np.argsort([point.y for point in line.points]).tolist() == np.argsort(accuracies, kind="stable").tolist()
    scored("report")
    assert "Accuracy against training images per class" in PAGE.read_text() and first.title in PAGE.read_text()
    gain = rendering.points(float(rows[3]["gain"]))
    assert re.search(rf"1 per class, 2 draws</td><td>label-spreading</td>.*>{re.escape(gain)} \(", PAGE.read_text())


def test_epochs_have_few_ticks_and_one_at_the_end() -> None:
    places = [[tick.place for tick in experiment_charts.epoch_ticks(last)] for last in (1, 6, 20)]
    assert places == [[0, 1], [0, 1, 2, 3, 4, 5, 6], [0, 3, 6, 9, 12, 15, 18, 20]]
