"""PipelineError, and the sentences that tell a user what is wrong, why, and how to fix it."""

from __future__ import annotations

import errno
import importlib.util
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from pipeline.addresses import without_secrets

SHOWN_CHOICES = 12
SHOWN_BESIDE = 5
SHOWN_NAMES = 3
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Fix:
    """A command that puts right what an error is about, with what the raiser knows of its settings.

    The raiser knows the command and, say, the layer; `hints.complete` adds what the user's own command knows.
    """

    command: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the command as it can be pasted into a shell."""
        flags = [part for name, value in self.settings.items() for part in _flag(name, value)]
        return shlex.join(["python", "-m", f"pipeline.{self.command}", *flags])


def _flag(name: str, value: object) -> list[str]:
    """Return a setting as arguments; none where it has no value."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    values = list(value) if isinstance(value, list | tuple) else [value]
    given = values and values != [None] and values != [""]
    return [flag, *(without_secrets(str(one)) for one in values)] if given else []


class PipelineError(Exception):
    """A mistake that the user can fix; the message is one sentence: what, why, and the fix.

    setting: the setting that the mistake is about, if it is about one, so that the command can say where it came from;
    fix: the commands that put it right, one after the other; exit_code: of the command, 3 where it did all but a part.
    """

    def __init__(self, message: str, setting: str = "", fix: Sequence[Fix] = (), exit_code: int = 2) -> None:
        super().__init__(message)
        self.message, self.setting, self.fix, self.exit_code = message, setting, tuple(fix), exit_code

    def __str__(self) -> str:
        """Return the message, and in a line of their own the commands that fix it."""
        return f"{self.message} Run:\n  {' && '.join(map(str, self.fix))}" if self.fix else self.message


@contextmanager
def fixes_for(dataset: str) -> Iterator[None]:
    """Let fixes be of another dataset than the one that the user's command names with --dataset."""
    try:
        yield
    except PipelineError as error:
        fixes = [Fix(fix.command, {"dataset": dataset, **fix.settings}) for fix in error.fix]
        raise PipelineError(error.message, error.setting, fixes, error.exit_code) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, or what kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def counted(number: int, noun: str) -> str:
    """Return a number of things as text: 1 image, 2,000 images, 3 classes."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def missing_packages(names: Sequence[str]) -> list[str]:
    """Return those of some packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(purpose: str, names: Sequence[str], installed_by: str) -> None:
    """Refuse to go on without packages; purpose: "To export"; installed_by: what pip is given, without its quotes."""
    if missing := missing_packages(names):
        raise PipelineError(f"{purpose}, {' and '.join(missing)} must be installed: pip install {installed_by}.")


def first_names(names: Sequence[str]) -> str:
    """Return the first of some names as text, and how many more there are."""
    more = f", … ({len(names) - SHOWN_NAMES} more)" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(repr, names[:SHOWN_NAMES])) + more


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """Return the choices, those most similar to a name first."""
    return sorted(choices, key=lambda choice: -SequenceMatcher(None, name.lower(), choice.lower()).ratio())


def beside(path: Path) -> str:
    """Say which names there are where the first missing part of a path should be, nearest first; "" if there are none.

    The names are of folders, or, where the file itself is missing, of files of its kind.
    """
    missing = next((part for part in [*reversed(path.parents), path] if not part.exists()), path)
    there = missing.parent.iterdir() if missing.parent.is_dir() and missing.parent != Path() else ()
    names = [
        entry.name
        for entry in there
        if not entry.name.startswith(".") and (entry.suffix == path.suffix if missing == path else entry.is_dir())
    ]
    shown = nearest(missing.name, sorted(names))[:SHOWN_BESIDE]
    more = f", … ({len(names) - len(shown)} more)" if len(names) > len(shown) else ""
    return f" {missing.parent} has {', '.join(shown)}{more}." if names else ""


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
