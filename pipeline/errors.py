"""PipelineError, and the sentences that tell a user what is wrong, why, and how to fix it."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import SequenceMatcher

SHOWN_CHOICES = 12
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class PipelineError(Exception):
    """A mistake that the user can fix; the message is one sentence: what, why, and the fix.

    setting: the setting that the mistake is about, if it is about one, so that the command can say where it came from.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, or what kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """Return the choices, those most similar to a name first."""
    return sorted(choices, key=lambda choice: -SequenceMatcher(None, name.lower(), choice.lower()).ratio())


def unknown(kind: str, name: str, choices: Iterable[str], where: str = "") -> PipelineError:
    """Return the error for a name that is none of `choices`, which it lists nearest first."""
    ordered = nearest(name, choices)
    listed = ", ".join(ordered[:SHOWN_CHOICES])
    more = len(ordered) - SHOWN_CHOICES
    rest = f", … ({more} more)" if more > 0 else ""
    message = f"Unknown {kind} {name!r}{f' for {where}' if where else ''}. Choose from: {listed}{rest}."
    return PipelineError(message, setting=kind)


def sentence(error: BaseException) -> str:
    """Say in one sentence what an error means for the user, and how to fix it."""
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
