"""The documentation: it builds, its links lead somewhere, its commands and flags exist, and its notebooks run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import ROOT

from pipeline.command_line import build_parser
from pipeline.config import COMMANDS

PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def commands_in(page: Path) -> list[list[str]]:
    """Return the commands of the program that a page shows, in words."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", " ")
    lines = re.findall(r"(?:python -m pipeline\.|-m pipeline\.)(.*)", blocks)
    inline = re.findall(r"`(?:python -m pipeline\.)([a-z]+ --[^`]*)`", text)
    return [shlex.split(line, comments=True) for line in [*lines, *inline]]


@pytest.mark.slow
def test_the_pages_build_the_notebooks_run_and_no_link_is_broken(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", str(tmp_path / "cache"), "docs", str(tmp_path / "site")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "codes_folder" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert "95% interval 0." in (tmp_path / "site" / "notebooks" / "codes-in-python.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_on_a_page_has_the_flags_that_it_is_shown_with(page: Path) -> None:
    for command, *arguments in (words for words in commands_in(page) if "--help" not in words):
        assert command in COMMANDS, f"{page.name}: pipeline.{command}"
        own = takewhile(lambda word: word not in ("--", ">", "…"), arguments)
        build_parser(command, {}).parse_args(list(own))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_holds_no_outputs_of_some_earlier_run(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
