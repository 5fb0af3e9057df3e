"""A summary becomes one HTML file that needs no network: template, styles, script and data in one."""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent / "page"
DRAWN_BY_TEMPLATE = (
    *("layers", "shots", "training", "advice", "path", "reliability", "calibration"),
    *("parameters", "versions", "bad", "facts"),
)
"""Names, at any depth, of what the script does not need."""


TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's characters that only turn the direction of writing."""


def render(summary: dict[str, Any]) -> str:
    """Return the page of a summary as HTML."""
    summary = legible(summary) | {"parameters": summary["parameters"]}  # whose line breaks are its own
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    vouched = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {name: value for name, value in summary.items() if name not in DRAWN_BY_TEMPLATE}
    data["datasets"] = {name: _for_script(value) for name, value in summary["datasets"].items()}
    data["experiments"] = [_for_script(value) for value in summary["experiments"]]
    return environment.get_template("page.html.j2").render(
        summary=summary,
        script=Markup(script),  # noqa: S704 - ours
        script_hash=vouched,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        data=island(data),
    )


def _for_script(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in DRAWN_BY_TEMPLATE}


def island(data: Any) -> Markup:
    """Return data as JSON that stays inside a script element, whatever names are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing in it can end the element


def legible(value: Any) -> Any:
    """Return data in which all text can be shown as what it is.

    Control characters, line breaks, what is not Unicode, and what would turn the direction of the letters after it
    (in gnp.exe, say) become escapes.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return "".join(_escape(character) if _is_hidden(character) else character for character in text)
    if isinstance(value, dict):
        return {legible(name): legible(inner) for name, inner in value.items()}
    return [legible(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(character) in TURNING


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
