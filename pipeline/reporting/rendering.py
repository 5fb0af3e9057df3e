"""Render a summary as one HTML file that needs no network: template, styles, script and data in one."""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import counted
from pipeline.reporting.page_data import Summary

FOLDER = Path(__file__).parent / "page"


class Section(NamedTuple):
    """A part of the page: its id, which names its template in page/sections, and its title in the navigation."""

    name: str
    title: str


SECTIONS = (
    Section("verdict", "In short"),
    Section("experiments", "Experiments"),
    Section("adapted", "Other datasets"),
    Section("mistakes", "Mistakes"),
    Section("multi_label", "Several labels"),
    Section("map", "Map"),
    Section("clusters", "Clusters"),
    Section("neighbours", "Nearest"),
    Section("labels", "Labels"),
    Section("duplicates", "Duplicates"),
    Section("outliers", "Outliers"),
    Section("bad_files", "Bad files"),
    Section("advice", "Advice"),
    Section("source_weights", "Source classes"),
    Section("curves", "Curves"),
    Section("unlabelled", "Unlabelled"),
    Section("provenance", "Provenance"),
)
"""The parts of the page, in their order. One whose template writes nothing is left out."""

SCRIPTS = ("dom", "images", "tables", "confusion", "map", "page")
"""The files of page/scripts, of which the page's script is made, in their order."""

TEMPLATE_ONLY = (
    *("layer_charts", "few_shot_charts", "training_charts", "advice", "parameters", "versions", "budget"),
    *("bad_files", "verdict", "next_step", "calibration", "reliability_chart", "path_chart", "facts", "bar", "network"),
    "unlabelled_gains",
    "adapted",
    "source_weights",
)
"""Keys of the summary, of its datasets and of its experiments that the templates alone read, not the script."""

DIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of the invisible characters that change the direction of writing."""


def render(summary: Summary) -> str:
    """Return the page of a summary as HTML."""
    shown = cast(Summary, legible(summary))
    shown["parameters"] = summary["parameters"]  # several lines, which stay lines
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "p_value": p_value, "counted": counted}
    sections = [
        (section, Markup(content))  # noqa: S704 - rendered by ourselves, its names escaped
        for section in SECTIONS
        if (content := environment.get_template(f"sections/{section.name}.html.j2").render(summary=shown)).strip()
    ]
    script = "\n".join((FOLDER / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return environment.get_template("page.html.j2").render(
        summary=shown,
        sections=sections,
        script=Markup(script),  # noqa: S704 - ours
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        data=island(script_data(shown)),
    )


def percent(share: float, n: int) -> str:
    """Return a share of n images in percent, with as many decimals as n can tell apart, but no more than two."""
    return f"{100 * share:.{1 if n < 10_000 else 2}f}%"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value as papers print it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def script_data(summary: Summary) -> dict[str, object]:
    """Return the parts of a summary that the script reads."""
    return _without_template_only(summary) | {
        "datasets": {name: _without_template_only(dataset) for name, dataset in summary["datasets"].items()},
        "experiments": [_without_template_only(experiment) for experiment in summary["experiments"]],
    }


def _without_template_only(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in TEMPLATE_ONLY}


def island(data: object) -> Markup:
    """Return data as JSON for a script element, which no name in the data can end."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing in it can end the element


def legible(value: Any) -> Any:
    """Return data, dataclasses as dicts and tuples as lists, in which every text shows all of its characters.

    Control characters, line breaks, bytes that are not Unicode, and characters that change the direction of writing
    (which make exe.png look like gnp.exe, say) become escapes.
    """
    if isinstance(value, str):
        if value.isascii() and value.isprintable():  # nothing to escape, as in the megabytes of the thumbnails
            return value
        text = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return "".join(_escape(character) if _is_hidden(character) else character for character in text)
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {legible(name): legible(inner) for name, inner in value.items()}
    return [legible(inner) for inner in value] if isinstance(value, list | tuple) else value


def _is_hidden(character: str) -> bool:
    hidden = unicodedata.category(character) in ("Cc", "Zl", "Zp")
    return hidden or unicodedata.bidirectional(character) in DIRECTIONAL


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
