"""What `advise` wrote about datasets and backbones: its sentences, and charts of its measures and curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from pipeline import errors
from pipeline.paths import Experiment
from pipeline.reporting.charts import Chart, Point, Titles, lay_out
from pipeline.reporting.experiment_charts import layer_ticks
from pipeline.reporting.page_data import AdviceSummary, Scores


class LayerMeasures(TypedDict):
    """A layer in advice.json: cross-validated accuracy with its 95% interval, and two measures of transferability."""

    layer: str
    accuracy: float
    low: float
    high: float
    log_me: float
    h_score: float


class CurvePoint(TypedDict):
    """A point of the curves in advice.json: accuracy of a layer, from `shots` training images per class.

    relu: "post" for codes after the layer's ReLU, "pre" for codes before it.
    """

    layer: str
    relu: str
    shots: int
    accuracy: float
    low: float
    high: float


def read_advice(folder: Path, experiments: Iterable[Scores]) -> list[AdviceSummary]:
    """Return the advice on each dataset and backbone of these experiments, from a folder of reports."""
    addresses = dict.fromkeys((scores["dataset"], scores["backbone"]) for scores in experiments)
    inside = {address: Experiment(*address).advice.relative_to("reports") for address in addresses}
    paths = {address: folder / path / "advice.json" for address, path in inside.items()}
    return [_summarise(*address, path) for address, path in paths.items() if path.exists()]


def _summarise(dataset: str, backbone: str, path: Path) -> AdviceSummary:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if reason := content.get("no_advice"):
            return _absent(dataset, backbone, f"No advice: {reason}")
        advice, layers = content["advice"], content["layers"]
        low = next(row["low"] for row in layers if row["layer"] == advice["layer"])
        return {
            "dataset": dataset,
            "backbone": backbone,
            "layer": advice["layer"],
            "as_good": [row["layer"] for row in layers if row["accuracy"] >= low],
            "fine_tune": advice["fine_tune"],
            "tried": content["finetuning"] is not None,
            "sentences": advice["sentences"],
            "measures": advice["measures"],
            "charts": [measures_chart(layers), *curve_charts(content["curve"])],
            "source_classes": content["source_classes"],
        }
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise errors.PipelineError(
            f"{path} is damaged or was written by an earlier release ({error!r}). Write it again: "
            f"python -m pipeline.advise --dataset {dataset} --backbone {backbone}."
        ) from error


def _absent(dataset: str, backbone: str, sentence: str) -> AdviceSummary:
    """Return the summary where no advice could be given; sentence: why."""
    return {
        "dataset": dataset,
        "backbone": backbone,
        "layer": "",
        "as_good": [],
        "fine_tune": False,
        "tried": False,
        "sentences": [sentence],
        "measures": [],
        "charts": [],
        "source_classes": [],
    }


def measures_chart(layers: Sequence[LayerMeasures]) -> Chart:
    """Return the chart of cross-validated accuracy against layer; the points' titles tell the other measures too."""
    points = [
        Point(place, row["accuracy"], row["low"], row["high"], _measures_title(row)) for place, row in enumerate(layers)
    ]
    titles = Titles("all images", "layer", "cross-validated accuracy")
    return lay_out({"all training images": points}, layer_ticks(row["layer"] for row in layers), titles)


def _measures_title(row: LayerMeasures) -> str:
    return f"{row['layer']}: {row['accuracy']:.4f}, LogME {row['log_me']:.4f}, H-score {row['h_score']:.4f}"


def curve_charts(points: Sequence[CurvePoint]) -> list[Chart]:
    """Return the charts of accuracy against layer after and before the ReLU; a line per number of training images."""
    relus = dict.fromkeys(point["relu"] for point in points)
    return [_curve_chart(relu, [point for point in points if point["relu"] == relu]) for relu in relus]


def _curve_chart(relu: str, points: Sequence[CurvePoint]) -> Chart:
    layers = list(dict.fromkeys(point["layer"] for point in points))
    lines: dict[str, list[Point]] = {}
    for point in points:
        title = f"{point['layer']}, {point['shots']} per class: {point['accuracy']:.4f}"
        place = Point(layers.index(point["layer"]), point["accuracy"], point["low"], point["high"], title)
        lines.setdefault(f"{point['shots']} images per class", []).append(place)
    where = "after" if relu == "post" else "before"
    return lay_out(lines, layer_ticks(layers), Titles(f"few images, {where} the ReLU", "layer", "accuracy"))
