"""What a step of training minimises: the loss of the target's images, and what a further task may add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from pipeline.finetuning.model import ParameterGroup
from pipeline.finetuning.recipes import Phase, Recipe


class Term(NamedTuple):
    """A part of a step's loss: the sum over its images of factor · cross-entropy, divided by `total`.

    forward: maps images (n, 3, side, side) uint8 to logits (n, k); labels: (n,) int64; factors: (n,) float32, None
    where all are 1; total: of all processes, of which this one has n images.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    images: torch.Tensor
    labels: torch.Tensor
    factors: torch.Tensor | None
    total: float


class Place(NamedTuple):
    """Where a run is: its epoch, the step within it, from 0, the phase of training, and the images' side in pixels."""

    epoch: int
    step: int
    phase: Phase
    side: int


class Auxiliary:
    """A further task that is trained with the target. This one adds nothing: the target is trained alone."""

    def parameter_groups(self, recipe: Recipe) -> list[ParameterGroup]:
        """Return the optimiser's groups of the parameters that only this task has."""
        return []

    def begin_step(self, place: Place) -> list[Term]:
        """Return what is added to the loss of a step, the same number of terms in each process."""
        return []

    def end_step(self, place: Place) -> None:
        """Learn from what the step did to the network."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, tensors, numbers and text."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over an earlier `state`."""
