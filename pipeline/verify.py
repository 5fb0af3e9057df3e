"""Check a file of codes: its checksums, its spec, and that each row belongs to the image and label it names.

Example: python -m pipeline.verify features/digits/tinyvgg/fc7.h5
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("verify")

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline import errors
from pipeline.codes import reader, shards
from pipeline.codes.belonging import differences
from pipeline.codes.spec import extract_settings
from pipeline.config import Verify
from pipeline.data.manifest import read_manifest
from pipeline.images import decoding, parallel
from pipeline.paths import MANIFEST, Experiment
from pipeline.progress import track

LARGE = 1 << 30
"""Bytes of codes from which on it pays to check shards in several processes."""


def value_problems(path: Path, processes: int) -> Iterator[str]:
    """Yield a description of each row whose values are not finite; raise PipelineError if a checksum is wrong.

    processes: how many check shards at a time, where the codes are in several files that are large.
    """
    parts = shards.files_of(path)
    if len(parts) == 1 or sum(part.stat().st_size for part in parts) < LARGE:
        yield from chain.from_iterable(map(problems_of_file, parts))
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        checked = track(pool.map(problems_of_file, parts), "checking", len(parts), "shard")
        yield from chain.from_iterable(checked)


def problems_of_file(path: Path) -> list[str]:
    """Return what `value_problems` yields, of one HDF5 file."""
    index = reader.read_index(path, {})
    return [
        f"row {row} ({index.paths[row]!r}) has values that are not finite"
        for rows, values in reader.blocks(path, np.arange(len(index.paths)))
        for row in rows[~np.isfinite(values).all(1)]
    ]


def image_problems(index: reader.CodesIndex, root: Path, threads: int) -> Iterator[str]:
    """Yield a description of each row whose image file, below `root`, is not the one that was extracted."""
    files = (root / name for name in index.paths)
    digests = parallel.ordered_map(decoding.read_digest, files, threads, ahead=16 * threads)
    bar = track(digests, "verifying", len(index.paths))
    for name, digest, found in zip(index.paths, index.digests, bar, strict=True):
        if isinstance(found, decoding.BadImage) or found != digest:
            yield f"{name!r} is of an image that is gone or has changed"


def run(settings: Verify) -> None:
    """Verify what the settings name."""
    index = reader.read_index(settings.file, {})
    spec, threads = index.spec, settings.threads or parallel.default_threads()
    problems = list(value_problems(settings.file, threads))
    dataset = settings.dataset or settings.file.absolute().parents[1 + spec.backbone.count("/")].name
    folder = Experiment(dataset, spec.backbone).data
    compared = settings.dataset or (folder / MANIFEST).exists()
    if compared:
        problems += differences(index, read_manifest(folder))
        problems += image_problems(index, folder, threads)
    if problems:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        again = {**extract_settings(spec.to_dict()), **shards.as_settings(settings.file)}
        values = {"dataset": dataset, **again, "out": settings.file.parent}
        fix = [errors.Fix("extract", values)]
        raise errors.PipelineError(f"{settings.file}: {problems[0]}{rest}. Extract again.", fix=fix)
    images_too = f"and fit the images in {folder}" if compared else "(no prepared dataset to compare them with)"
    print(f"{settings.file}: {spec.backbone} {spec.layer}, all rows are sound {images_too}")
