"""`python -m pipeline` and the console script `cnn-codes`: list the commands, or run one."""

from __future__ import annotations

import ast
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline import errors
from pipeline.config import COMMANDS

USAGE = "cnn-codes COMMAND [flags]   (or: python -m pipeline.COMMAND [flags])"


def summary_of(command: str) -> str:
    """Return the line that says what a command does: the first of its module, which is not imported for that."""
    spec = find_spec(f"pipeline.{command}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def listing() -> str:
    """Return the usage and all commands, a line each."""
    lines = [f"  {command:<10} {summary_of(command)}" for command in COMMANDS]
    return "\n".join([f"usage: {USAGE}", "", "commands:", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, with the others; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    if arguments[0] not in COMMANDS:
        print(errors.sentence(errors.unknown("command", arguments[0], COMMANDS)), file=sys.stderr)
        return 2
    return int(importlib.import_module(f"pipeline.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
