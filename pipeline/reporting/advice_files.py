"""The files that `advise` writes: advice.json for the report, tables and a figure; and its table of text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.analysis.layer_measures import CurvePoint, LayerMeasures
from pipeline.analysis.recommendation import Advice, DatasetFacts, Tried
from pipeline.analysis.source_view import ClassView
from pipeline.reporting import figures

TABLES = LAYERS, CURVE, SOURCE_CLASSES = "layers.csv", "curve.csv", "source_classes.csv"
FIGURE = "layers.png"


def write_advice(
    folder: Path,
    measured: Sequence[LayerMeasures],
    facts: DatasetFacts,
    advice: Advice,
    points: Sequence[CurvePoint],
    seen: Sequence[ClassView],
    tried: Tried | str | None = None,
) -> None:
    """Write layers.csv, layers.png, curve.csv, source_classes.csv and, last, advice.json."""
    rows = [asdict(layer) | {"setting": json.dumps(layer.setting)} for layer in measured]
    files.write_csv(folder / LAYERS, list(rows[0]), [list(row.values()) for row in rows])
    draw_measures(folder / FIGURE, measured)
    traced = [asdict(point) for point in points]
    if traced:
        files.write_csv(folder / CURVE, list(traced[0]), [list(row.values()) for row in traced])
    shares = [(view["label"], view["n"], *share) for view in seen for share in view["seen"]]
    if shares:
        files.write_csv(folder / SOURCE_CLASSES, ["class", "n", "source_class", "share"], shares)
    content = {
        "advice": asdict(advice),
        "dataset": asdict(facts),
        "layers": [asdict(layer) for layer in measured],
        "curve": traced,
        "source_classes": seen,
        "finetuning": asdict(tried) if isinstance(tried, Tried) else None,
    }
    files.write_json(folder / "advice.json", content)


def write_no_advice(folder: Path, reason: str) -> None:
    """Write advice.json with the reason why there is no advice, and remove what earlier advice left."""
    for name in (*TABLES, FIGURE):
        (folder / name).unlink(missing_ok=True)
    files.write_json(folder / "advice.json", {"no_advice": reason})


def draw_measures(path: Path, measured: Sequence[LayerMeasures]) -> None:
    """Draw accuracy, LogME and H-score of each layer."""
    places = range(len(measured))
    accuracy = np.array([layer.accuracy for layer in measured])
    spans = np.abs(np.array([[layer.low, layer.high] for layer in measured]).T - accuracy)
    with figures.new_figure(path, max(5, 0.6 * len(measured) + 2), 7) as figure:
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        top.errorbar(places, accuracy, spans, marker="o", capsize=3)
        middle.plot(places, [layer.log_me for layer in measured], marker="o")
        bottom.plot(places, [layer.h_score for layer in measured], marker="o")
        for axes, name in ((top, "cross-validated accuracy"), (middle, "LogME"), (bottom, "H-score, shrunk")):
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
        bottom.set_xticks(places, [layer.layer for layer in measured], rotation=45, ha="right", parse_math=False)


def table_of_measures(measured: Sequence[LayerMeasures], best: str) -> str:
    """Return the measures as a table of text, the most accurate layer first; `best` is marked."""
    lines = [f"{'layer':<12} {'width':>6} {'accuracy':>8}  {'95% interval':<15} {'LogME':>8} {'H-score':>8}"]
    for layer in sorted(measured, key=lambda layer: -layer.accuracy):
        span = f"{layer.low:.4f}–{layer.high:.4f}"
        mark = "  ← taken" if layer.layer == best else ""
        measures = f"{layer.log_me:>8.4f} {layer.h_score:>8.4f}{mark}"
        lines.append(f"{layer.layer:<12} {layer.width:>6} {layer.accuracy:>8.4f}  {span:<15} {measures}")
    return "\n".join(lines)
