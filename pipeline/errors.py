"""PipelineError, and the one place that turns a mistake into one sentence and an exit code."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher

SHOWN_CHOICES = 12
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class PipelineError(Exception):
    """A mistake the user can mend; the message is one sentence: what, why, and the mend."""


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, or what kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(kind: str, name: str, choices: Iterable[str], where: str = "") -> PipelineError:
    """Return the error for a name that is none of `choices`, which it lists nearest first."""
    nearest = sorted(choices, key=lambda choice: -SequenceMatcher(None, name.lower(), choice.lower()).ratio())
    listed = ", ".join(nearest[:SHOWN_CHOICES])
    more = len(nearest) - SHOWN_CHOICES
    rest = f", … ({more} more)" if more > 0 else ""
    return PipelineError(f"Unknown {kind} {name!r}{f' for {where}' if where else ''}. Choose from: {listed}{rest}.")


def sentence(error: BaseException) -> str:
    """Say in one sentence what an error means for the user, and how to mend it."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted. Earlier results are untouched."
    if not isinstance(error, OSError):
        return f"Error: {error}"
    place = f" at {error.filename}" if error.filename else ""
    if error.errno in FULL_DISK:
        return f"Error: the disk is full{place}. Free some space and run again; earlier results are untouched."
    if error.errno in NOT_WRITABLE:
        return f"Error: no permission{place} ({error.strerror}). Choose a folder you may use, for instance with --out."
    return f"Error: {error.strerror or error}{place}."


def run_command(
    build_parser: Callable[[], argparse.ArgumentParser],
    stage: Callable[[argparse.Namespace], None],
    argv: list[str] | None,
) -> int:
    """Parse `argv`, run `stage` and return the exit code: 0, 2 for a mistake, 130 for an interrupt.

    `--debug` lets the traceback through.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        parser = build_parser()
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        stage(parser.parse_args(arguments))
    except (PipelineError, OSError, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        print(sentence(error), file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0
