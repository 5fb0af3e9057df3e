"""The columns of a manifest's file."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

from pipeline import files
from pipeline.texts import BLOCK, Texts


def read_csv(path: Path) -> dict[str, Texts]:
    """Read the columns of a CSV file that `files.write_csv` wrote, by the header's names; none where it has no rows.

    A line with too few or too many values, which was changed by hand, becomes one of empty values.
    """
    with path.open(**files.UTF8) as file:
        lines = csv.reader(file)
        header = next(lines, [])
        rows = (line if len(line) == len(header) else [""] * len(header) for line in lines if line)
        parts: dict[str, list[Texts]] = {}
        while block := list(islice(rows, BLOCK)):
            for name, column in zip(header, zip(*block, strict=True), strict=True):
                parts.setdefault(name, []).append(Texts.of(column))
    return {name: Texts.joined(parts.pop(name)) for name in list(parts)}
