"""Read and write YAML as DVC does (YAML 1.2), with one kind of error for all that is wrong with a text."""

from __future__ import annotations

import io
import warnings
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError

CONSTRUCTOR_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What ruamel.yaml raises for values that are none of their type, like 2024-13-45, `!!bool 7`, or 1,000 brackets."""


def load(text: str) -> Any:
    """Return what a text holds; raise ValueError with the reason if it is not valid YAML.

    1e-3 is a number, `yes` and `no` are text, and a key that occurs twice in one place is an error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML 1.2 allows it
            return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(", ".join(filter(None, (error.context, error.problem, place)))) from error
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except CONSTRUCTOR_ERRORS as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def dump(content: Any) -> str:
    """Return the text that holds some content, its keys in their order."""
    YAML().dump(content, stream := io.StringIO())
    return stream.getvalue()
