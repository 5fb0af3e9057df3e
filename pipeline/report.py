"""Show all on one page that opens offline: scores, mistakes, suspected label errors, images without labels.

Example: python -m pipeline.report --dataset digits
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("report")

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import errors, files, hints
from pipeline.codes.reader import CodesIndex
from pipeline.config import Report
from pipeline.paths import ADDRESS_WORDS
from pipeline.reporting.experiments import (
    find_experiments,
    find_multi_label,
    find_unscored,
    in_one_line,
    read_unscored,
)
from pipeline.reporting.page_data import Scores

logger = logging.getLogger(__name__)

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


def read_images(settings: Report) -> dict[str, CodesIndex]:
    """Return {dataset: all but the codes} of the datasets that have codes and no scores.

    Those whose codes cannot be shown are named in the log; for one that is asked for by name PipelineError is raised.
    """
    found: dict[str, CodesIndex] = {}
    for name, paths in find_unscored(settings.reports, settings.dataset, settings.backbone, settings.layer).items():
        try:
            found[name] = read_unscored(name, paths[0])
        except errors.PipelineError as error:
            if settings.dataset:
                raise
            logger.warning("%s is left out: %s", name, in_one_line(hints.completed(error, {"dataset": name})))
        if len(paths) > 1:
            others = ", ".join(str(path.relative_to(Path("features", name)).with_suffix("")) for path in paths[1:])
            logger.info(
                "%s: of its codes the last ones are shown; --backbone and --layer show others: %s", name, others
            )
    return found


def images_line(name: str, index: CodesIndex) -> str:
    """Say that the page shows the images of a dataset without scores."""
    images, spec = errors.counted(len(index.paths), "image"), index.spec
    return f"{name}: {images}, no scores; what the codes of {spec.backbone}, {spec.layer} tell of them is on the page."


def run(settings: Report) -> None:
    """Print the table, write the page, and print where it is."""
    if settings.thumbnails < 0:
        raise errors.PipelineError(f"--thumbnails {settings.thumbnails} must be megabytes, 0 or more.")
    scope = (settings.reports, settings.dataset, settings.backbone, settings.layer)
    unscored = {} if settings.table else read_images(settings)
    rows, multi_label = find_experiments(*scope, may_be_none=bool(unscored)), find_multi_label(*scope)
    path, notes = settings.out or settings.reports / "index.html", list[str]()
    if not settings.table:
        from pipeline.reporting import rendering, summary

        content = summary.summarise(settings.reports, rows, int(settings.thumbnails * MEGABYTE), multi_label, unscored)
        files.write_text(path, rendering.render(content))
        notes = [f"{one['name']}: {one['note']}" for one in content["experiments"] if one["note"]]
        notes += [images_line(name, index) for name, index in unscored.items()]
    tables = [*([table(rows)] if rows else []), *([multi_label_table(multi_label)] if multi_label else [])]
    if tables:
        print("\n\n".join(tables))
    for note in notes:
        print(note)
    if path.exists():
        print(f"\nThe report: {path} ({path.stat().st_size / MEGABYTE:.1f} MB; open it in a browser)")
