"""Show all experiments on one page that opens offline: scores, mistakes, suspected label errors, provenance."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from pipeline import command_line, errors, files
from pipeline.config import Report
from pipeline.paths import ADDRESS_WORDS
from pipeline.reporting.experiments import find_experiments, find_multi_label
from pipeline.reporting.page_data import Scores

EXAMPLE = "python -m pipeline.report --dataset digits"
COLUMNS = ("dataset", "backbone", "layer", "model", "top-1", "95% interval", "balanced", "n")
MULTI_LABEL_COLUMNS = (*COLUMNS[:4], "mAP", "95% interval", "VOC 2007", "n")
MEGABYTE = 1_000_000


def table(rows: Sequence[Scores]) -> str:
    """Return the scores of images with one label as a table of text."""
    return _align(COLUMNS, [_cells(row, "top1", "balanced_accuracy") for row in rows])


def multi_label_table(rows: Sequence[Scores]) -> str:
    """Return the scores of multi-label images as a table of text."""
    return _align(MULTI_LABEL_COLUMNS, [_cells(row, "map", "map_voc07") for row in rows])


def _cells(row: Mapping[str, object], score: str, other: str) -> list[str]:
    figures = [f"{row[score]:.4f}", f"{row[f'{score}_low']:.4f}–{row[f'{score}_high']:.4f}", f"{row[other]:.4f}"]
    return [*(str(row[word]) for word in ADDRESS_WORDS), *figures, str(row["n"])]


def _align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def run(settings: Report) -> None:
    """Print the table, write the page, and print where it is."""
    if settings.thumbnails < 0:
        raise errors.PipelineError(f"--thumbnails {settings.thumbnails} must be megabytes, 0 or more.")
    scope = (settings.reports, settings.dataset, settings.backbone)
    rows, multi_label = find_experiments(*scope), find_multi_label(*scope)
    path, notes = settings.out or settings.reports / "index.html", list[str]()
    if not settings.table:
        from pipeline.reporting import rendering, summary

        content = summary.summarise(settings.reports, rows, int(settings.thumbnails * MEGABYTE), multi_label)
        files.write_text(path, rendering.render(content))
        notes = [f"{one['name']}: {one['note']}" for one in content["experiments"] if one["note"]]
    tables = [*([table(rows)] if rows else []), *([multi_label_table(multi_label)] if multi_label else [])]
    print("\n\n".join(tables))
    for note in notes:
        print(note)
    if path.exists():
        print(f"\nThe report: {path} ({path.stat().st_size / MEGABYTE:.1f} MB; open it in a browser)")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("report", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
