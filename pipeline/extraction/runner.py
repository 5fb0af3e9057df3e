"""Extract the codes of a dataset: find the missing ones, compute them batch by batch, and write them."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.extraction.engine import Engine
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.codes import stored
from pipeline.codes.writer import CodesWriter, Metadata, cache_folder
from pipeline.data.manifest import Manifest
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, parallel, transforms
from pipeline.images.decoding import BadImage
from pipeline.images.transforms import KnownImage
from pipeline.progress import ProgressBar, track

AUTOTUNE_IMAGES = 16
"""The number of images on which a lower precision is tried."""


@dataclass
class Extraction:
    """One run over a dataset: its settings and its results.

    batch_size: images that are computed and committed together, 0 for what suits the device; threads: number of
    decoding threads; compiler: as in `Engine`; max_bad: the fraction of bad images above which the run fails;
    compress: whether the finished files are compressed; is_part: whether the images are some of a larger run's, so that
    all of them may be bad. Results: forwarded: number of images that went through the network; bad: {path: reason};
    notes: what the engine decided, and why.
    """

    manifest: Manifest
    batch_size: int
    threads: int
    compiler: str = "auto"
    max_bad: float = 1.0
    compress: bool = False
    is_part: bool = False
    forwarded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, manifest: Manifest) -> Extraction:
        """Return a run over another dataset with the same settings."""
        return replace(self, manifest=manifest, forwarded=0, bad={}, notes=[])

    def find_missing(self, writers: Mapping[str, CodesWriter]) -> dict[str, list[int]]:
        """Copy the codes that earlier runs computed of the same bytes; return {layer: rows that are still missing}."""
        rows = range(len(self.manifest.paths))
        if all(writer.fresh for writer in writers.values()):
            return {layer: list(rows) for layer in writers}
        missing: dict[str, list[int]] = {layer: [] for layer in writers}
        files = map(self.manifest.file, rows)
        digests = parallel.ordered_map(decoding.read_digest, files, self.threads, ahead=16 * self.threads)
        for row, digest in zip(rows, track(digests, "comparing", len(rows)), strict=True):
            if isinstance(digest, BadImage):
                self._add_bad(row, digest)
                continue
            for layer, writer in writers.items():
                if not writer.find(row, digest):
                    missing[layer].append(row)
        return missing

    def compute(self, rows: Sequence[int], engine: Engine, writers: Sequence[CodesWriter]) -> None:
        """Compute the codes of some rows in batches, and commit each batch; images of the same bytes are computed once.

        A thread writes. While a GPU computes, one batch may wait to be written; a CPU computes and writes in turn.
        """
        written: set[str] = set()
        writes: deque[Future[None]] = deque()
        files = ((row, self.manifest.file(row)) for row in rows)
        with ThreadPoolExecutor(1) as thread, ProgressBar("extracting", len(rows)) as bar:
            for result in compute_codes(engine, files, self.threads, known=written):
                bar.update(len(result.keys) if isinstance(result, CodesBatch) else 1)
                match result:
                    case CodesBatch():
                        self.forwarded += len(result.keys)
                        written.update(result.digests)
                        writes.append(thread.submit(write_batch, writers, result))
                    case row, BadImage() as reason:
                        self._add_bad(row, reason)
                    case row, KnownImage(digest):
                        writes.append(thread.submit(write_copy, writers, row, digest))
                while len(writes) > engine.batches_ahead:
                    writes.popleft().result()
            for write in writes:
                write.result()

    def _add_bad(self, row: int, reason: BadImage) -> None:
        """Note a bad image; raise PipelineError where more images are bad than the run allows."""
        self.bad[self.manifest.paths[row]] = str(reason)
        if not self.is_part:
            self.validate_bad()

    def validate_bad(self) -> None:
        """Raise PipelineError where more images are bad than the run allows."""
        count, (path, first) = len(self.manifest.paths), next(iter(self.bad.items()), ("", ""))
        if len(self.bad) == count:
            raise errors.PipelineError(f"None of the {count} images can be read; the first is {path!r}: {first}.")
        if len(self.bad) > self.max_bad * count:
            raise errors.PipelineError(
                f"{len(self.bad)} of the {count} images cannot be read, more than the share of {self.max_bad:g} that "
                f"--max-bad allows; the first is {path!r}: {first}. What was computed is kept for the next run."
            )

    def engine(self, network: FrozenNetwork, count: int) -> Engine:
        """Return the engine that runs a network on `count` images.

        Where the user fixed the batch size, smaller batches are filled up: codes then do not depend on which images are
        computed together, as after an interruption.
        """
        from pipeline.extraction.engine import Engine

        return Engine(network, self.batch_size, count, self.compiler, whole_batches=self.batch_size > 0)

    def first_images(self, network: FrozenNetwork) -> list[np.ndarray]:
        """Return the pixels of the first images that can be read, enough to try a lower precision on."""
        load = partial(transforms.load_image, transform=network.transform)
        files = map(self.manifest.file, range(len(self.manifest.paths)))
        images = parallel.ordered_map(load, files, self.threads, AUTOTUNE_IMAGES)
        good = (image for image in images if not isinstance(image, BadImage))
        return list(islice(good, AUTOTUNE_IMAGES))


def write_batch(writers: Sequence[CodesWriter], batch: CodesBatch[int]) -> None:
    """Write the codes of a batch, whose keys are rows of the dataset, and commit them."""
    for writer in writers:
        writer.write(batch.keys, batch.codes[writer.spec.layer], batch.digests)


def write_copy(writers: Sequence[CodesWriter], row: int, digest: str) -> None:
    """Give a row the code that was written for another image of the same bytes."""
    for writer in writers:
        if not writer.find(row, digest):
            raise RuntimeError(f"Row {row} of {writer.path} is a copy of an image whose code is not there.")


def metadata_of(manifest: Manifest) -> Metadata:
    """Return the metadata of a file of codes, as HDF5 stores it."""
    paths, splits, classes = (
        stored.encode_texts(column) for column in (manifest.paths, manifest.splits, manifest.classes)
    )
    return Metadata(paths, manifest.labels, splits, classes)


def extract(
    extraction: Extraction,
    network: FrozenNetwork,
    folder: Path,
    engine_of: Callable[[FrozenNetwork, int], Engine] | None = None,
) -> None:
    """Write the codes of all images to `<layer>.h5` in a folder, computing only those that no earlier run has.

    The files appear at the end, all of them complete; a run that is interrupted before is resumed by the next.
    engine_of: returns the engine for a network and a number of images, by default `Extraction.engine`.
    """
    metadata = metadata_of(extraction.manifest)
    with ExitStack() as stack:
        writers = {
            layer: stack.enter_context(CodesWriter(folder / f"{layer}.h5", spec, network.widths[layer], metadata))
            for layer, spec in network.specs.items()
        }
        missing = extraction.find_missing(writers)
        if layers := [layer for layer in writers if missing[layer]]:
            rows = sorted(set().union(*missing.values()))
            engine = (engine_of or extraction.engine)(network.only(layers), len(rows))
            extraction.compute(rows, engine, [writers[layer] for layer in layers])
            extraction.notes += engine.notes
        for writer in writers.values():
            writer.commit([f"{path}: {reason}" for path, reason in extraction.bad.items()], extraction.compress)


def validate_disk_space(folder: Path, column_bytes: int, widths: Mapping[str, int]) -> None:
    """Raise PipelineError where the codes will not fit on the disk.

    column_bytes: bytes of one number per image, for all images; widths: {layer: numbers per image}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = column_bytes * sum(widths.values()), shutil.disk_usage(folder).free
    allocated = sum(512 * path.stat().st_blocks for path in cache_folder(folder).glob("*.partial"))
    if needed > free + allocated:
        raise errors.PipelineError(
            f"The codes need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Choose fewer layers, "
            "--pool avg, fewer --views, or another disk with --out."
        )
