"""CNN codes in Python: a scikit-learn transformer from images to the codes of one layer."""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from cachetools import LRUCache
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from pipeline import errors, hints
from pipeline.codes import reader, stored
from pipeline.codes.spec import CodesSpec
from pipeline.codes.stored import StoredCodes
from pipeline.extraction.engine import Engine
from pipeline.extraction.loading import Source
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, depth, parallel, transforms
from pipeline.images.transforms import KnownImage
from pipeline.networks.frozen import PRECISIONS, FrozenNetwork, choose_device

CACHE_BYTES = 2**30
"""The number of bytes of codes that a process keeps; beyond it, the least recently used codes are dropped."""

AUTO = "auto"
"""The precision of the codes in `codes_folder`, if there are any, or else fp32."""

CodesCache = LRUCache[tuple[CodesSpec, str], np.ndarray]
"""The (d,) codes by spec and digest of the image."""


def new_cache(max_bytes: int) -> CodesCache:
    """Return an empty cache that keeps up to `max_bytes` bytes of codes."""
    return LRUCache(max_bytes, getsizeof=lambda code: code.nbytes)


CACHE = new_cache(CACHE_BYTES)
LOCK = threading.Lock()
"""Held while codes are computed, so that threads that need the same codes do not compute them twice."""


class Column(Protocol):
    """A column of a table, for instance pandas'."""

    def to_numpy(self) -> np.ndarray:
        """Return the values."""


Images = Sequence[Source] | np.ndarray | Column


class CNNCodes(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images into the CNN codes (features, embeddings) of one layer of a pretrained network.

    Images are paths, the bytes of files, PIL images, or uint8 arrays of shape (height, width, 3) or (height, width).
    The codes are those that `python -m pipeline.extract` writes, (n, d) float32. A process computes the codes of an
    image once, also if several folds and clones need them, as long as they fit into `CACHE_BYTES`.

    The parameters have the names and values of that command's flags; `--help` and `--list` describe them. threads:
    number of decoding threads, None for the number of CPU cores; batch_size: images per forward pass, 0 for what suits
    the device; codes_folder: a folder of codes that the command wrote (features/photos), whose codes are read where
    image and spec are the same; precision: "auto" for the precision of those codes, or fp32 where there are none.

    Fitted attribute: `spec_`, the `CodesSpec` of the codes, which includes the hash of the weights.

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import LinearSVC
    >>> from pipeline import CNNCodes
    >>> digits = load_digits()
    >>> images = (digits.images * 15.9).astype("uint8")
    >>> CNNCodes(layer="fc7").fit_transform(images[:5]).shape
    (5, 1024)
    >>> model = make_pipeline(CNNCodes(layer="pool3"), LinearSVC())
    >>> model.fit(images[:200], digits.target[:200]).predict(images[-3:])
    array([8, 9, 8])
    """

    def __init__(
        self,
        backbone: str = "tinyvgg",
        layer: str = "fc7",
        *,
        weights: str = "default",
        pool: str = "auto",
        size: str | int | None = None,
        range: float | None = None,
        relu: str = "post",
        precision: str = AUTO,
        device: str = "auto",
        batch_size: int = 0,
        threads: int | None = None,
        codes_folder: str | Path | None = None,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.weights = weights
        self.pool = pool
        self.size = size
        self.range = range
        self.relu = relu
        self.precision = precision
        self.device = device
        self.batch_size = batch_size
        self.threads = threads
        self.codes_folder = codes_folder

    def fit(self, X: Images, y: object = None) -> Self:
        """Validate the parameters; nothing is learned from the images, and y is not used."""
        list_images(X)
        if self.batch_size < 0 or (self.threads is not None and self.threads < 1):
            raise errors.PipelineError("batch_size must be 0 or more, threads 1 or more.")
        if self.precision not in (AUTO, *PRECISIONS):
            raise errors.unknown("precision", self.precision, (AUTO, *PRECISIONS))
        if self.codes_folder is not None and not Path(self.codes_folder).is_dir():
            asked = {name: getattr(self, name) for name in ("backbone", "layer", "weights", "pool", "size", "relu")}
            folder = Path(self.codes_folder)
            fix = errors.Fix("extract", {"dataset": folder.name, **asked, "out": folder / self.backbone})
            raise errors.PipelineError(
                f"There is no folder {str(self.codes_folder)!r} to read codes from. Extract them first.",
                fix=[hints.complete(fix, {})],
            )
        network = self._network("fp32" if self.precision == AUTO else self.precision)
        self.spec_ = network.specs[self.layer]
        if self.precision == AUTO:
            self.spec_ = match_stored_codes(self.codes_folder, self.spec_)
        self._n_features_out = network.widths[self.layer]
        return self

    def transform(self, X: Images) -> np.ndarray:
        """Return the (n, d) float32 codes of n images; raise PipelineError if an image cannot be read."""
        check_is_fitted(self)
        images = list_images(X)
        network = self._network(self.spec_.precision).at(decoder=self.spec_.transform.decoder)
        if self.spec_ not in network.specs.values():
            raise errors.PipelineError("The parameters or the weights changed after `fit`. Fit again.")
        values, bad = np.empty((len(images), self._n_features_out), np.float32), {}
        engine, threads = Engine(network, self.batch_size, len(images)), self.threads or parallel.default_threads()
        with LOCK, open_known_codes(self.codes_folder, self.spec_) as known:
            for result in compute_codes(engine, enumerate(images), threads, known):
                match result:
                    case CodesBatch():
                        for row, digest, code in zip(
                            result.keys, result.digests, result.codes[self.layer], strict=True
                        ):
                            values[row] = code
                            known.add(digest, values[row])
                    case row, KnownImage(digest):
                        values[row] = known[digest]
                    case row, decoding.BadImage() as reason:
                        bad[row] = reason
        if bad:
            row, reason = next(iter(bad.items()))
            name = repr(str(images[row])) if isinstance(images[row], str | Path) else f"number {row}"
            raise errors.PipelineError(
                f"{len(bad)} of {len(images)} images cannot be read, the first is {name}: {reason}."
            )
        return values

    def _network(self, precision: str) -> FrozenNetwork:
        """Return the network that the parameters name; the last two networks are kept."""
        file = Path(self.weights).expanduser()
        version = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else ()
        framing = transforms.Framing.sized(self.size, max_value=self.range or depth.WHITE)
        device = choose_device(self.device)
        network = build_network(self.backbone, self.layer, self.weights, version, self.pool, framing, self.relu, device)
        return network if precision == "fp32" else network.at(precision=precision)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that images are not a table of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = tags.input_tags.string = tags.no_validation = True
        return tags


def list_images(X: Images) -> list[Source]:
    """Return the images of a sequence, an array, or one column of a table."""
    array: Any = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(array, str | Path | bytes | Image.Image) or getattr(array, "shape", ())[2:] == (3,):
        raise errors.PipelineError("CNNCodes takes several images. Put a single one into a list.")
    if isinstance(array, np.ndarray) and array.dtype.kind in "OUT" and array.shape[1:] == (1,):
        array = array[:, 0]
    return list(array)


@lru_cache(maxsize=2)
def build_network(
    backbone: str,
    layer: str,
    weights: str,
    version: tuple[int, ...],
    pool: str,
    framing: transforms.Framing,
    relu: str,
    device: str,
) -> FrozenNetwork:
    """Return a network on a device; version: time and size of the file of weights, which may have been replaced."""
    return FrozenNetwork(backbone, [layer], weights, pool, framing, relu).to(device)


def stored_path(codes_folder: str | Path | None, spec: CodesSpec) -> Path | None:
    """Return the file of a layer's codes in a folder that extract wrote, or None where there is no such file."""
    path = Path(codes_folder, spec.backbone, f"{spec.layer}.h5") if codes_folder else None
    return path if path and path.is_file() else None


def match_stored_codes(codes_folder: str | Path | None, spec: CodesSpec) -> CodesSpec:
    """Return a spec with the precision and the decoder of the codes in a folder, if all else is the same.

    Raises PipelineError for codes of files decoded by TorchCodec, which decodes differently on each device.
    """
    path = stored_path(codes_folder, spec)
    if path is None:
        return spec
    stored = replace(reader.read_index(path, {}).spec, weights=spec.weights)
    stored_decoder, decoder = stored.transform.decoder, spec.transform.decoder
    transform = replace(spec.transform, decoder=stored_decoder)
    if stored != replace(spec, precision=stored.precision, transform=transform):
        return spec
    if stored_decoder == decoding.TORCHCODEC:
        raise errors.PipelineError(
            f"The JPEGs of {path} were decoded by {stored_decoder}, but CNNCodes decodes them by {decoder}. "
            f"Extract with --decoder {decoder}, or leave `codes_folder` out."
        )
    return stored


class KnownCodes(Container[str]):
    """The codes of one spec that need not be computed, by digest: in a file, in the cache, or of this call.

    file: of codes, None where there is none; rows: {digest: row of the file}. Digests may be looked up in any thread.
    """

    def __init__(self, spec: CodesSpec, file: StoredCodes | None, rows: dict[str, int]) -> None:
        self.spec, self.file, self.rows = spec, file, rows
        self.codes: dict[str, np.ndarray] = {}
        self.lock = threading.Lock()

    def __contains__(self, digest: object) -> bool:
        """Whether the code is known; one in the cache is kept, since the cache may drop it before it is asked for."""
        if digest in self.rows or digest in self.codes:
            return True
        with self.lock:
            code = CACHE.get((self.spec, str(digest)))
        if code is not None:
            self.codes[str(digest)] = code
        return code is not None

    def __getitem__(self, digest: str) -> np.ndarray:
        """Return the (d,) code of a digest that is known."""
        if self.file is not None and digest in self.rows:
            return stored.read_rows(self.file, self.rows[digest], self.rows[digest] + 1)[0][0]
        return self.codes[digest]

    def add(self, digest: str, code: np.ndarray) -> None:
        """Keep the (d,) code of an image that was computed, and a copy of it in the cache."""
        self.codes[digest] = code
        if code.nbytes <= CACHE.maxsize:
            with self.lock:
                CACHE[self.spec, digest] = code.copy()


@contextmanager
def open_known_codes(codes_folder: str | Path | None, spec: CodesSpec) -> Iterator[KnownCodes]:
    """Open the codes that extract wrote to a folder, and give them together with those in the cache."""
    path = stored_path(codes_folder, spec)
    with reader.open_file(path, {}) if path else nullcontext() as file:
        yield KnownCodes(spec, file, rows_by_digest(path, spec) if path else {})


def rows_by_digest(path: Path, spec: CodesSpec) -> dict[str, int]:
    """Return {digest: row} of a file of codes, or {} if its spec differs in more than the name of the weights."""
    index = reader.read_index(path, {})
    if replace(index.spec, weights=spec.weights) != spec:
        return {}
    return {digest: row for row, digest in enumerate(index.digests)}
