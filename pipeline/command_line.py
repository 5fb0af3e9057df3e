"""The command line of every command: flags from its settings, one sentence for a mistake, exit codes."""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from pipeline import errors, hints, params
from pipeline.addresses import without_secrets
from pipeline.config import COMMANDS, GROUPS, MACHINE, SETTINGS, OfDataset, choices_of, extra_of
from pipeline.errors import PipelineError
from pipeline.params import Origin
from pipeline.paths import resolve_task

logger = logging.getLogger(__name__)

USAGE = {
    "run": " FOLDER",
    "predict": " IMAGE|FOLDER|- …",
    "similar": " IMAGE|FOLDER|- …",
    "verify": " FILE",
    "compare": " [-- flags of finetune]",
}
"""What follows the flags, in the commands that take more than those."""


METAVARS = {
    **dict.fromkeys(("group_by", "image_column", "label_column"), "COLUMN"),
    **{"tuned_layer": "LAYER", "tuned_model": "MODEL", "shots": "N", "curve": "N"},
}
"""What stands for the values of some flags in `--help`, where neither the flag's name nor its type says it."""


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise PipelineError with argparse's message."""
        raise PipelineError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def start(command: str) -> NoReturn:
    """Run a command with the arguments of the process, and end with its exit code."""
    sys.exit(run_command(command, sys.argv[1:]))


def run_command(command: str, arguments: Sequence[str]) -> int:
    """Run a command and return the exit code: 0, 2 for a mistake, 3 for a run with gaps, 130 for an interrupt.

    Its module, with the libraries that it needs, is imported once the arguments have been understood.
    """
    settings: type[Any] = COMMANDS[command]
    origins: dict[str, Origin] = {}
    config: Any = None
    try:
        content = params.read_params()
        values, origins = params.resolve(command, {}, content)
        parser = build_parser(command, values)
        flags = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
        config, origins = params.load(settings, flags, content)
        set_up_logging(quiet=config.quiet, verbose=config.verbose)
        for stream in (sys.stdout, sys.stderr):
            escape_unknown_characters(stream)
        config = with_task(config)
        log_address(config, origins)
        importlib.import_module(f"pipeline.{command}").run(config)
        sys.stdout.flush()
    except (PipelineError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and reader_has_left():
            return 0
        if "--debug" in arguments:
            raise
        if isinstance(error, PipelineError):
            error = hints.completed(error, vars(config) if config else {}, _origin_of(error, origins))
        print(errors.sentence(error), file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 2)
    return 0


def with_task(config: Any) -> Any:
    """Return the settings with the dataset for its first task, which is the dataset itself."""
    dataset = getattr(config, "dataset", None) if isinstance(config, OfDataset) else None
    return replace(config, dataset=resolve_task(dataset)) if dataset else config


def reader_has_left() -> bool:
    """Return whether nobody reads the output any more, as `head` does not once it has seen enough."""
    try:
        poll, output = select.poll(), sys.stdout.fileno()
    except (OSError, AttributeError):  # no file, as in a notebook, or no poll, as on Windows
        return False
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more at the end
    return True


def docstring_of(command: str) -> str:
    """Return what a command's module says of itself, without importing it."""
    spec = find_spec(f"pipeline.{command}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return ast.get_docstring(ast.parse(source)) or ""


def log_address(config: Any, origins: Mapping[str, Origin]) -> None:
    """Log which experiment a command works on, and where each word came from, so that a forgotten flag is noticed."""
    fields = type(config).__pydantic_fields__
    words = [
        _word(name, value, extra_of(fields[name])["shown"], origins.get(name))
        for name in config.address_settings()
        if (value := getattr(config, name)) != ""
    ]
    if words and os.environ.get("RANK", "0") == "0" and getattr(config, "list", None) is None:  # RANK: of torchrun
        logger.info("%s", "; ".join(words))


def _word(name: str, value: Any, shown: str, origin: Origin | None) -> str:
    text = shown if value is None else ", ".join(value) if isinstance(value, tuple) else value
    return f"{name}: {without_secrets(str(text))} ({origin.place if origin else 'default'})"


def _origin_of(error: BaseException, origins: Mapping[str, Origin]) -> str:
    """Say where the setting that an error is about came from, unless it stands on the command line."""
    origin = origins.get(getattr(error, "setting", ""))
    return f" ({error.setting} is set by {origin.name}.)" if origin and origin.in_file else ""  # type: ignore[attr-defined]


def escape_unknown_characters(stream: TextIO) -> None:
    """Let a stream write characters that its encoding lacks as escapes, instead of raising UnicodeEncodeError."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def stdin_lines() -> Iterator[str]:
    """Yield the lines of stdin as they come."""
    pass_any_text(sys.stdin)
    yield from sys.stdin


def pass_any_text(stream: TextIO) -> None:
    """Let a stream pass file names that are no text."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def set_up_logging(quiet: bool = False, verbose: bool = False) -> None:
    """Send the program's log to standard error: notes by default, details if `verbose`, errors alone if `quiet`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    program = logging.getLogger("pipeline")
    program.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    program.handlers[:] = [handler]
    program.propagate = False


def build_parser(command: str, values: Mapping[str, Any]) -> Parser:
    """Return the parser of a command, whose help says what its module's docstring says.

    values: the settings that params.yaml gives, for the defaults in the help.
    """
    description, _, example = docstring_of(command).partition("\n\nExample: ")
    parser = Parser(
        prog=f"python -m pipeline.{command}",
        usage=f"%(prog)s [flags]{USAGE.get(command, '')}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    settings: Any = COMMANDS[command]
    listed = settings.__pydantic_fields__.items()
    for name, field in listed:
        if extra_of(field)["kind"] == "positional":
            _add(parser, name, field, values)
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for name, field in listed:
            if extra_of(field)["kind"] != "positional" and (extra_of(field)["group"] or SETTINGS) == title:
                _add(group, name, field, values)
        if title == MACHINE:
            group.add_argument("-h", "--help", action="help", help="Show this text and end.")
    return parser


def _add(group: Any, name: str, field: Any, values: Mapping[str, Any]) -> None:
    """Add one setting to a parser or a group of its flags; its default is left to `params`."""
    extra, annotation = extra_of(field), field.annotation
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(name, field, values)}
    many = "tuple" in str(annotation)
    if extra["kind"] == "positional":
        group.add_argument(name, nargs=_how_many(name, many), metavar=_metavar_of_positional(name), **options)
        return
    flags = [f"--{name.replace('_', '-')}"]
    if _is_bool(annotation):
        action: Any = argparse.BooleanOptionalAction if extra["in_file"] else "store_true"
        group.add_argument(*flags, action=action, **options)
        return
    choices = choices_of(annotation)
    options["metavar"] = f"{{{','.join(choices)}}}" if choices and not many else _metavar(name, str(annotation))
    if many:
        options["nargs"] = "+"
    if extra["kind"] == "optional":
        options |= {"nargs": "?", "const": ""}
    group.add_argument(*flags, **options)


def _metavar(name: str, annotation: str) -> str:
    """Return what stands for a flag's value in `--help`."""
    kinds = {"int": "N", "float": "X", "Path": "PATH"}
    return next((short for kind, short in kinds.items() if kind in annotation), METAVARS.get(name, name.upper()))


def _is_bool(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


def _how_many(name: str, many: bool) -> str | None:
    return ("*" if name == "flags" else "+") if many else None


def _metavar_of_positional(name: str) -> str:
    return {"images": "IMAGE|FOLDER|-", "flags": "-- FLAG", "file": "FILE", "source": "FOLDER"}[name]


def _help(name: str, field: Any, values: Mapping[str, Any]) -> str:
    """Return a setting's help with its default: the one of params.yaml, or of the program."""
    extra = extra_of(field)
    text = str(field.description).replace("%", "%%")
    default = _as_text(values.get(name, extra["shown"] or field.default))
    return text if not default or extra["kind"] == "positional" else f"{text} (default: {default.replace('%', '%%')})"


def _as_text(value: Any) -> str:
    """Return a default as one would write it on the command line; "" where there is none."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if value is None or value is False:
        return ""
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else without_secrets(str(value))
