"""rendering: any name is shown as text, with all of its characters."""

from __future__ import annotations

import json
from collections.abc import Callable

from conftest import Outcome
from helpers import NASTY_NAMES, PAGE, read_page_data, write_nasty_report

from pipeline.reporting import rendering
from pipeline.reporting.charts import Tick


def test_any_name_is_shown_as_text(run: Callable[..., Outcome]) -> None:
    write_nasty_report(run)
    html = PAGE.read_text()
    assert "<img src=x" not in html and "</script><script>alert" not in html
    assert "49" not in html.split("quoted")[1][:40]
    assert html.count("<script") == 2 and html.count("</script>") == 2
    assert not set("\u2028\u202e\udcff") & set(html)
    data = read_page_data()
    assert data["datasets"]["digits"]["classes"][0] == NASTY_NAMES[0]
    assert {path.split("/", 1)[1] for path, *_ in data["images"]} >= {NASTY_NAMES[0], NASTY_NAMES[1]}


def test_hidden_characters_become_escapes() -> None:
    assert rendering.legible({"a\n": ["\x00b", "\udcff", 3, None]}) == {"a\\n": ["\\x00b", "\\udcff", 3, None]}
    assert rendering.legible("\u202egnp.exe שלום") == "\\u202egnp.exe שלום"
    assert rendering.legible((Tick(0.5, "\n"),)) == [{"place": 0.5, "label": "\\n"}]


def test_no_name_ends_the_script_element() -> None:
    nasty = {"name": "</script>&\u2028\u2029<!--"}
    assert json.loads(rendering.island(nasty)) == nasty and not set("<>&\u2028\u2029") & set(rendering.island(nasty))
