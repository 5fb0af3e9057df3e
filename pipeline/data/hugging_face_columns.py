"""The columns of a dataset of Hugging Face: which has the images, which the labels, and what their numbers mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

from pipeline.data.listing import clean_name
from pipeline.data.manifest import RESERVED_COLUMNS
from pipeline.errors import PipelineError, unknown

FLAGS = {"images": "--image-column", "labels": "--label-column"}
"""The flag that names a column, by what it holds."""

USUAL = ("label", "labels", "fine_label")
"""Names of columns that hold labels, where none is declared as such."""


@dataclass(frozen=True)
class Columns:
    """The columns of the images and of the labels; "" where the user leaves it to the program, or there is none."""

    image: str = ""
    label: str = ""

    def found_in(self, schema: pyarrow.Schema, source: Path, labelled: bool) -> Columns:
        """Return the columns in a file of this schema; refuse what is missing, and what could be one or another."""
        if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
            raise PipelineError(f"{source} has two columns {repeated[0]!r}. Take one of them out.")
        features = features_of(schema)
        images = [field.name for field in schema if _holds_images(field, features.get(field.name, {}))]
        others = [name for name in schema.names if name not in images]
        image = _choose("images", self.image, images, images, source, schema)
        if not labelled:
            return Columns(image)
        declared = [name for name in others if _class_names(features.get(name, {})) is not None]
        likely = declared or [name for name in USUAL if name in others][:1]
        return Columns(image, _choose("labels", self.label, likely, others, source, schema))

    def plain(self, schema: pyarrow.Schema) -> list[str]:
        """Return the other columns of text and numbers."""
        from pyarrow import types

        kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
        taken = {self.image, self.label, *RESERVED_COLUMNS}
        return [field.name for field in schema if field.name not in taken and any(kind(field.type) for kind in kinds)]

    def feature(self, schema: pyarrow.Schema) -> Mapping[str, Any]:
        """Return what is declared of the labels."""
        return features_of(schema).get(self.label, {})


def features_of(schema: pyarrow.Schema) -> dict[str, Any]:
    """Return what the library `datasets` notes of each column, {} where it wrote nothing."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return {name: one for name, one in dict(content["info"]["features"]).items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError):
        return {}


def _holds_images(field: pyarrow.Field, feature: Mapping[str, Any]) -> bool:
    from pyarrow import types

    if not types.is_struct(field.type):
        return _holds_bytes(field.type)
    number = field.type.get_field_index("bytes")
    is_image = feature.get("_type", "Image") == "Image"
    return is_image and number >= 0 and _holds_bytes(field.type.field(number).type, or_nothing=True)


def _holds_bytes(kind: pyarrow.DataType, or_nothing: bool = False) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or (or_nothing and types.is_null(kind))


def _choose(
    what: str, wanted: str, likely: Sequence[str], possible: Sequence[str], source: Path, schema: pyarrow.Schema
) -> str:
    """Return the column that is wanted, or else the only likely one; what: a key of `FLAGS`."""
    if wanted and wanted not in possible:
        raise unknown(f"column of {what}", wanted, possible, where=str(source))
    if wanted or len(likely) == 1:
        return wanted or likely[0]
    flag, shown = FLAGS[what], ", ".join(map(repr, likely or schema.names))
    if likely:
        raise PipelineError(f"{source} has several columns of {what}: {shown}. Say which with {flag} {likely[0]}.")
    if what == "images":
        raise PipelineError(f"{source} has no column of images; its columns are: {shown}. Name another dataset.")
    raise PipelineError(
        f"{source} has no column that is declared as labels; its columns are: {shown}. Say which with {flag} NAME, or "
        f"take --unlabelled {source}."
    )


def _class_names(feature: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a column's classes, of one or of several per row; None for another column."""
    inner = feature.get("feature", feature)
    names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
    return [clean_name(str(name)) for name in names] if isinstance(names, list) else None


def label_of(value: Any, feature: Mapping[str, Any], source: Path) -> tuple[str, bool]:
    """Return the label of a row, "" for none, and whether it may name several classes."""
    names = _class_names(feature)
    if not isinstance(value, list):
        return _name_of(value, names, source), False
    labels = {_name_of(one, names, source) for one in value}
    if odd := [label for label in labels if ";" in label]:
        raise PipelineError(f"The class {odd[0]!r} of {source} has a semicolon, which separates labels. Rename it.")
    return ";".join(sorted(labels - {""})), True


def _name_of(value: Any, names: Sequence[str] | None, source: Path) -> str:
    if value is None or (names is not None and value == -1):
        return ""
    if names is None:
        return clean_name(str(value))
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise PipelineError(f"{source} has the label {value!r}, but names for 0 to {len(names) - 1}. Save it again.")
    return names[value]
