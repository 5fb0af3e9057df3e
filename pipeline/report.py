"""Gather the scores of all experiments in one table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipeline import errors, experiment
from pipeline.errors import PipelineError

EXAMPLE = "python -m pipeline.report"
COLUMNS = ("dataset", "backbone", "layer", "model", "top-1", "95% interval", "balanced", "n")


def summarise(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of every experiment under a folder of reports, the best first within each dataset."""
    rows = []
    for path in sorted(folder.glob("*/*/*/metrics.json")):
        dataset, backbone, name = path.parts[-4:-1]
        layer, model = name.rsplit("-", 1)
        address = {"dataset": dataset, "backbone": backbone, "layer": layer, "model": model}
        rows.append(address | json.loads(path.read_text(encoding="utf-8")))
    if not rows:
        raise PipelineError(
            f"There are no scores under {folder}. Make them: dvc repro, or python -m pipeline.evaluate."
        )
    return sorted(rows, key=lambda row: (row["dataset"], -row["top1"]))


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of text."""
    cells = [COLUMNS] + [
        (
            *(row[word] for word in COLUMNS[:4]),
            f"{row['top1']:.4f}",
            f"{row['top1_low']:.4f}–{row['top1_high']:.4f}",
            f"{row['balanced']:.4f}",
            str(row["n"]),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags, with defaults from params.yaml."""
    parser = experiment.command("report", __doc__, EXAMPLE, ())
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="the folder of the scores")
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    print(render(summarise(options.reports)))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
