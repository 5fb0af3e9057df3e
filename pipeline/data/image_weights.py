"""How often images count in training, by a column of the manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline import errors
from pipeline.data.manifest import Manifest
from pipeline.paths import MANIFEST


def read_weights(manifest: Manifest, column: str, paths: Sequence[str]) -> np.ndarray:
    """Return the weight of each of some images, (n,) float64 of 0 or more, by a metadata column of their manifest.

    Raises PipelineError for a column that does not exist, for what is no such number, and where all are 0.
    """
    if column not in manifest.metadata:
        raise errors.unknown("column", column, manifest.metadata, where=f"--weight-by in {manifest.root / MANIFEST}")
    cells = dict(zip(manifest.paths, manifest.metadata[column], strict=True))
    weights = np.array(
        [_parse(cells[path], f"{manifest.root / MANIFEST}, column {column!r}, {path}") for path in paths]
    )
    if not weights.any():
        raise errors.PipelineError(
            f"All training images of {manifest.root} have the weight 0 in the column {column!r}. Give some more, and "
            "prepare the dataset again."
        )
    return weights


def _parse(cell: str, where: str) -> float:
    try:
        weight = float(cell)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        what = repr(cell) if cell else "an empty cell"
        raise errors.PipelineError(
            f"{where}: {what} is no weight. Write a number of 0 or more, and prepare the dataset again."
        )
    return weight
