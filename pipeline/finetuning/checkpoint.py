"""A checkpoint of a run: written whole or not at all, read without running anything in it, and of that run alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pipeline import errors


@dataclass(frozen=True)
class Checkpoint:
    """Where a run's state is kept between steps. facts: what makes two runs the same, ready for JSON."""

    path: Path
    facts: Mapping[str, Any]

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state beside the file and move it in."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        torch.save({"facts": json.dumps(self.facts), **state}, partial)
        partial.replace(self.path)

    def load(self, device: str) -> dict[str, Any] | None:
        """Return the state that was saved, None if there is none; refuse that of another run, naming a difference."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, device, weights_only=True)
            facts = json.loads(state["facts"])
        except Exception as error:  # a damaged or hostile file may fail in many ways; all mean the same to the user
            raise errors.PipelineError(
                f"The checkpoint {self.path} cannot be read. Begin anew with --restart."
            ) from error
        mine = json.loads(json.dumps(self.facts))
        for name in mine | facts:
            if facts.get(name) != mine.get(name):
                raise errors.PipelineError(
                    f"The checkpoint {self.path} is of another run: its {name} is {facts.get(name)!r}, "
                    f"not {mine.get(name)!r}. Ask for what it is, or begin anew with --restart."
                )
        return state

    def remove(self) -> None:
        """Forget the run."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make sure that one run at a time works on this."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise errors.PipelineError(
                f"Another run works on {self.path}. Wait for its end, or choose another --out."
            ) from None
        try:
            yield
        finally:
            lock.release()
