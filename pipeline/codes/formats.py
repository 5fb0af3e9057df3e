"""Read codes from the files that hold them, whatever their format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

import numpy as np

from pipeline.codes import zarr_store
from pipeline.codes.reader import Codes, read_layers


def read_codes(path: str | os.PathLike[str], split: str | None = None) -> Codes[np.ndarray]:
    """Read the codes in a file that `extract` wrote; of several layers from a path like fc6+fc7.h5.

    A path that ends in .zarr is read as what `export --codes zarr` wrote. split: "train", "val", "test" or
    "unlabelled", None for all images. Raises PipelineError if the file is missing or damaged.
    """
    path = Path(path).expanduser()
    if path.suffix != zarr_store.SUFFIX:
        return read_layers(path, {}, split)
    codes = zarr_store.read_zarr(path)
    return codes if split is None else codes.take(np.flatnonzero(codes.splits.isin([split])))
