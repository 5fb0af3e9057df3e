"""Charts of learned weights of source classes, alpha and reward against epochs, from what `finetune` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pipeline import files
from pipeline.analysis.source_weights import extremes
from pipeline.reporting.charts import Chart, Titles, lay_out
from pipeline.reporting.experiment_charts import epoch_points, epoch_ticks
from pipeline.reporting.experiments import address_of, report_folder
from pipeline.reporting.page_data import Scores

WEIGHTS, STEPS, EPOCHS, FIGURE = "source_weights.csv", "source_steps.csv", "source_epochs.csv", "source_weights.png"
"""The files of a run that learned weights: those at the end, alpha and reward by step, weights by epoch, a figure."""

NAMED = 4
"""How many of the heaviest and of the lightest classes have a line."""


def source_charts(folder: Path, scores: Scores) -> list[Chart]:
    """Return the charts of a network that learned weights of source classes; none of other experiments."""
    address = address_of(scores)
    report = report_folder(folder, address)
    if not all((report / name).exists() for name in (WEIGHTS, STEPS, EPOCHS)):
        return []
    name, steps = f"{address.name}/{address.backbone}/{address.layer}-{address.model}", files.read_csv(report / STEPS)
    charts = [_weights_chart(name, files.read_csv(report / WEIGHTS), files.read_csv(report / EPOCHS))]
    return charts + [_steps_chart(name, steps, column) for column in ("alpha", "reward") if steps]


def _weights_chart(name: str, at_end: Sequence[Mapping[str, str]], by_epoch: Sequence[Mapping[str, str]]) -> Chart:
    """Return the expected weights of the heaviest and the lightest classes; at_end: the heaviest first."""
    shown = extremes([row["class"] for row in at_end], NAMED)
    rows = {label: [row for row in by_epoch if row["class"] == label] for label in shown}
    lines = {label: epoch_points(rows_of_class, "weight") for label, rows_of_class in rows.items()}
    ticks = epoch_ticks(max(int(row["epoch"]) for row in by_epoch))
    return lay_out(lines, ticks, Titles(name, "epoch", "weight of a source class"), y_range=(0, 1))


def _steps_chart(name: str, steps: Sequence[Mapping[str, str]], column: str) -> Chart:
    """Return the mean of a column over the steps of each epoch."""
    by_epoch: dict[str, list[float]] = {}
    for row in steps:
        by_epoch.setdefault(row["epoch"], []).append(float(row[column]))
    means = [{"epoch": epoch, column: str(fmean(values))} for epoch, values in by_epoch.items()]
    titles = Titles(name, "epoch", f"{column}, mean of the steps")
    return lay_out({column: epoch_points(means, column)}, epoch_ticks(int(means[-1]["epoch"])), titles)
