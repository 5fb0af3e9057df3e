"""The HDF5 file of CNN codes: its spec, its checksums, and how it is read and verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from pipeline import errors
from pipeline.images import views

LAYER_SEPARATOR, JOINED_FIELDS = "+", ("layer", "node", "pool")
"""What joins the names of several layers, and the fields of their spec that it joins."""


class Rows(Protocol):
    """Codes of n images, (n, d), in memory or on disk: slicing reads some of the rows into memory.

    `numpy.ndarray` and `reader.StoredRows` satisfy it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that slicing gives."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Return the (m, d) values of a slice of the rows."""
        ...


@dataclass(frozen=True)
class CodesSpec:
    """What makes two codes comparable: the network up to the layer, what it saw, and how its maps became vectors.

    weights_sha256: digest of names, shapes and values of the state dict, however it was stored;
    resize, crop, interpolation, mean, std, crop_width, fit, views, decoder: as in `images.Transform`; pool: "none"
    where the layer gives a vector; relu: "post", or "pre" for what goes into the layer's ReLU;
    precision: of the forward pass; dtype: what the values are stored as.
    """

    backbone: str
    layer: str
    node: str
    weights: str
    weights_sha256: str
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pool: str
    precision: str
    dtype: str = "float32"
    crop_width: int = 0
    fit: str = "crop"
    views: str = "one"
    decoder: str = "pillow"
    relu: str = "post"


def join_specs(specs: Sequence[CodesSpec]) -> CodesSpec:
    """Return the spec of several layers' codes joined; they must not differ in anything else."""
    if len(specs) == 1:
        return specs[0]
    rest = {name: value for name, value in asdict(specs[0]).items() if name not in JOINED_FIELDS}
    for spec in specs[1:]:
        validate_spec(spec, rest, f"layer {spec.layer}, beside those of {specs[0].layer},")
    layer, node, pool = (LAYER_SEPARATOR.join(getattr(spec, name) for spec in specs) for name in JOINED_FIELDS)
    return replace(specs[0], layer=layer, node=node, pool=pool)


def join_codes(values: Sequence[np.ndarray], spec: CodesSpec) -> np.ndarray:
    """Return several layers' codes as one row an image, each layer's (n, d) brought to length 1; one alone as it is.

    Of several views, each view's codes are joined by themselves.
    """
    if len(values) == 1:
        return values[0]
    count = len(values[0])
    rows = [some.reshape(count * views.count(spec.views), -1) if count else some for some in values]
    lengths = [np.linalg.norm(some, axis=1, keepdims=True) for some in rows]
    units = [some / np.where(length > 0, length, 1) for some, length in zip(rows, lengths, strict=True)]
    return np.concatenate(units, 1, dtype=np.float32).reshape(count, -1 if count else sum(v.shape[1] for v in values))


def validate_spec(spec: CodesSpec, expected: Mapping[str, Any], where: str) -> None:
    """Raise an error that names each difference between a spec and the values expected of it."""
    if found := spec_differences(spec, expected):
        raise errors.PipelineError(
            f"The codes in {where} have another spec than asked: {'; '.join(found)}. "
            "Ask for what they are, or run pipeline.extract again."
        )


def spec_differences(spec: CodesSpec, expected: Mapping[str, Any]) -> list[str]:
    """Name each difference between a spec and the values expected of it."""
    found = asdict(spec)
    return [f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]
