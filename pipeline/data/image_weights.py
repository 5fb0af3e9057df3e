"""How often images count in training, by a column of the manifest."""

from __future__ import annotations

import numpy as np

from pipeline import errors, files
from pipeline.data.manifest import Manifest
from pipeline.paths import MANIFEST
from pipeline.texts import Texts

MOST = 1e6
"""The largest weight; its inverse is the smallest but 0. Solvers take weights in float32, and sum them."""


def read_weights(manifest: Manifest, column: str, paths: Texts) -> np.ndarray:
    """Return the weight of each of some images, (n,) float64, by a metadata column of their manifest.

    Raises PipelineError for a column that does not exist, for what is no such number, and where all are 0.
    """
    if column not in manifest.metadata:
        raise errors.unknown("column", column, manifest.metadata, where=f"--weight-by in {manifest.root / MANIFEST}")
    cells = manifest.metadata[column].take(manifest.rows_of(paths))
    where = f"{manifest.root / MANIFEST}, column {column!r}"
    weights = np.array([_parse(cell, f"{where}, {path}") for cell, path in zip(cells, paths, strict=True)])
    if not weights.any():
        raise errors.PipelineError(
            f"All training images of {manifest.root} have the weight 0 in the column {column!r}. Give some more, and "
            "prepare the dataset again."
        )
    return weights


def _parse(cell: str, where: str) -> float:
    weight = files.number_of(cell)
    if weight and not 1 / MOST <= weight <= MOST:
        what = repr(cell) if cell else "an empty cell"
        raise errors.PipelineError(
            f"{where}: {what} is no weight. Write 0, or a number from {1 / MOST:f} to {MOST:,.0f}, and prepare the "
            "dataset again."
        )
    return weight
