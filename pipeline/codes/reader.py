"""Read CNN codes from HDF5 files, and verify their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    import pandas
    import torch

import h5py
import numpy as np

from pipeline import errors
from pipeline.codes import shards, stored
from pipeline.codes.spec import JOINED_FIELDS, CodesSpec, Rows, extract_settings, join_codes, join_specs
from pipeline.codes.stored import RowMetadata, StoredCodes
from pipeline.data.manifest import names_of_label
from pipeline.paths import LAYER_SEPARATOR
from pipeline.texts import Texts

CHECKED: set[tuple[object, ...]] = set()
"""The blocks whose rows this process has compared with their checksums, each with the state of its file."""

Values = TypeVar("Values", bound=Rows, covariant=True)
GivenValues = TypeVar("GivenValues", bound=Rows)


@dataclass(frozen=True)
class Codes(Generic[Values]):
    """CNN codes with their metadata, one row per image.

    values: (n, d) float32, >= 0 after a ReLU, or (n, n_views × d), the views of an image side by side; an array, or
    `StoredRows` that are read when needed; labels: (n,) int64, indices into `classes`, or for multi-label datasets
    (n, n_classes) uint8, 1 for each class of the image; paths, splits: n each; digests: n SHA-256 of the images' bytes,
    in hex; classes: sorted class names; spec: what the codes are.
    """

    values: Values
    labels: np.ndarray
    paths: Texts
    splits: Texts
    digests: Texts
    classes: tuple[str, ...]
    spec: CodesSpec

    def label_names(self) -> list[str]:
        """Return the name of each image's class; with semicolons between several, "" where there is none."""
        return [";".join(names_of_label(self.classes, label)) for label in self.labels]

    def take(self, rows: np.ndarray) -> Codes[np.ndarray]:
        """Return the codes of some rows, (m,) int64, in memory."""
        paths, splits, digests = (column.take(rows) for column in (self.paths, self.splits, self.digests))
        return Codes(self.values[:][rows], self.labels[rows], paths, splits, digests, self.classes, self.spec)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table: a row per image, by its path; the columns label and split, then a column per feature."""
        errors.require_packages("For a table", ["pandas"], "pandas")
        import pandas

        table = pandas.DataFrame(self.values[:], index=pandas.Index(list(self.paths), name="path"))
        table.insert(0, "label", self.label_names())
        table.insert(1, "split", list(self.splits))
        return table

    def to_torch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and labels as tensors that share the memory of the arrays."""
        import torch

        return torch.from_numpy(self.values[:]), torch.from_numpy(self.labels)


@dataclass(frozen=True)
class CodesStream:
    """A file of codes, of which one block of rows at a time is in memory.

    n: number of rows; width: numbers per row; blocks: the codes of some rows after those of others, to be read once;
    file: which is open.
    """

    n: int
    width: int
    classes: tuple[str, ...]
    spec: CodesSpec
    blocks: Iterator[Codes[np.ndarray]]
    file: StoredCodes


@dataclass(frozen=True)
class CodesIndex:
    """The metadata of a file of codes, as in `Codes`, without the values, which may be large.

    path: the file; width: numbers per row; bad: the images that were skipped, each with its reason.
    """

    path: Path
    labels: np.ndarray
    paths: Texts
    splits: Texts
    digests: Texts
    classes: tuple[str, ...]
    spec: CodesSpec
    width: int
    bad: tuple[str, ...]


class StoredRows:
    """The codes of some rows of an open file, (n, d) float32, read when they are sliced.

    Rows are compared with their checksums when they are first read. The last slice is kept: a pass that multiplies by a
    block and by its transpose reads it once. After two slices in a row the one that follows is read in a thread, while
    the caller computes.

    rows: increasing int64 row numbers in the file.
    """

    def __init__(self, file: StoredCodes, rows: np.ndarray) -> None:
        self.file, self.rows, self.checked = file, rows, np.zeros(len(rows), bool)
        self.last: tuple[slice, np.ndarray] = slice(0, 0), np.empty(0)
        self.ahead: tuple[slice, Future[np.ndarray]] | None = None
        self.thread = ThreadPoolExecutor(1)
        self.shape: tuple[int, int] = len(rows), file["values"].shape[1]
        self.dtype = np.dtype(np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown()

    def __getitem__(self, part: slice, /) -> np.ndarray:
        part = slice(*part.indices(len(self.rows))[:2])
        before, values = self.last
        if before != part:
            del values
            self.last = slice(0, 0), np.empty(0)  # one block is in memory, and the one that is read ahead
            self.last = part, self._take(part)
            if 0 < part.start == before.stop:
                following = slice(part.stop, min(2 * part.stop - part.start, len(self.rows)))
                self.ahead = following, self.thread.submit(self._read, following)
        return self.last[1]

    def _take(self, part: slice) -> np.ndarray:
        """Return the block that was read ahead, or read it, when nothing else is being read."""
        ahead, self.ahead = self.ahead, None
        values = ahead[1].result() if ahead else None
        return values if ahead and values is not None and ahead[0] == part else self._read(part)

    def _read(self, part: slice) -> np.ndarray:
        rows = self.rows[part]
        if not len(rows):
            return np.empty((0, self.shape[1]), np.float32)
        first, last = int(rows[0]), int(rows[-1]) + 1
        if self.checked[part].all():
            values = stored.read_values(self.file, first, last).astype(np.float32, copy=False)
        else:
            values, _ = stored.read_rows(self.file, first, last)
            self.checked[part] = True
        return values if len(values) == len(rows) else values[rows - first]


def read(path: Path, expected: Mapping[str, object], split: str | None = None) -> Codes[np.ndarray]:
    """Read the codes of one split, or of all.

    expected: values of some fields of the spec, as `validate_spec` takes them. Raises PipelineError if the file's spec
    has others, and if the file is missing or damaged.
    """
    with open_file(path, expected) as file:
        spec = stored.read_spec(file, path, expected)
        rows = _rows_of_split(file, split)
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        values, metadata = stored.read_rows(file, first, last)
        if len(rows) < last - first:
            values, metadata = values[rows - first], metadata.take(rows - first)
        return codes_of_rows(values, metadata, stored.decode_texts(file["classes"][()]), spec)


@contextmanager
def open_codes(
    path: Path, expected: Mapping[str, object], split: str, memory: int | None
) -> Iterator[Codes[np.ndarray] | Codes[StoredRows]]:
    """Yield the codes that `read_layers` returns; their values are `StoredRows` if they exceed `memory` bytes.

    memory: None for no limit. Raises PipelineError as `read` does, and if codes of several layers have a limit.
    """
    if LAYER_SEPARATOR in path.stem:
        if memory is not None:
            raise errors.PipelineError(
                "Codes of several layers are joined in memory. Leave --memory out, or take one layer."
            )
        yield read_layers(path, expected, split)
        return
    with open_file(path, expected) as file:
        spec, classes = stored.read_spec(file, path, expected), stored.decode_texts(file["classes"][()])
        rows = _rows_of_split(file, split)
        fits = memory is None or np.dtype(np.float32).itemsize * len(rows) * file["values"].shape[1] <= memory
        labels, texts = file["labels"][()][rows], () if fits else tuple(stored.read_texts(file, rows))
    if fits:
        yield read(path, expected, split)
        return
    with open_unguarded(path) as file:
        paths, splits, digests = texts
        yield Codes(StoredRows(file, rows), labels, paths, splits, digests, classes, spec)


@contextmanager
def open_stream(path: Path, expected: Mapping[str, object]) -> Iterator[CodesStream]:
    """Yield the codes of one layer block by block; expected, and what is raised, as for `read`."""
    with open_file(path, expected) as file:
        spec, classes = stored.read_spec(file, path, expected), stored.decode_texts(file["classes"][()])
    with open_unguarded(path) as file:
        rows = (stored.read_rows(file, first, last) for first, last in stored.block_bounds(file))
        blocks = (codes_of_rows(values, metadata, classes, spec) for values, metadata in rows)
        n, width = file["values"].shape
        yield CodesStream(n, width, classes, spec, blocks, file)


def codes_of_rows(
    values: GivenValues, metadata: RowMetadata, classes: tuple[str, ...], spec: CodesSpec
) -> Codes[GivenValues]:
    """Return the codes of some rows as their metadata says."""
    paths, splits, digests = map(Texts.of_column, (metadata.paths, metadata.splits, metadata.digests))
    return Codes(values, metadata.labels, paths, splits, digests, classes, spec)


def _rows_of_split(file: StoredCodes, split: str | None) -> np.ndarray:
    """Return the increasing int64 numbers of a split's rows, or of all."""
    splits = file["splits"][()]
    return np.arange(len(splits)) if split is None else np.flatnonzero(splits == split.encode())


def layer_files(path: Path) -> list[Path]:
    """Return the files that a path names: itself, or fc6.h5 and fc7.h5 for fc6+fc7.h5."""
    return [path.with_name(f"{name}{path.suffix}") for name in path.stem.split(LAYER_SEPARATOR)]


def read_layers(path: Path, expected: Mapping[str, object], split: str | None = None) -> Codes[np.ndarray]:
    """Read codes as `read` does; from a path like fc6+fc7.h5 those of several files, joined into one row per image."""
    files = layer_files(path)
    if len(files) == 1:
        return read(path, expected, split)
    layers = [read(file, _expected_of_layer(expected, number), split) for number, file in enumerate(files)]
    for file, layer in zip(files, layers, strict=True):
        if _row_identities(layer) != _row_identities(layers[0]):
            raise errors.PipelineError(
                f"{file.name} and {files[0].name} hold other images, or other labels. Extract all layers in one run.",
                fix=[errors.Fix("extract", {**extract_settings(layers[0].spec.to_dict()), "layer": path.stem})],
            )
    spec = join_specs([layer.spec for layer in layers])
    return replace(layers[0], values=join_codes([layer.values for layer in layers], spec), spec=spec)


def _expected_of_layer(expected: Mapping[str, object], number: int) -> dict[str, object]:
    """Return the values expected of one of several layers, whose names are joined in the values given."""
    return {
        name: value.split(LAYER_SEPARATOR)[number]
        if name in JOINED_FIELDS and isinstance(value, str) and LAYER_SEPARATOR in value
        else value
        for name, value in expected.items()
    }


def _row_identities(codes: Codes[np.ndarray]) -> tuple[object, ...]:
    """Return all that must be equal where the rows of two files are the same images."""
    return codes.paths, codes.digests, codes.splits, codes.classes, codes.labels.tolist()


def flatten_views(codes: Codes[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the codes of all views, (n × n_views, d), with their labels and the numbers of their images.

    The numbers are None where each image has one view.
    """
    n_views, n_images = codes.spec.n_views, len(codes.labels)
    if n_views == 1 or not n_images:
        return codes.values, codes.labels, None
    values = codes.values.reshape(n_images * n_views, -1)
    return values, np.repeat(codes.labels, n_views), np.repeat(np.arange(n_images), n_views)


def read_index(path: Path, expected: Mapping[str, object]) -> CodesIndex:
    """Read all but the values; expected, and what is raised, as for `read`."""
    with open_file(path, expected) as file:
        spec = stored.read_spec(file, path, expected)
        n, width = file["values"].shape
        paths, splits, digests = stored.read_texts(file, np.arange(n))
        classes, bad = (stored.decode_texts(file[name][()]) for name in ("classes", "bad"))
        return CodesIndex(path, file["labels"][()], paths, splits, digests, classes, spec, width, bad)


def blocks(path: Path, rows: np.ndarray, *, check_once: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield some of the row numbers at a time with their (m, d) float32 values; one block at a time is in memory.

    path: as for `read_layers`, which joins several layers alike; rows: increasing int64 row numbers; check_once: where
    a file is read many times, compare its rows with their checksums the first time only.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open_file(file, {})) for file in layer_files(path)]
        spec = join_specs([stored.read_spec(file, path, {}) for file in files])
        for start, stop in stored.block_bounds(*files):
            first, last = np.searchsorted(rows, (start, stop))
            if first < last:
                chosen = rows[first:last]
                yield (
                    chosen,
                    join_codes([_read_block(file, start, stop, check_once)[chosen - start] for file in files], spec),
                )


def _read_block(file: StoredCodes, start: int, stop: int, check_once: bool) -> np.ndarray:
    """Return the (m, d) float32 values of some rows, compared with their checksums unless that has been done."""
    state = Path(file.filename).stat()  # a file that was written since then is another one
    block = file.filename, state.st_ino, state.st_size, state.st_mtime_ns, start, stop
    if check_once and block in CHECKED:
        return stored.read_values(file, start, stop).astype(np.float32, copy=False)
    values, _ = stored.read_rows(file, start, stop)
    CHECKED.add(block)
    return values


@contextmanager
def open_file(path: Path, expected: Mapping[str, object]) -> Iterator[StoredCodes]:
    """Open a file of codes for reading; raise PipelineError that says what is wrong if it cannot be read.

    expected: values of some fields of the spec, which stand in the command that the error names.
    """
    if not path.exists():
        raise errors.PipelineError(
            f"There are no codes at {path}.{errors.beside(path)} Extract them.", fix=stored.extraction(path, expected)
        )
    try:
        with open_unguarded(path) as file:
            yield file
    except (OSError, KeyError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        if "unable to lock file" in reason:
            raise errors.PipelineError(f"{path} cannot be locked for reading: {_why_locked(error)}") from error
        raise errors.PipelineError(
            f"{path} is damaged, or no file of codes ({reason}). Extract again.", fix=stored.extraction(path, expected)
        ) from error


@contextmanager
def open_unguarded(path: Path) -> Iterator[StoredCodes]:
    """Open a file of codes, or those that an index names; errors are those of HDF5.

    For long use: `open_file` would take errors of the caller for damage.
    """
    with h5py.File(path) as file:
        if file.attrs.get("format") != shards.FORMAT:
            yield file
            return
        with shards.ShardedCodes(path, file) as whole:
            yield whole


def _why_locked(error: Exception) -> str:
    if isinstance(error, BlockingIOError):
        return "another process is writing it. Wait until that is done, or end it."
    return "its disk has no locks. Set the environment variable HDF5_USE_FILE_LOCKING=FALSE, and run again."
