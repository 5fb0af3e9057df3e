"""Settings from three places: the program's defaults, params.yaml over them, and the command line over both."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline import errors, yaml_text
from pipeline.config import COMMANDS, GRIDS, Command, Grid, Prepare, Project, choices_of, extra_of
from pipeline.errors import PipelineError
from pipeline.paths import name_of_source

PARAMS = Path("params.yaml")
Settings = TypeVar("Settings", bound=Command)

MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text, in quotes",
    "tuple": "a list",
    "list": "a list",
    "dict": "{normalisation: {parameter: [values]}}, like {l2: {C: [0.1, 1, 10]}}",
    "path": "a path",
}
"""What pydantic's types of errors mean to somebody who reads a settings file, by their first word."""

BOUNDS = {
    "greater_than_equal": "{ge:.10g} or more",
    "greater_than": "greater than {gt:.10g}",
    "less_than_equal": "{le:.10g} or less",
    "less_than": "less than {lt:.10g}",
    "too_short": "a list of at least {min_length}",
    "string_too_short": "{min_length} character or more",
}


@dataclass(frozen=True)
class Origin:
    """Where the value of a setting came from, as a person would say it: `--folds`, `params.yaml, classify.folds`."""

    name: str
    in_file: bool

    @property
    def place(self) -> str:
        """The flag, or the file alone."""
        return str(PARAMS) if self.in_file else self.name


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Read and check params.yaml of the working folder; {} where there is none."""
    if not os.path.lexists(path):
        return {}
    try:
        content = yaml_text.load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} is not valid UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except ValueError as error:
        raise PipelineError(f"{path} is not valid YAML ({error}). Fix it, then run again.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise PipelineError(f"{path} must hold `name: value` lines. Fix it, then run again.")
    validate_params(content, path)
    return content


def validate_params(content: Mapping[Any, Any], path: Path = PARAMS) -> None:
    """Refuse a key that is unknown, or a value of a wrong type or choice, anywhere in the file."""
    top = {name: value for name, value in content.items() if name in names_of(Project)}
    _validate(Project, top, {name: f"{path}: {name}" for name in top})
    for name, value in content.items():
        if name in GRIDS:
            _validate_grid(value, f"{path}: {name}")
        elif name in COMMANDS:
            _validate_section(COMMANDS[name], value, f"{path}: {name}")
        elif name not in top:
            raise errors.unknown("key", str(name), [*names_of(Project), *COMMANDS, *GRIDS], where=str(path))


def _validate_section(settings: type[Command], section: Any, where: str) -> None:
    if section is None:
        return
    if not isinstance(section, dict):
        raise PipelineError(f"{where} is {_shown(section)}, but it must hold `name: value` lines.")
    names = [name for name in names_of(settings) if _may_be_in_file(settings, name)]
    given = {_plain(name): value for name, value in section.items()}
    for name in given:
        if name not in names:
            raise errors.unknown("key", name, names, where=where)
    if len(given) < len(section):
        raise PipelineError(f"{where} has a key twice, with a hyphen and with an underscore. Take one of them out.")
    _validate(settings, _without_empty(given), {name: f"{where}.{name}" for name in given})


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values but those left empty, for which the program's defaults hold."""
    return {name: value for name, value in values.items() if value is not None}


def _validate_grid(grid: Any, where: str) -> None:
    try:
        TypeAdapter(Grid).validate_python(grid)
    except ValidationError as error:
        raise PipelineError(explain(error, where)) from None


def names_of(settings: Any) -> list[str]:
    """Return the names of the fields of a settings class."""
    return [field.name for field in fields(settings)]


def _may_be_in_file(settings: Any, name: str) -> bool:
    extra = extra_of(settings.__pydantic_fields__[name])
    return bool(extra["in_file"]) and extra["key"] in ("", f"{_section_of(settings)}.{name}")


def _section_of(settings: type[Command]) -> str:
    return next(name for name, known in COMMANDS.items() if known is settings)


def _plain(name: Any) -> str:
    return str(name).replace("-", "_")


def resolve(
    command: str, flags: Mapping[str, Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Merge what the command line and params.yaml say of a command's settings; say where each value came from."""
    settings: Any = COMMANDS[command]
    section = _without_empty({_plain(name): value for name, value in (params.get(command) or {}).items()})
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    replaced = {extra_of(settings.__pydantic_fields__[name])["replaces"] for name in flags}
    for name, field in settings.__pydantic_fields__.items():
        extra = extra_of(field)
        place = extra["key"] or f"{command}.{name}"
        if name in replaced - set(flags):
            values[name], origins[name] = "", Origin("left out", in_file=False)
        elif name in flags:
            values[name], origins[name] = flags[name], Origin(_flag(name, extra["kind"]), in_file=False)
        elif name in section and not extra["key"]:
            values[name], origins[name] = section[name], Origin(f"{PARAMS}: {place}", in_file=True)
        elif (found := _look_up(params, place)) is not None:
            values[name] = _pick(found, extra["pick"])
            origins[name] = Origin(f"{PARAMS}: {place}", in_file=True)
    return values, origins


def _flag(name: str, kind: str) -> str:
    return name.upper() if kind == "positional" else f"--{name.replace('_', '-')}"


def _look_up(params: Mapping[str, Any], place: str) -> Any:
    """Return the value at `section.name` or `name`; None where there is none."""
    value: Any = params
    for part in place.split("."):
        value = {_plain(name): inner for name, inner in value.items()}.get(part) if isinstance(value, Mapping) else None
    return value


def _pick(value: Any, which: str) -> Any:
    if not which or isinstance(value, str):
        return value
    return value[0 if which == "first" else -1]


def load(
    settings: type[Settings], flags: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
) -> tuple[Settings, dict[str, Origin]]:
    """Return a command's settings, checked, and where each came from.

    flags: what the command line says, as text or as Python values; params: what `read_params` returned, if it was
    called already.
    """
    values, origins = resolve(_section_of(settings), flags or {}, read_params() if params is None else params)
    places = {name: origin.name for name, origin in origins.items()}
    return _validate(settings, values, places), origins


def grid_of(model: str) -> Any:
    """Return the grid to search for a model: its section of params.yaml, or the program's own; None if unknown."""
    return read_params().get(model) or GRIDS.get(model)


def _validate(settings: type[Any], values: Mapping[str, Any], places: Mapping[str, str]) -> Any:
    """Build a settings object; places: what to call each value in an error."""
    for name, value in values.items():
        if isinstance(value, bool) and not _takes_bool(settings, name):
            raise PipelineError(_explain_bool(settings, name, value, places[name]))
        if odd := next(_odd_texts(value), None):
            raise PipelineError(f"{places[name]} holds a character that no file's name may have: {odd!r}. Take it out.")
    try:
        return settings(**values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise PipelineError(explain(error, places.get(name, name))) from None


def _odd_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value that hold a zero byte, or half of a surrogate pair."""
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and re.search("[\0\ud800-\udc7f\udd00-\udfff]", text):
            yield text


def _takes_bool(settings: Any, name: str) -> bool:
    field = settings.__pydantic_fields__.get(name)
    return field is None or "bool" in str(field.annotation)


def _explain_bool(settings: Any, name: str, value: bool, place: str) -> str:
    """Say what is wrong with true or false where another value belongs."""
    choices = choices_of(settings.__pydantic_fields__[name].annotation)
    if not choices:
        return f"{place} is {_shown(value)}, but it must be {_kind_of(settings, name)}."
    return f"{place} is {_shown(value)}. Choose from: {', '.join(choices)}."


def _kind_of(settings: Any, name: str) -> str:
    annotation = str(settings.__pydantic_fields__[name].annotation)
    return next((words for kind, words in MUST_BE.items() if kind in annotation), "text")


def explain(error: ValidationError, place: str) -> str:
    """Say the first of pydantic's errors in one sentence, with the place, the value and the choices."""
    first = error.errors()[0]
    kind, value = first["type"], first.get("input")
    inside = [str(part) for part in first["loc"][1:] if isinstance(part, str) and part.isidentifier()]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"{place} is {_shown(value)}. Choose from: {', '.join(errors.nearest(_shown(value), choices))}."
    if kind == "value_error":
        return f"{place} is {_shown(value)}, but {first['ctx']['error']}."
    if kind == "string_pattern_mismatch":
        return f"{place} is {_shown(value)}. Choose from: auto, avg, max, flatten, avgN or maxN."
    where = f"{place} ({'.'.join(inside)})" if inside and "key" not in inside else place
    if kind in BOUNDS:
        return f"{where} is {_shown(value)}, but it must be {BOUNDS[kind].format(**first['ctx'])}."
    must = MUST_BE.get(kind.split("_")[0], first["msg"])
    return f"{where} is {_shown(value)}, but it must be {must}."


def _shown(value: Any) -> str:
    """Return a value as YAML would write it, shortened."""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "empty"}[value]
    try:  # a few lines of YAML can unfold to lists of billions
        text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}…"


def split_settings() -> dict[str, Any]:
    """Return the shares and the seed by which `prepare` draws splits: for datasets that are prepared on the spot."""
    settings, _ = load(Prepare)
    return {"test": settings.test, "val": settings.val, "seed": settings.seed}


def dataset_name(source: str) -> str:
    """Return what `prepare` calls a dataset: as params.yaml calls that of its own source, else by the source's name."""
    project = effective()
    own = project["source"] or (project.get("prepare") or {}).get("unlabelled")
    if source and source == str(own):
        return str(project["dataset"])
    if "\0" in source:
        raise PipelineError(f"The dataset {source!r} contains a zero byte. Correct its name.")
    name = name_of_source(source)
    if not source or not name:
        raise PipelineError(f"The dataset {source!r} gives no name for the prepared folder. Name it with --out.")
    return name


def effective() -> dict[str, Any]:
    """Return what params.yaml of the working folder says, over the program's defaults of the same keys."""
    project = {name: field.default for name, field in Project.__pydantic_fields__.items()}  # type: ignore[attr-defined]
    return project | read_params()
