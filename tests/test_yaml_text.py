"""YAML is read as DVC reads it, and all that is wrong with a text is a ValueError with the reason."""

from __future__ import annotations

import pytest
from conftest import ROOT
from dvc.utils.serialize import parse_yaml

from pipeline import yaml_text

TEXT = "[1e-3, 1E5, .5, 010, 1_000, yes, no, on, true, ~, 1:30, 0x1F, 0o17, 2024-01-01, 'é', .inf]"


def test_values_are_those_that_dvc_reads() -> None:
    assert yaml_text.load(f"a: {TEXT}") == parse_yaml(f"a: {TEXT}", "params.yaml")
    assert yaml_text.load(TEXT)[:8] == [0.001, 100_000.0, 0.5, 10, 1000, "yes", "no", "on"]
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert yaml_text.load(text) == parse_yaml(text, "params.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", 'duplicate key "a".*line 3'),
        ("a: {b: 1, b: 1}", 'duplicate key "b"'),
        ("a: [", "line 1"),
        ("a: 1\n\tb: 2", "line 2"),
        ("\0", "#x0000"),
        ("a: 2024-13-45", "month must be"),
        ("a: !!bool 7", "KeyError"),
        ("a: !!python/object:os.system x", "tag"),
        ("{a: " * 3000, "recursion"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
    ids=range(11),
)
def test_what_is_no_valid_yaml_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        yaml_text.load(text)


def test_what_is_written_is_read_again() -> None:
    content = {"b": ["yes", "1e-3", 1e-5, None, True], "a": {"é": ["x" * 200]}}
    assert yaml_text.load(yaml_text.dump(content)) == content and list(yaml_text.load(yaml_text.dump(content))) == [
        "b",
        "a",
    ]
