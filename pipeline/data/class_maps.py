"""CSV files that say which class of a dataset each of a network's own classes stands for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.csv_rows import read_columns
from pipeline.errors import PipelineError, beside, unknown

logger = logging.getLogger(__name__)

COLUMNS = ("source", "class")
"""The columns of such a file."""


def read_pairs(path: Path, sources: Sequence[str], classes: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return the pairs of a source class and a class, by their numbers, that a CSV file names; log classes without any.

    sources, classes: the names of the network's own classes, and of the dataset's.
    """
    if not path.exists():
        raise PipelineError(f"There is no CSV file at {path}.{beside(path)} Name one with --source-map.")
    pairs: dict[int, int] = {}
    for row in read_columns(path, COLUMNS):
        where, source = f"{path}, line {row.line}", row.cells["source"]
        number = _number(source, sources, "source class", where)
        label = _number(row.cells["class"], classes, "class", where)
        if pairs.setdefault(number, label) != label:
            raise PipelineError(f"{where}: the source class {source!r} stands for another class above. Take one out.")
    if not pairs:
        raise PipelineError(f"{path} has no line but the first. Write which source class stands for which class.")
    if lacking := [name for number, name in enumerate(classes) if number not in pairs.values()]:
        logger.warning("No source class stands for %s: it is never predicted.", ", ".join(map(repr, lacking)))
    return tuple(pairs.items())


def _number(name: str, names: Sequence[str], kind: str, where: str) -> int:
    """Return the place of a name among others; where a name occurs twice, that of the first."""
    if name.strip() not in names:
        raise unknown(kind, name.strip(), names, where=where)
    return names.index(name.strip())
