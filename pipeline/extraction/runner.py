"""One run of images through a network: what is missing is found, decoded, computed and committed, batch by batch."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from pipeline.extraction.engine import BatchCodes, Engine, ImageInput
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.codes import reader
from pipeline.codes.writer import CodesWriter, Metadata, cache_folder
from pipeline.data.manifest import Manifest
from pipeline.images import decoding, parallel, transforms

AUTOTUNE_IMAGES = 16
"""Images on which a lower precision is tried."""

Item = TypeVar("Item")

Batch = dict[str, tuple["ImageInput", list[int]]]
"""{digest: (picture, the rows of the dataset that have it)}."""


@dataclass
class Extraction:
    """One run over a dataset, and what becomes of it.

    batch_size: images that are committed together, 0 for what suits the device; threads: that decode; compiling:
    "auto", "yes" or "no"; max_bad: the share of bad images beyond which the run ends; compress: the finished files.
    forwarded: how many images went through the network; bad: {path: reason}; notes: what the engine decided, and why.
    """

    manifest: Manifest
    batch_size: int
    threads: int
    compiling: str = "auto"
    max_bad: float = 1.0
    compress: bool = False
    forwarded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def find_missing(self, writers: Mapping[str, CodesWriter]) -> dict[str, list[int]]:
        """Take over what earlier runs computed of the same bytes; return {layer: rows that are to be computed}."""
        every = range(len(self.manifest.paths))
        if all(writer.fresh for writer in writers.values()):
            return {layer: list(every) for layer in writers}
        missing: dict[str, list[int]] = {layer: [] for layer in writers}
        digests = partial(parallel.ordered_map, decoding.read_digest, threads=self.threads, ahead=16 * self.threads)
        for row, digest in self._each(every, digests, "comparing"):
            for layer, writer in writers.items():
                if not writer.find(row, digest):
                    missing[layer].append(row)
        for writer in writers.values():
            writer.settle()
        return missing

    def compute(self, rows: Sequence[int], engine: Engine, writers: Sequence[CodesWriter]) -> None:
        """Run the images of some rows through the network in batches, and commit each; the same bytes run once.

        Writing has a thread of its own. Beside a GPU, which computes on by itself, one batch may wait to be written.
        """
        seen: set[str] = set()
        batch: Batch = {}
        pending: deque[Future[None]] = deque()
        waiting = 0 if engine.device.type == "cpu" else 1
        pictures = partial(engine.pictures, threads=self.threads)
        with ThreadPoolExecutor(1) as writing:
            for row, (picture, digest) in self._each(rows, pictures, "extracting"):
                if digest in seen:
                    pending.append(writing.submit(take_copy, writers, row, digest))
                else:
                    batch.setdefault(digest, (picture, []))[1].append(row)
                if len(batch) == engine.batch_size:
                    pending.append(writing.submit(self._commit, batch, self._launch(batch, engine), writers))
                    seen |= set(batch)
                    batch = {}
                while len(pending) > waiting:
                    pending.popleft().result()
            if batch:
                pending.append(writing.submit(self._commit, batch, self._launch(batch, engine), writers))
            while pending:
                pending.popleft().result()
        for writer in writers:
            writer.settle()

    def _launch(self, batch: Batch, engine: Engine) -> Callable[[], BatchCodes]:
        self.forwarded += len(batch)
        return engine.launch([picture for picture, _ in batch.values()])

    def _commit(self, batch: Batch, wait: Callable[[], BatchCodes], writers: Sequence[CodesWriter]) -> None:
        """Wait for the codes of a batch and write them to all of its rows."""
        outputs = wait()
        places = [(row, place, digest) for place, (digest, (_, rows)) in enumerate(batch.items()) for row in rows]
        rows, order, digests = zip(*sorted(places), strict=True)
        for writer in writers:
            writer.write(rows, outputs[writer.spec.layer][list(order)], digests)
            writer.settle()

    def _each(
        self, rows: Sequence[int], read: Callable[[Iterable[Path]], Iterator[Item | decoding.BadImage]], doing: str
    ) -> Iterator[tuple[int, Item]]:
        """Yield (row, what `read` gives of its file), in order, and note the bad images."""
        from tqdm import tqdm

        items = read(self.manifest.file(row) for row in rows)
        for row, item in zip(rows, tqdm(items, doing, len(rows), unit="image", disable=None), strict=True):
            if isinstance(item, decoding.BadImage):
                self.bad[self.manifest.paths[row]] = str(item)
                self._demand_good()
            else:
                yield row, item

    def first_pictures(self, network: FrozenNetwork) -> list[np.ndarray]:
        """Return the first pictures that can be read, enough for a trial."""
        files = (self.manifest.file(row) for row in range(len(self.manifest.paths)))
        items = parallel.ordered_map(
            partial(transforms.read_image, transform=network.transform), files, self.threads, AUTOTUNE_IMAGES
        )
        return [
            item[0]
            for item in islice((item for item in items if not isinstance(item, decoding.BadImage)), AUTOTUNE_IMAGES)
        ]

    def _demand_good(self) -> None:
        """End the run where more images are bad than may be."""
        count, (path, reason) = len(self.manifest.paths), next(iter(self.bad.items()))
        if len(self.bad) == count:
            raise errors.PipelineError(f"None of the {count} images can be read; the first is {path!r}: {reason}.")
        if len(self.bad) > self.max_bad * count:
            raise errors.PipelineError(
                f"{len(self.bad)} of the {count} images cannot be read, more than the share of {self.max_bad:g} that "
                f"--max-bad allows; the first is {path!r}: {reason}. What was computed is kept for the next run."
            )


def take_copy(writers: Sequence[CodesWriter], row: int, digest: str) -> None:
    """Give a row the code of the image with the same bytes that was computed before."""
    for writer in writers:
        assert writer.find(row, digest)


def metadata_of(manifest: Manifest) -> Metadata:
    """Return what stands beside the codes, as HDF5 keeps it."""
    paths, splits, classes = (
        reader.encode_texts(column) for column in (manifest.paths, manifest.splits, manifest.classes)
    )
    return Metadata(paths, manifest.labels, splits, classes)


def extract(extraction: Extraction, network: FrozenNetwork, folder: Path) -> None:
    """Write the codes of all images to `<layer>.h5` in a folder, computing only those that no earlier run has.

    The files appear at the end, all of them complete; a run that does not get there is continued by the next.
    """
    from pipeline.extraction.engine import Engine

    columns = metadata_of(extraction.manifest)
    with ExitStack() as stack:
        writers = {
            layer: stack.enter_context(CodesWriter(folder / f"{layer}.h5", spec, network.widths[layer], columns))
            for layer, spec in network.specs.items()
        }
        missing = extraction.find_missing(writers)
        lacking = [layer for layer in writers if missing[layer]]
        if lacking:
            rows = sorted(set().union(*missing.values()))
            engine = Engine(network.only(lacking), extraction.batch_size, len(rows), extraction.compiling)
            extraction.compute(rows, engine, [writers[layer] for layer in lacking])
            extraction.notes += engine.notes
        for writer in writers.values():
            writer.commit([f"{path}: {reason}" for path, reason in extraction.bad.items()], extraction.compress)


def validate_disk_space(folder: Path, column_bytes: int, widths: Mapping[str, int]) -> None:
    """Refuse to start where the codes will not fit on the disk; column_bytes: of one number of all images."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = column_bytes * sum(widths.values()), shutil.disk_usage(folder).free
    begun = sum(512 * path.stat().st_blocks for path in cache_folder(folder).glob("*.partial"))
    if needed > free + begun:
        raise errors.PipelineError(
            f"The codes need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Choose fewer layers, "
            "--pool avg, fewer --views, or another disk with --out."
        )
