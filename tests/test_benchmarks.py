"""A benchmark runs to its end on little, and its last line is JSON."""

from __future__ import annotations

import json

import pytest
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from benchmarks import l2tl, source_weights


def test_weights_are_learned_given_and_summarised(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    few = Bunch(images=digits.images[:300], target=digits.target[:300])
    monkeypatch.setattr(l2tl, "load_digits", lambda: few)
    flags = ("--seeds", "2", "--epochs", "1", "--draws", "32", "--arms", "uniform", "target alone", "gradient")
    monkeypatch.setattr("sys.argv", ["source_weights", "l2tl", *flags, l2tl.LEARNED_BEFORE])
    source_weights.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 4 + 1 and lines[0].startswith("seed 0, uniform: ")
    summary = json.loads(lines[-1])
    assert set(summary) == {"uniform", "target alone", "gradient", "learned before", "seconds"}
    assert 0 <= summary["gradient"]["auc"] <= 1
    assert set(summary["learned before"]["minus uniform"]) == {"mean", "p"}
