"""Figures and tables of a search: the cross-validated accuracy of each setting, and accuracy against few images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.reporting import figures

CV_COLUMNS = ("normalise", "parameters", "accuracy", "deviation", "converged", "seconds", "chosen", "folds")
SHOTS_COLUMNS = ("shots", "accuracy", "deviation", "balanced", "balanced_deviation", "draws", "n_scored")


def write_cv(path: Path, table: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], measure: str) -> None:
    """Write the CV table to `path` (.csv), and its curves beside it (.png); measure: what the accuracy is."""
    rows = [
        row | {"chosen": int(row == chosen), "parameters": json.dumps(row["parameters"])} for row in map(dict, table)
    ]
    rows = [row | {"folds": " ".join(f"{accuracy:.6g}" for accuracy in row["folds"])} for row in rows]
    files.write_csv(path, CV_COLUMNS, [[row[name] for name in CV_COLUMNS] for row in rows])
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        _, others = _place(row)
        lines.setdefault(", ".join([row["normalise"], *others]), []).append(row)
    with figures.new_figure(path.with_suffix(".png"), 7, 4.5) as figure:
        axes = figure.add_subplot()
        for name, points in lines.items():
            points = sorted(points, key=lambda row: _place(row)[0])
            errors = [row["deviation"] / len(row["folds"]) ** 0.5 for row in points]
            axes.errorbar(
                [_place(row)[0] for row in points],
                [row["accuracy"] for row in points],
                errors,
                marker="o",
                capsize=3,
                label=name,
            )
        axes.plot([_place(chosen)[0]], [chosen["accuracy"]], "o", ms=14, mfc="none", mec="black", label="chosen")
        axes.set(xscale="log", xlabel=next(iter(chosen["parameters"]), ""), ylabel=f"cross-validated {measure}")
        axes.set_title(f"mean ± standard error over {len(chosen['folds'])} folds")
        axes.legend()


def _place(row: Mapping[str, Any]) -> tuple[float, list[str]]:
    """Return the value of the first parameter, and what the others are."""
    (_, value), *others = list(row["parameters"].items()) or [("", 1)]
    numeric = isinstance(value, (int, float)) and value > 0
    return (value if numeric else 1), [f"{name}={other}" for name, other in others]


def write_shots(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write accuracy against images a class to `path` (.csv), and its curve beside it (.png)."""
    files.write_csv(path, SHOTS_COLUMNS, [[row[name] for name in SHOTS_COLUMNS] for row in rows])
    with figures.new_figure(path.with_suffix(".png"), 7, 4.5) as figure:
        axes = figure.add_subplot()
        counts = [row["shots"] for row in rows]
        for name, spread in (("accuracy", "deviation"), ("balanced", "balanced_deviation")):
            axes.errorbar(
                counts, [row[name] for row in rows], [row[spread] for row in rows], marker="o", capsize=3, label=name
            )
        axes.set(xlabel="training images a class", ylabel="accuracy on training images held out")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_title(f"mean ± standard deviation over {rows[0]['draws']} draws, {rows[0]['n_scored']} images scored")
        axes.legend()
