"""Show all experiments on one page that opens offline: scores, mistakes, suspected label errors, provenance."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline import command_line, errors, files
from pipeline.config import Report
from pipeline.reporting.experiments import find_experiments, find_multi_label
from pipeline.reporting.page_data import Scores

EXAMPLE = "python -m pipeline.report --dataset digits"
COLUMNS = ("dataset", "backbone", "layer", "model", "top-1", "95% interval", "balanced", "n")
MEGABYTE = 1_000_000


def table(rows: Sequence[Scores]) -> str:
    """Return the scores as a table of text."""
    cells = [COLUMNS] + [
        (
            row["dataset"],
            row["backbone"],
            row["layer"],
            row["model"],
            f"{row['top1']:.4f}",
            f"{row['top1_low']:.4f}–{row['top1_high']:.4f}",
            f"{row['balanced_accuracy']:.4f}",
            str(row["n"]),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def run(settings: Report) -> None:
    """Print the table, write the page, and print where it is."""
    if settings.thumbnails < 0:
        raise errors.PipelineError(f"--thumbnails {settings.thumbnails} must be megabytes, 0 or more.")
    scope = (settings.reports, settings.dataset, settings.backbone)
    rows, others = find_experiments(*scope), find_multi_label(*scope)
    if others:
        print(f"Left out, since they are multi-label: {', '.join(others)}")
    if not rows:
        return
    path = settings.out or settings.reports / "index.html"
    if not settings.table:
        from pipeline.reporting import rendering, summary

        content = summary.summarise(settings.reports, rows, int(settings.thumbnails * MEGABYTE))
        files.write_text(path, rendering.render(content))
    print(table(rows))
    if path.exists():
        print(f"\nThe report: {path} ({path.stat().st_size / MEGABYTE:.1f} MB; open it in a browser)")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("report", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
