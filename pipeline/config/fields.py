"""What settings are made of: types that pydantic checks, descriptions, and words that several commands share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from pipeline import yaml_text

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)


def setting(
    default: Any,
    help: str,
    *,
    key: str = "",
    pick: Literal["", "first", "last"] = "",
    group: str = "",
    shown: str = "",
    kind: Literal["flag", "positional", "optional"] = "flag",
    replaces: str = "",
    in_file: bool = True,
    **bounds: float,
) -> Any:
    """Describe a setting.

    key: where its default stands in params.yaml, if not under its own name in the command's section; `pick` then takes
    the first or last item of a list. shown: what `--help` says of the default, where that depends on other settings.
    kind: "positional" for arguments without a flag, "optional" for a flag whose value may be left out. replaces: a
    setting whose default does not hold where this flag is given. in_file: whether params.yaml may hold it. bounds: ge,
    gt, le, lt.
    """
    extra = {
        "key": key,
        "pick": pick,
        "group": group,
        "shown": shown,
        "kind": kind,
        "replaces": replaces,
        "in_file": in_file,
    }
    return Field(default=default, description=help, json_schema_extra=extra, **bounds)  # type: ignore[call-overload]


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """Return what `setting` was told about a field."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _as_list(value: Any) -> Any:
    """Take a single value for a list of one."""
    return [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _as_text(value: Any) -> Any:
    """Take a whole number for its digits."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _from_yaml(value: Any) -> Any:
    """Parse a grid that stands on the command line."""
    if not isinstance(value, str):
        return value
    try:
        return yaml_text.load(value)
    except ValueError as error:
        raise ValueError(f"it is not valid YAML ({error}). Write it like {{l2: {{C: [0.1, 1, 10]}}}}") from error


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_as_list)]
Integer = Annotated[int, Field(le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
BatchSize = Annotated[int, Field(ge=0, le=65536)]
Counts = Annotated[tuple[Annotated[Integer, Field(ge=1)], ...], BeforeValidator(_as_list)]
Normalisation = Literal["l2", "standard", "sqrt", "centred", "probabilities", "one-hot"]
Values = Annotated[list[Any], Field(min_length=1)]
Grid = Annotated[dict[Normalisation, dict[str, Values]], Field(min_length=1), BeforeValidator(_from_yaml)]
"""{normalisation of the codes: {parameter: values to try}}."""


def _as_in_spec(value: Any) -> Any:
    """Write cls+mean as in the spec of codes, where + separates layers."""
    return value.replace("cls+mean", "cls_mean") if isinstance(value, str) else value


PoolName = Annotated[str, BeforeValidator(_as_in_spec)]
"""How a spec of codes names a pooling."""

Pool = Annotated[PoolName, Field(pattern=r"^(|auto|(avg|max)([1-9]\d?)?|flatten|cls|mean|cls_mean)$")]
Size = Annotated[str, BeforeValidator(_as_text)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Decoder = Literal["auto", "pillow", "pillow-scaled", "torchcodec"]

GRIDS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "svm": {"l2": {"C": [1, 10, 100, 1000, 10000]}, "standard": {"C": [0.0001, 0.001, 0.01]}},
    "softmax": {"l2": {"C": [10, 100, 1000, 10000]}, "standard": {"C": [0.001, 0.01, 0.1, 1]}},
    "knn": {"l2": {"n_neighbors": [1, 3, 5, 10, 20]}},
    "ridge": {"l2": {"alpha": [0.001, 0.01, 0.1, 1]}, "standard": {"alpha": [10, 100, 1000, 10000]}},
    "ncm": {"centred": {}},
    "source-map": {"probabilities": {}, "one-hot": {}},
}
"""The grid that each model is searched over, unless params.yaml has a section of the model's name."""

GROUPS = EXPERIMENT, SETTINGS, SOURCE, RECIPE, NETWORK, MACHINE, FILES = (
    "Which experiment",
    "Settings of this command",
    "A source dataset, trained with the target",
    "Settings of the recipe, where its own are not to be taken",
    "The network, and what it sees",
    "How the work is done",
    "Files",
)
"""The titles under which `--help` lists the flags, in that order."""

DATASET = "The prepared dataset: its name under data/, or its folder."
TASK = "The column of labels, of a dataset that was prepared with --labels; --dataset NAME@TASK says the same."
BACKBONE = "The pretrained network."
LAYER = "The layer whose codes are used; fc6+fc7 joins the codes of both."
MODEL = "The classifier."
DEVICE = "Where the network runs: auto, cpu, cuda, cuda:1 or mps."
THREADS = "Number of threads that read and decode images."
CODES = "HDF5 file of the codes."
CODES_SHOWN = "features/DATASET/BACKBONE/LAYER.h5"
CLASSIFIER = "File of the trained classifier."
CLASSIFIER_SHOWN = "models/DATASET/BACKBONE/LAYER-MODEL.skops"
SPEC = "Refuse codes that were made with other {}."
NEW_IMAGES = "Image files, folders, zip and tar files, URLs of any of them, or - for paths on standard input."
WEIGHTS_NOW = "Where the backbone's weights are now, if they were moved."

NEAR_DUPLICATES = "near-duplicates"
"""What --group-by takes instead of a column, to group images by the distance of their codes."""

NEAR_DISTANCE = 0.05
"""How close near-duplicates are: most crops by 5% and most JPEG files that were saved again, few other photos."""

WHITE_OF_NEW = (
    "Value that is white in the new images, like 255 or 4095, where their depth is not that of the dataset's images."
)

GROUP_BY = (
    f"Column of the dataset's CSV file, or {NEAR_DUPLICATES}: images with the same value there, or nearly the same "
    "codes, stay {}."
)
NEAR = (
    "How close near-duplicates are: the distance of their codes (1 - cosine), as a share of the median distance "
    "between two training images."
)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the choices of a Literal, or of a union with one; () for any other type."""
    found = [annotation, *get_args(annotation)]
    literals = [part for part in found if getattr(part, "__origin__", None) is Literal]
    return tuple(str(choice) for literal in literals for choice in get_args(literal) if choice)
