"""Show all experiments on one page that opens offline: scores, mistakes, doubtful images, where it all comes from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import config, errors
from pipeline.reporting.experiments import find_experiments, find_multi_label

EXAMPLE = "python -m pipeline.report --dataset digits"
COLUMNS = ("dataset", "backbone", "layer", "model", "top-1", "95% interval", "balanced", "n")
MEGABYTE = 1_000_000


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the experiments as a table of text."""
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


def write(path: Path, html: str) -> None:
    """Write the page beside `path` and move it in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = config.command("report", __doc__, EXAMPLE, ())
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="the folder of the scores")
    for word in ("dataset", "backbone"):
        parser.add_argument(f"--{word}", help=f"show the experiments of this {word} only")
    parser.add_argument("--out", type=Path, help="the page (default: index.html in the folder of the scores)")
    parser.add_argument("--thumbnails", type=float, default=8.0, help="megabytes of them at most")
    parser.add_argument("--table", action="store_true", help="print the table, and leave the page as it is")
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the table, write the page, and say where it lies."""
    if options.thumbnails < 0:
        raise errors.PipelineError(f"--thumbnails {options.thumbnails} must be megabytes, 0 or more.")
    scope = (options.reports, options.dataset, options.backbone)
    rows, others = find_experiments(*scope), find_multi_label(*scope)
    if others:
        print(f"Left out, since their images have several labels each: {', '.join(others)}")
    if not rows:
        return
    path = options.out or options.reports / "index.html"
    if not options.table:
        from pipeline.reporting import rendering, summary

        write(path, rendering.render(summary.summarise(options.reports, rows, int(options.thumbnails * MEGABYTE))))
    print(table(rows))
    if path.exists():
        print(f"\nThe report: {path} ({path.stat().st_size / MEGABYTE:.1f} MB; open it in a browser)")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run_command(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
