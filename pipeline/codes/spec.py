"""The spec of CNN codes: all that makes two codes comparable, and how several layers' codes are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline import errors
from pipeline.images import depth, views
from pipeline.images.transforms import Transform
from pipeline.paths import LAYER_SEPARATOR

JOINED_FIELDS = ("layer", "node", "pool", "activation")
"""Fields of the spec in which several layers differ; joined codes have all of their values, with the separator."""


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
    """What makes two codes comparable: the network up to the layer, its input, and how its maps became vectors.

    backbone, layer: names; node: the layer's node in the network's graph; weights: where they came from, as --weights
    names it; weights_sha256: SHA-256 of the names, shapes and values of the state dict, in any file format;
    transform: what happened to the images; pool: how maps became vectors, "none" where the layer gives vectors;
    precision: of the forward pass ("fp32", "bf16" or "fp16"); dtype: type in which the codes are stored ("float32" or
    "float16"); relu: "post", or "pre" for the input of the layer's ReLU; activation: "relu" where all of the code went
    through a ReLU, so that no value is negative, or else "none".
    """

    backbone: str
    layer: str
    node: str
    weights: str
    weights_sha256: str
    transform: Transform
    pool: str
    precision: str
    dtype: str = "float32"
    relu: str = "post"
    activation: str = "relu"

    @property
    def n_views(self) -> int:
        """How many views of an image its codes are made of."""
        return views.count(self.transform.views)

    def with_white(self, white: float | None) -> CodesSpec:
        """Return the spec of new images in which this value is white; None for the value of the dataset's images.

        Once images have 8 bits, their codes can be compared, whatever they had before.
        """
        return self if white is None else replace(self, transform=replace(self.transform, max_value=white))

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON types; the transform is a dict within it."""
        data: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return data

    def to_json(self) -> str:
        """Return the spec as one line of JSON; equal specs give equal text."""
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_dict(data: object) -> CodesSpec:
        """Return the spec that `to_dict` gave `data` of; raise ValueError if names or types are wrong."""
        try:
            spec = _ADAPTER.validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ValueError(f"not a spec of codes: {f'{name}: ' if name else ''}{first['msg']}") from error
        if spec.to_dict() != data:
            raise ValueError("not a spec of codes: it lacks fields, or has others")
        return spec


_ADAPTER = TypeAdapter(CodesSpec)


def extract_settings(expected: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings of `extract` that give codes of a spec.

    expected: as `CodesSpec.to_dict` gives it, or some of its fields.
    """
    settings = {name: expected[name] for name in ("backbone", "layer", "weights", "relu", "dtype") if name in expected}
    pools = {pool for pool in expected.get("pool", "").split(LAYER_SEPARATOR) if pool not in ("", "none")}
    if len(pools) == 1:
        settings["pool"] = pools.pop()
    if transform := expected.get("transform"):
        whole, max_value = transform["fit"] == "whole", transform["max_value"]
        settings |= {
            "size": f"{transform['crop']}x{transform['crop_width'] or transform['crop']}",
            "resize": None if whole else transform["resize"],
            "crop": "none" if whole else "center",
            "views": transform["views"],
            "range": None if max_value == depth.WHITE else max_value,
        }
    return settings


def join_specs(specs: Sequence[CodesSpec]) -> CodesSpec:
    """Return the spec of several layers' codes joined; raise PipelineError if they differ in anything else."""
    if len(specs) == 1:
        return specs[0]
    shared = {name: value for name, value in specs[0].to_dict().items() if name not in JOINED_FIELDS}
    for spec in specs[1:]:
        validate_spec(spec, shared, f"layer {spec.layer}, which are joined to those of {specs[0].layer},")
    joined: dict[str, Any] = {
        name: LAYER_SEPARATOR.join(getattr(spec, name) for spec in specs) for name in JOINED_FIELDS
    }
    return replace(specs[0], **joined)


def join_codes(values: Sequence[np.ndarray], spec: CodesSpec) -> np.ndarray:
    """Return several layers' codes as one row per image, (n, sum of d) float32; those of one layer as they are.

    Each layer's (n, d) codes are scaled to length 1 first. Of several views of an image, each view's codes are joined.
    spec: of the joined codes.
    """
    if len(values) == 1:
        return values[0]
    units = [_scale_to_unit(layer.reshape(-1, layer.shape[1] // spec.n_views)) for layer in values]
    return np.concatenate(units, 1, dtype=np.float32).reshape(len(values[0]), sum(layer.shape[1] for layer in values))


def _scale_to_unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def validate_spec(spec: CodesSpec, expected: Mapping[str, object], where: str) -> None:
    """Raise PipelineError that names each difference between a spec and the values expected of it."""
    if differences := spec_differences(spec, expected):
        raise errors.PipelineError(
            f"The codes in {where} are not those requested: {'; '.join(differences)}. Request these with the same "
            "flags, or extract those.",
            fix=[errors.Fix("extract", extract_settings(expected))],
        )


def spec_differences(spec: CodesSpec, expected: Mapping[str, object]) -> list[str]:
    """Return a sentence part for each difference between a spec and the values expected of some of its fields.

    expected: as `CodesSpec.to_dict` gives it; a field of the transform may also be named as transform.resize.
    """
    actual = flatten(spec.to_dict())
    return [
        f"{name} is {actual[name]!r}, not {value!r}"
        for name, value in flatten(expected).items()
        if actual[name] != value
    ]


def flatten(nested: Mapping[str, object]) -> dict[str, object]:
    """Return a spec's dict without nesting: the transform's fields get names like transform.resize."""
    flat: dict[str, object] = {}
    for name, value in nested.items():
        flat |= {f"{name}.{field}": it for field, it in value.items()} if isinstance(value, dict) else {name: value}
    return flat
