"""Extraction in shards: parts of a dataset, each computed by some worker into a file of its own."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from pipeline import errors, files
from pipeline.codes import shards
from pipeline.codes.spec import CodesSpec, join_specs
from pipeline.codes.writer import cache_folder, cached_name
from pipeline.data.manifest import Manifest
from pipeline.extraction import runner
from pipeline.extraction.engine import Engine
from pipeline.extraction.scheduler import Death, Mistake
from pipeline.images.decoding import BadImage, read_digest
from pipeline.networks.frozen import FrozenNetwork, rebuild_network


@dataclass(frozen=True)
class Job:
    """What all workers of a run do alike.

    folder: of the codes; specs: {layer: spec} of the codes; n_shards: into how many the dataset was cut; batch_size:
    images per forward pass, of which the last are filled up; compiler: name of the one to take, or "no"; threads:
    number of decoding threads of each worker, and of threads that a CPU computes with; compress: whether files are
    compressed.
    """

    folder: Path
    specs: Mapping[str, CodesSpec]
    n_shards: int
    batch_size: int
    compiler: str
    threads: int
    compress: bool

    def file(self, shard: Shard, layer: str) -> Path:
        """Return the path of a shard's file."""
        return shards.folder_of(self.folder / f"{layer}.h5") / self._name(shard, layer)

    def kept(self, shard: Shard, layer: str) -> Path:
        """Return where a shard's file is kept for later runs, since DVC empties the folder of codes before each."""
        return cache_folder(self.folder) / self.file(shard, layer).parent.name / self._name(shard, layer)

    def earlier(self, shard: Shard, layer: str) -> list[Path]:
        """Return what is kept of earlier states of a shard, with other rows: the newest first."""
        name = shards.shard_name(shard.number, self.n_shards, shards.any_key_of(self.specs[layer].to_json()))
        kept = self.kept(shard, layer)
        others = [path for path in kept.parent.glob(name) if path != kept]
        return sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)

    def _name(self, shard: Shard, layer: str) -> str:
        key = shards.key_of(self.specs[layer].to_json(), shard.digest)
        return shards.shard_name(shard.number, self.n_shards, key)

    def is_done(self, shard: Shard) -> bool:
        """Return whether whole files of a shard's rows are there, or are kept, which are then put there."""
        return all(self._is_there(shard, layer) for layer in self.specs)

    def _is_there(self, shard: Shard, layer: str) -> bool:
        file, kept = self.file(shard, layer), self.kept(shard, layer)
        for path, other in ((file, kept), (kept, file)):
            if is_complete(shards.read_digests(path, self.specs[layer]), shard.manifest):
                if not other.exists():
                    other.parent.mkdir(parents=True, exist_ok=True)
                    files.link_or_copy(path, other)
                return True
        return False


@dataclass(frozen=True)
class Shard:
    """Some images of a dataset; the number says which of the shards they are."""

    number: int
    manifest: Manifest

    @cached_property
    def digest(self) -> str:
        """The digest of its images, labels and splits, which each of its files is named by."""
        return self.manifest.digest


@dataclass(frozen=True)
class Extracted:
    """What came of a shard: how many images went through the network."""

    forwarded: int


def is_complete(digests: Mapping[str, str] | None, manifest: Manifest) -> bool:
    """Return whether there is the code of each image as it was prepared, but for those whose files are damaged or gone.

    digests: {path: digest} of the images whose codes there are, None where there is no whole file.
    """
    if digests is None:
        return False
    rows = zip(manifest.paths, manifest.digests, strict=True)
    other = [row for row, (path, digest) in enumerate(rows) if digests.get(path) != digest]
    return not any(
        manifest.paths[row] in digests or is_as_prepared(manifest.file(row), manifest.digests[row]) for row in other
    )


def is_as_prepared(file: Path, digest: str) -> bool:
    """Return whether an image's file can be read, and has the digest with which it was prepared."""
    with suppress(BadImage):
        return read_digest(file) == digest
    return False


def cut(manifest: Manifest, count: int) -> list[Shard]:
    """Cut a dataset into `count` shards by the digests of its paths, and return those that have images.

    An image that comes or goes changes one shard alone. The images of each class are spread over all shards.
    """
    digests = (hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8) for path in manifest.paths)
    numbers = np.array([int.from_bytes(digest.digest(), "big") % count for digest in digests], np.int64)
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [Shard(int(number), manifest.take(rows)) for number, rows in zip(found, parts, strict=True)]


def has_earlier_shards(folder: Path, spec: CodesSpec) -> bool:
    """Return whether earlier runs wrote shards of a spec to a folder of codes."""
    kept = cache_folder(folder) / shards.folder_of(Path(f"{spec.layer}.h5"))
    return any(kept.glob(f"shard-*-{shards.any_key_of(spec.to_json())}.h5"))


class ShardWorker:
    """Computes shards, one after the other, by a network that it builds for the first and keeps."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.device = job, device
        self.engines: dict[tuple[str, ...], Engine] = {}

    @cached_property
    def network(self) -> FrozenNetwork:
        """The network; PipelineError is raised where the one here does not give codes of the job's specs."""
        torch.set_num_threads(self.job.threads)
        return rebuild_network(join_specs(list(self.job.specs.values()))).to(self.device)

    def try_shard(self, shard: Shard) -> Extracted | Death | Mistake:
        """Write the files of a shard, and return what came of it, or what was wrong."""
        try:
            return self.extract(shard)
        except (errors.PipelineError, OSError) as error:
            return Mistake(errors.sentence(error).removeprefix("Error: "))
        except Exception as error:  # whatever it is, another worker may manage; the last reason is named
            return Death(f"{type(error).__name__} ({errors.first_line(error)})")

    def extract(self, shard: Shard) -> Extracted:
        """Write the files of a shard; they appear whole, whoever else computes the same shard."""
        job = self.job
        attempt = cache_folder(job.folder) / shards.ATTEMPTS / f"{shard.number:05}-{uuid.uuid4().hex[:12]}"
        folder = attempt / "codes"
        self._adopt(shard, cache_folder(folder))
        extraction = runner.Extraction(
            shard.manifest, job.batch_size, job.threads, job.compiler, compress=job.compress, is_part=True
        )
        runner.extract(extraction, self.network, folder, self._engine)
        self._validate_batches()
        for layer in job.specs:
            file, kept = job.file(shard, layer), job.kept(shard, layer)
            for path in (file, kept):
                path.parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{layer}.h5").replace(file)
            files.link_or_copy(file, kept)
            for path in job.earlier(shard, layer):
                path.unlink(missing_ok=True)
        shutil.rmtree(attempt, ignore_errors=True)
        return Extracted(extraction.forwarded)

    def _validate_batches(self) -> None:
        """Raise PipelineError where memory ran out: smaller batches give codes that differ in the last bits."""
        if any(engine.batch_size != self.job.batch_size for engine in self.engines.values()):
            raise errors.PipelineError(
                f"A worker has not enough memory for {self.job.batch_size} images. Choose a smaller --batch-size."
            )

    def _adopt(self, shard: Shard, cache: Path) -> None:
        """Give an attempt what there is of earlier ones: whole files, of other rows too, and what dead workers left.

        A worker may have died with its file half-written, whole but not yet moved, or moved but not yet kept.
        """
        cache.mkdir(parents=True, exist_ok=True)
        for layer, spec in self.job.specs.items():
            whole = [self.job.kept(shard, layer), self.job.file(shard, layer), *self.job.earlier(shard, layer)]
            for earlier in [path for path in whole if path.exists()][:1]:
                files.link_or_copy(earlier, cache / cached_name(spec))
            dead = cache_folder(self.job.folder) / shards.ATTEMPTS
            for number, left in enumerate(dead.glob(f"{shard.number:05}-*/.cache/codes/*")):
                if left.parent == cache or not (left.name == cached_name(spec) or left.match(f"{layer}.h5-*.partial")):
                    continue
                with suppress(FileNotFoundError):  # its worker lives, and has just ended
                    files.link_or_copy(left, cache / f"{layer}.h5-{number}.partial")

    def _engine(self, network: FrozenNetwork, count: int) -> Engine:
        """Return the engine for some of the layers, made once: it may take long to compile a network."""
        layers = tuple(network.nodes)
        if layers not in self.engines:
            self.engines[layers] = Engine(network, self.job.batch_size, count, self.job.compiler, whole_batches=True)
        return self.engines[layers]
