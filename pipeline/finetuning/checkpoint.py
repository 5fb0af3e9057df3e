"""The checkpoint of a run: complete or not there, read without running code in it, and valid for that run only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import errors, files


@dataclass(frozen=True)
class Checkpoint:
    """The file that keeps a run's state between steps.

    identity: the facts that make two runs the same, ready for JSON; a checkpoint of another run is refused.
    """

    path: Path
    identity: Mapping[str, object]

    def save(self, state: Mapping[str, object]) -> None:
        """Write tensors, numbers and text, nested in lists and dicts, complete or not at all."""
        with files.replacing(self.path) as partial:
            torch.save({"identity": json.dumps(self.identity), **state}, partial)

    def load(self, device: str) -> dict[str, Any] | None:
        """Return the state that was saved, or None if there is none.

        Raise PipelineError if the file is damaged or of another run, naming a difference.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, device, weights_only=True)
            saved = json.loads(state["identity"])
        except Exception as error:  # a damaged or hostile file fails in many ways, which all mean the same to the user
            raise errors.PipelineError(
                f"The checkpoint {self.path} cannot be read. Start from scratch with --restart."
            ) from error
        expected = json.loads(json.dumps(self.identity))
        for name in expected | saved:
            if saved.get(name) != expected.get(name):
                raise errors.PipelineError(
                    f"The checkpoint {self.path} is of another run: its {name} is {saved.get(name)!r}, "
                    f"not {expected.get(name)!r}. Run with the same settings, or start from scratch with --restart."
                )
        return state

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other runs from using this checkpoint; raise PipelineError if one does already."""
        return files.locked(
            self.path.with_name(f"{self.path.name}.lock"),
            f"Another run uses {self.path}. Wait until it ends, or choose another --out.",
        )
