"""Tables and figures of `classify`: the cross-validated accuracy of each setting, and few-shot curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import files
from pipeline.classifiers.cv_table import CVRow
from pipeline.classifiers.few_shot import FewShotRow
from pipeline.reporting import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CV_COLUMNS = (
    *("normalisation", "parameters", "accuracy", "standard_deviation"),
    *("converged", "seconds", "chosen", "folds"),
)


def write_cv(path: Path, table: Sequence[CVRow], chosen: CVRow, measure: str) -> None:
    """Write the CV table to `path` (.csv), and its curves beside it (.png); measure: what the accuracies are."""
    files.write_csv(path, CV_COLUMNS, [_cells(row, row == chosen) for row in table])
    with figures.new_figure(path.with_suffix(".png"), 7, 4.5) as figure:
        axes = figure.add_subplot()
        _draw_lines(axes, table)
        axes.plot([_place(chosen)], [chosen["accuracy"]], "o", ms=14, mfc="none", mec="black", label="chosen")
        axes.set(xscale="log", xlabel=next(iter(chosen["parameters"]), ""), ylabel=f"cross-validated {measure}")
        axes.set_title(f"mean ± standard error over {len(chosen['folds'])} folds")
        axes.legend()


def _cells(row: CVRow, chosen: bool) -> list[object]:
    """Return a row of the table as cells of CV_COLUMNS."""
    texts = {
        "parameters": json.dumps(row["parameters"]),
        "chosen": int(chosen),
        "folds": " ".join(f"{accuracy:.6g}" for accuracy in row["folds"]),
    }
    cells = {**row, **texts}
    return [cells[name] for name in CV_COLUMNS]


def _draw_lines(axes: Axes, table: Sequence[CVRow]) -> None:
    """Draw accuracy against the first parameter, a line per normalisation and value of the other parameters."""
    lines: dict[str, list[CVRow]] = {}
    for row in table:
        others = [f"{name}={value}" for name, value in list(row["parameters"].items())[1:]]
        lines.setdefault(", ".join([row["normalisation"], *others]), []).append(row)
    for name, line in lines.items():
        rows = sorted(line, key=_place)
        accuracies = [row["accuracy"] for row in rows]
        standard_errors = [row["standard_deviation"] / len(row["folds"]) ** 0.5 for row in rows]
        axes.errorbar([*map(_place, rows)], accuracies, standard_errors, marker="o", capsize=3, label=name)


def _place(row: CVRow) -> float:
    """Return the value of the first parameter, 1 where it is not a positive number."""
    value = next(iter(row["parameters"].values()), 1)
    return value if isinstance(value, (int, float)) and value > 0 else 1


def few_shot_path(classifier: Path) -> Path:
    """Return where the few-shot curve lies, beside a classifier's file."""
    return classifier.with_name(f"{classifier.stem}-shots.csv")


def write_few_shot_curve(path: Path, rows: Sequence[FewShotRow]) -> None:
    """Write accuracy against images per class to `path` (.csv), and its curve beside it (.png)."""
    files.write_csv(path, list(FewShotRow.__annotations__), [list(row.values()) for row in rows])
    with figures.new_figure(path.with_suffix(".png"), 7, 4.5) as figure:
        axes, shots = figure.add_subplot(), sorted({row["shots"] for row in rows})
        for method in dict.fromkeys(row["unlabelled"] for row in rows):
            of_method = [row for row in rows if row["unlabelled"] == method]
            suffix = f", with unlabelled images by {method}" if method else ""
            for measure, prefix in (("accuracy", ""), ("balanced_accuracy", "balanced_accuracy_")):
                means, bars = ([row[name] for row in of_method] for name in (measure, f"{prefix}standard_deviation"))  # type: ignore[literal-required]
                label = measure.replace("_", " ") + suffix
                axes.errorbar([row["shots"] for row in of_method], means, bars, marker="o", capsize=3, label=label)
        axes.set(xlabel="training images per class", ylabel="accuracy on held-out training images")
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(count) for count in shots])
        axes.set_title(f"mean ± standard deviation over {rows[0]['draws']} draws, {rows[0]['images']} images scored")
        axes.legend()
