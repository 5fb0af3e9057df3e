"""CNN codes in Python: a scikit-learn transformer from images to the codes of one layer, each computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline import errors
from pipeline.codes import reader
from pipeline.codes.spec import CodesSpec
from pipeline.extraction.engine import Engine
from pipeline.images import decoding, parallel, transforms
from pipeline.networks.frozen import PRECISIONS, FrozenNetwork, choose_device

CACHE_BYTES = 2**30
"""How many bytes of codes a process keeps; beyond that, those asked for longest ago are computed again."""

AUTO = "auto"
"""The precision of the codes in the store, if there are any, else fp32."""


class CNNCodes(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images into the CNN codes of one layer of a pretrained network.

    Images are paths, PIL images, or arrays (height, width, 3) or (height, width) of uint8; the codes are what
    `python -m pipeline.extract` writes, (n, d) float32. The codes of an image are computed once in a process, whatever
    folds and clones ask for them, as long as `CACHE_BYTES` hold them.

    The parameters are the flags of that command, of which `--help` and `--list` tell the values. threads: None for as
    many as there are cores; batch_size: 0 for what suits the device; store: the folder of a dataset's codes
    (features/photos) as that command left it, from which those of the same images and spec are read; precision: auto
    for that of these codes, or fp32 where there are none.

    Fitted: spec_, what the codes are, down to the hash of the weights.

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import LinearSVC
    >>> from pipeline import CNNCodes
    >>> digits = load_digits()
    >>> pictures = (digits.images * 15.9).astype("uint8")
    >>> CNNCodes(layer="fc7").fit_transform(pictures[:5]).shape
    (5, 1024)
    >>> model = make_pipeline(CNNCodes(layer="pool3"), LinearSVC())
    >>> model.fit(pictures[:200], digits.target[:200]).predict(pictures[-3:])
    array([8, 9, 8])
    """

    def __init__(
        self,
        backbone: str = "tinyvgg",
        layer: str = "fc7",
        *,
        weights: str = "default",
        pool: str = "avg4",
        size: str | int | None = None,
        relu: str = "post",
        precision: str = AUTO,
        device: str = "auto",
        batch_size: int = 0,
        threads: int | None = None,
        store: str | Path | None = None,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.weights = weights
        self.pool = pool
        self.size = size
        self.relu = relu
        self.precision = precision
        self.device = device
        self.batch_size = batch_size
        self.threads = threads
        self.store = store

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters against the network, which learns nothing from the images; y is not used."""
        list_images(X)
        if self.batch_size < 0 or (self.threads is not None and self.threads < 1):
            raise errors.PipelineError("batch_size must be 0 or more, threads 1 or more.")
        if self.precision not in (AUTO, *PRECISIONS):
            raise errors.unknown("precision", self.precision, (AUTO, *PRECISIONS))
        if self.store is not None and not Path(self.store).is_dir():
            raise errors.PipelineError(
                f"There is no folder {str(self.store)!r} to read codes from. Run pipeline.extract first."
            )
        network = self._network("fp32" if self.precision == AUTO else self.precision)
        self.spec_ = network.specs[self.layer]
        if self.precision == AUTO:
            self.spec_ = match_stored_precision(self.store, self.spec_)
        self._n_features_out = network.widths[self.layer]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the (n, d) float32 codes of n images; one that cannot be read is an error that names it."""
        check_is_fitted(self)
        items, network = list_images(X), self._network(self.spec_.precision)
        if self.spec_ not in network.specs.values():
            raise errors.PipelineError("The parameters or the weights are not those of `fit` any more. Fit again.")
        values, bad = np.empty((len(items), self._n_features_out), np.float32), {}
        engine, threads = Engine(network, self.batch_size, len(items)), self.threads or parallel.default_threads()
        with LOCK, known_codes(self.store, self.spec_) as find:
            for row, found in codes_of(items, engine, find, threads):
                if isinstance(found, decoding.BadImage):
                    bad[row] = found
                else:
                    values[row] = found
        if bad:
            row, reason = next(iter(bad.items()))
            name = repr(str(items[row])) if isinstance(items[row], str | Path) else f"number {row}"
            raise errors.PipelineError(
                f"{len(bad)} of {len(items)} images cannot be read, the first is {name}: {reason}."
            )
        return values

    def _network(self, precision: str) -> FrozenNetwork:
        """Return the network that the parameters name, one of the last two built if it is among them."""
        file = Path(self.weights).expanduser()
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else ()
        framing = transforms.Framing(transforms.parse_size(str(self.size)) if self.size else None)
        device = choose_device(self.device)
        whole = build_network(self.backbone, self.layer, self.weights, stamp, self.pool, framing, self.relu, device)
        return whole if precision == "fp32" else whole.at(precision=precision)

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that images are no table of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = tags.input_tags.string = tags.no_validation = True
        return tags


def list_images(X: Any) -> list[Any]:
    """Return the images of a sequence, an array, or one column of a table."""
    array = X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(array, str | Path | Image.Image) or getattr(array, "shape", ())[2:] == (3,):
        raise errors.PipelineError("CNNCodes takes several images. Put a single one into a list.")
    if isinstance(array, np.ndarray) and array.dtype.kind in "OUT" and array.shape[1:] == (1,):
        array = array[:, 0]
    return list(array)


@lru_cache(maxsize=2)
def build_network(
    backbone: str,
    layer: str,
    weights: str,
    stamp: tuple[int, ...],
    pool: str,
    framing: transforms.Framing,
    relu: str,
    device: str,
) -> FrozenNetwork:
    """Return a network on a device; stamp: what tells one file of weights from the next of the same name."""
    return FrozenNetwork(backbone, [layer], weights, pool, framing, relu).to(device)


class CodesCache:
    """The codes of images met in this process, by spec and digest; beyond `limit` bytes the oldest are dropped."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.codes: dict[tuple[CodesSpec, str], np.ndarray] = {}

    def put(self, spec: CodesSpec, digest: str, code: np.ndarray) -> None:
        """Keep a (d,) code that is not here yet."""
        self.codes[spec, digest] = code.copy()
        self.size += code.nbytes
        while self.size > self.limit:
            self.size -= self.codes.pop(next(iter(self.codes))).nbytes


Find = Callable[[str], np.ndarray | None]
"""Returns the (d,) code of a digest, or None where it is not known."""

CACHE = CodesCache(CACHE_BYTES)
LOCK = threading.Lock()
"""Held while codes are computed, so that threads that want the same ones do not compute them twice."""


def stored_path(store: str | Path | None, spec: CodesSpec) -> Path:
    """Return where extract writes the codes of a layer in a store; no file where there is no store."""
    return Path(store, spec.backbone, f"{spec.layer}.h5") if store else Path()


def match_stored_precision(store: str | Path | None, spec: CodesSpec) -> CodesSpec:
    """Return a spec with the precision of the codes in a store, if they are the same in all else."""
    path = stored_path(store, spec)
    if not path.is_file():
        return spec
    there = replace(reader.read_index(path, {}).spec, weights=spec.weights)
    transform = replace(spec.transform, decoder=there.transform.decoder)
    if there != replace(spec, precision=there.precision, transform=transform):
        return spec
    if transform != spec.transform:
        raise errors.PipelineError(
            f"The JPEGs of {path} were decoded by {transform.decoder}, those of CNNCodes are by "
            f"{spec.transform.decoder}. Extract with --decoder {spec.transform.decoder}, or leave `store` out."
        )
    return there


@contextmanager
def known_codes(store: str | Path | None, spec: CodesSpec) -> Iterator[Find]:
    """Give what finds codes of a spec among those that extract wrote to a store, and in the cache."""
    path = stored_path(store, spec)
    with reader.open_file(path, {}) if path.is_file() else nullcontext() as file:
        rows = rows_by_digest(path, spec) if file else {}

        def find(digest: str) -> np.ndarray | None:
            if digest in rows:
                return reader.read_rows(file, rows[digest], rows[digest] + 1)[0][0]
            return CACHE.codes.get((spec, digest))

        yield find


def rows_by_digest(path: Path, spec: CodesSpec) -> dict[str, int]:
    """Return {digest: row} of a file of codes, {} if they are of another spec than this, whatever its weights' name."""
    index = reader.read_index(path, {})
    if replace(index.spec, weights=spec.weights) != spec:
        return {}
    return {digest: row for row, digest in enumerate(index.digests)}


def codes_of(
    items: Sequence[Any], engine: Engine, find: Find, threads: int
) -> Iterator[tuple[int, np.ndarray | decoding.BadImage]]:
    """Yield the row of each image with its (d,) code, computed in batches if `find` does not know it, or its fault."""
    batch: dict[str, tuple[np.ndarray, list[int]]] = {}
    read = partial(open_unknown, find=find, transform=engine.network.transform)
    for row, item in enumerate(engine.each(read, items, threads)):
        if isinstance(item, decoding.BadImage):
            yield row, item
            continue
        digest, content = item
        code = content if content.ndim == 1 else find(digest)  # computed since it was read?
        if code is not None:
            yield row, code
            continue
        batch.setdefault(digest, (content, []))[1].append(row)
        if len(batch) >= engine.batch_size:
            yield from compute_batch(batch, engine)
            batch.clear()
    if batch:
        yield from compute_batch(batch, engine)


def open_unknown(item: Any, find: Find, transform: transforms.Transform) -> tuple[str, np.ndarray]:
    """Return an image's digest, with its (d,) code if that is known, or else its (3, height, width) picture."""
    digest, decode = identify(item)
    known = find(digest)
    return digest, transforms.apply(decode(), transform, digest) if known is None else known


def identify(item: Any) -> tuple[str, Callable[[], Image.Image]]:
    """Return the digest of a file's bytes or of a picture's pixels, and what decodes it."""
    if isinstance(item, str | Path):
        data = decoding.read_bytes(Path(item))
        return decoding.digest(data), partial(decoding.decode, data)
    picture = decoding.upright(item) if isinstance(item, Image.Image) else image_of(np.asarray(item))
    return decoding.digest(repr(picture.size).encode() + picture.tobytes()), lambda: picture


def image_of(pixels: np.ndarray) -> Image.Image:
    """Return an array as an RGB picture; grey ones have two axes."""
    if pixels.dtype != np.uint8 or 0 in pixels.shape or pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2:
        raise errors.PipelineError(
            "An image must be a path, a PIL image, or uint8 of shape (height, width, 3) or (height, width), "
            f"not {pixels.dtype} of shape {pixels.shape}."
        )
    return Image.fromarray(pixels).convert("RGB")


def compute_batch(
    batch: Mapping[str, tuple[np.ndarray, list[int]]], engine: Engine
) -> Iterator[tuple[int, np.ndarray]]:
    """Run {digest: (picture, its rows)} through the network; keep the codes, and yield each row with its own."""
    ((layer, spec),) = engine.network.specs.items()
    values = engine.codes([picture for picture, _ in batch.values()])[layer]
    for (digest, (_, rows)), code in zip(batch.items(), values, strict=True):
        if (spec, digest) not in CACHE.codes:
            CACHE.put(spec, digest, code)
        yield from ((row, code) for row in rows)
