"""A checkpoint gives back what was saved, to the same run only, and to one run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import errors
from pipeline.finetuning.checkpoint import Checkpoint


def test_the_state_of_the_same_run_is_given_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a" / "run.checkpoint", {"seed": 1, "sides": (64, 48)})
    assert checkpoint.load("cpu") is None
    checkpoint.save({"tensors": {"x": torch.arange(3)}, "epoch": 2})
    state = checkpoint.load("cpu")
    assert state is not None and state["epoch"] == 2 and torch.equal(state["tensors"]["x"], torch.arange(3))
    checkpoint.remove()
    assert checkpoint.load("cpu") is None


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run.checkpoint", {"seed": 1}).save({"epoch": 2})
    with pytest.raises(errors.PipelineError, match="its seed is 1, not 2"):
        Checkpoint(tmp_path / "run.checkpoint", {"seed": 2}).load("cpu")
    with pytest.raises(errors.PipelineError, match=r"its dropout is None, not 0\.5"):
        Checkpoint(tmp_path / "run.checkpoint", {"seed": 1, "dropout": 0.5}).load("cpu")


def test_a_failed_write_leaves_the_old_state(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", {})
    checkpoint.save({"epoch": 2})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"epoch": lambda: 3})
    assert checkpoint.load("cpu") == {"identity": "{}", "epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]


def test_one_run_at_a_time_uses_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", {})
    another_run = pytest.raises(errors.PipelineError, match=r"Another run uses .*run\.checkpoint")
    with checkpoint.locked(), another_run, checkpoint.locked():
        pass
    with checkpoint.locked():
        pass
