"""`python -m pipeline` and the console script `cnn-codes`: list the commands, or run one."""

from __future__ import annotations

import sys

from pipeline import command_line, errors
from pipeline.config import COMMANDS

USAGE = "cnn-codes COMMAND [flags]   (or: python -m pipeline.COMMAND [flags])"


def listing() -> str:
    """Return the usage and all commands, a line each."""
    lines = [f"  {command:<10} {command_line.docstring_of(command).splitlines()[0]}" for command in COMMANDS]
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
    return command_line.run_command(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
