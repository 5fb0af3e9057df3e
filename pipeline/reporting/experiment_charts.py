"""Charts of experiments: accuracy against layer, C, epoch, number of training images, and probability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline import errors, files
from pipeline.analysis.predictions import Calibration, ReliabilityBin
from pipeline.classifiers.cv_table import CVRow
from pipeline.reporting.charts import Chart, Point, Tick, Titles, lay_out
from pipeline.reporting.curves import few_shot_path
from pipeline.reporting.experiments import address_of, report_folder
from pipeline.reporting.page_data import IntervalBar, Scores

MAX_EPOCH_TICKS = 6


def layer_ticks(layers: Iterable[str]) -> list[Tick]:
    """Return a tick for each layer, at 0, 1, …"""
    return [Tick(place, layer) for place, layer in enumerate(layers)]


def interval_bars(experiments: Sequence[Scores]) -> list[IntervalBar]:
    """Return the bars of top-1 accuracies, from the lowest end of an interval to the highest."""
    low = min(scores["top1_low"] for scores in experiments)
    span = max(max(scores["top1_high"] for scores in experiments) - low, 1e-9)
    intervals = [(scores["top1_low"], scores["top1"], scores["top1_high"]) for scores in experiments]
    return [IntervalBar(*(round(100 * (place - low) / span, 1) for place in interval)) for interval in intervals]


def layer_charts(experiments: Sequence[Scores]) -> list[Chart]:
    """Return a chart of accuracy against layer for each dataset and backbone with several layers."""
    groups: dict[tuple[str, str], list[Scores]] = {}
    for scores in experiments:
        groups.setdefault((scores["dataset"], scores["backbone"]), []).append(scores)
    charts = [_layer_chart(dataset, backbone, group) for (dataset, backbone), group in groups.items()]
    return [chart for chart in charts if chart is not None]


def _layer_chart(dataset: str, backbone: str, experiments: Sequence[Scores]) -> Chart | None:
    layers = order_layers(backbone, {scores["layer"] for scores in experiments})
    if len(layers) < 2:
        return None
    lines: dict[str, list[Point]] = {model: [] for model in sorted({scores["model"] for scores in experiments})}
    for scores in sorted(experiments, key=lambda scores: layers.index(scores["layer"])):
        layer, model, accuracy = scores["layer"], scores["model"], scores["top1"]
        title = f"{model}, {layer}: {accuracy:.4f}"
        point = Point(layers.index(layer), accuracy, scores["top1_low"], scores["top1_high"], title)
        lines[model].append(point)
    return lay_out(lines, layer_ticks(layers), Titles(f"{dataset}, {backbone}", "layer", "top-1 accuracy"))


def order_layers(backbone: str, layers: set[str]) -> list[str]:
    """Return layers from a network's input to its output; by name if the network is not known here."""
    if len(layers) < 2:
        return list(layers)
    from pipeline.networks import backbones, layer_nodes

    try:
        return layer_nodes.sort_layers(backbones.get(backbone), layers)
    except (errors.PipelineError, KeyError):
        return sorted(layers)


def training_charts(folder: Path, scores: Scores) -> list[Chart]:
    """Return the charts of loss and of accuracy against epochs of a fine-tuned network; none of other experiments."""
    address = address_of(scores)
    path = report_folder(folder, address) / "epochs.csv"
    epochs = files.read_csv(path) if path.exists() else []
    if len(epochs) < 2:
        return []
    name = f"{address.name}/{address.backbone}/{address.layer}-{address.model}"
    return [_training_chart(name, epochs, measure) for measure in ("loss", "accuracy")]


def _training_chart(name: str, epochs: Sequence[Mapping[str, str]], measure: str) -> Chart:
    lines = {
        split: epoch_points(epochs, f"{prefix}_{measure}")
        for split, prefix in (("training", "train"), ("validation", "val"))
    }
    return lay_out(lines, epoch_ticks(len(epochs) - 1), Titles(name, "epoch", measure))


def epoch_points(epochs: Sequence[Mapping[str, str]], column: str) -> list[Point]:
    """Return a point for each row that has a value in a column; rows: as in a CSV file, with a column epoch."""
    values = [(int(row["epoch"]), float(row[column])) for row in epochs if row[column]]
    return [Point(epoch, value, value, value, f"epoch {epoch}: {value:.4f}", radius=2) for epoch, value in values]


def epoch_ticks(last: int) -> list[Tick]:
    """Return evenly spaced ticks from epoch 0, and one at the last epoch."""
    places = list(range(0, last + 1, max(1, (last + 1) // MAX_EPOCH_TICKS)))
    return [Tick(place, str(place)) for place in dict.fromkeys([*places, last])]


def few_shot_charts(experiments: Sequence[Scores]) -> list[Chart]:
    """Return a chart of accuracy against training images per class for each dataset and backbone.

    The accuracies are those that `classify --shots` wrote beside the classifiers, if it did.
    """
    charts: dict[str, dict[str, list[Point]]] = {}
    for scores in experiments:
        address = address_of(scores)
        path = few_shot_path(address.classifier)
        for row in files.read_csv(path) if path.exists() else ():
            lines = charts.setdefault(f"{address.dataset}, {address.backbone}", {})
            names = (address.layer, address.model, row.get("unlabelled", ""))
            lines.setdefault(", ".join(filter(None, names)), []).append(_few_shot_point(row))
    return [
        lay_out(lines, few_shot_ticks(lines.values()), Titles(title, "training images per class", "accuracy"))
        for title, lines in charts.items()
    ]


def _few_shot_point(row: Mapping[str, str]) -> Point:
    count, mean, deviation = int(row["shots"]), float(row["accuracy"]), float(row["standard_deviation"])
    title = f"{count} per class: {mean:.4f} ± {deviation:.4f} over {row['draws']} draws, n = {row['n_scored']}"
    return Point(math.log2(count), mean, mean - deviation, mean + deviation, title)


def few_shot_ticks(lines: Iterable[Sequence[Point]]) -> list[Tick]:
    """Return a tick at each number of images per class that was measured, on a scale of powers of 2."""
    places = sorted({point.x for points in lines for point in points})
    return [Tick(place, f"{2**place:.0f}") for place in places]


def path_chart(table: Sequence[CVRow], measure: str) -> Chart | None:
    """Return the chart of a cross-validated measure against C; None if there was only one C.

    measure: what the accuracy of the table is.
    """
    rows = sorted((row for row in table if _has_positive_c(row)), key=lambda row: float(row["parameters"]["C"]))
    values = [row["parameters"]["C"] for row in rows]
    if len(set(values)) < 2:
        return None
    lines: dict[str, list[Point]] = {}
    for row in rows:
        others = [f"{name}={value}" for name, value in row["parameters"].items() if name != "C"]
        lines.setdefault(", ".join([row["normalisation"], *others]), []).append(_path_point(row))
    first, last = math.floor(math.log10(values[0])), math.ceil(math.log10(values[-1]))
    ticks = [Tick(power, f"1e{power}") for power in range(first, last + 1)]
    return lay_out(lines, ticks, Titles("", "C", f"cross-validated {measure}"))


def _has_positive_c(row: CVRow) -> bool:
    value = row["parameters"].get("C")
    return isinstance(value, int | float) and value > 0


def _path_point(row: CVRow) -> Point:
    mean, deviation, C = row["accuracy"], row["standard_deviation"], row["parameters"]["C"]
    title = f"C={C:g}: {mean:.4f} ± {deviation:.4f}"
    return Point(math.log10(C), mean, mean - deviation, mean + deviation, title)


def reliability_chart(calibration: Calibration) -> Chart:
    """Return the chart of accuracy against probability; a bin with more images has a larger point."""
    largest = max(row["n"] for row in calibration["bins"])
    points = [_reliability_point(row, radius=2 + 6 * math.sqrt(row["n"] / largest)) for row in calibration["bins"]]
    ticks = [Tick(quarter / 4, f"{quarter / 4:g}") for quarter in range(5)]
    titles = Titles("", "mean probability", "accuracy")
    return lay_out({"test images": points}, ticks, titles, y_range=(0, 1), diagonal=True)


def _reliability_point(row: ReliabilityBin, radius: float) -> Point:
    title = f"{row['n']} images: probability {row['confidence']:.3f}, accuracy {row['accuracy']:.3f}"
    return Point(row["confidence"], row["accuracy"], row["low"], row["high"], title, radius)
