"""How far a run has come: the figures of its epochs, the sums of the current one, and the best weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import torch


class EpochRow(TypedDict):
    """An epoch's line of epochs.csv; the one of epoch 0, before the first step, has the phase "start".

    The training figures are means over the epoch's steps, None for epoch 0; lr_backbone is the highest rate of a layer.
    """

    epoch: int
    phase: str
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    lr_head: float
    lr_backbone: float
    seconds: float
    images_per_second: float


@dataclass
class Progress:
    """State of a run apart from the tensors of the network and the optimiser.

    epoch: the current epoch, from 1 on, or the last one that ended; step: steps taken in the current epoch; loss,
    correct, images: sums over these steps; microbatch: the most images in one forward pass, 0 for a whole batch.

    rows: one per epoch that ended, that of the start first; best: the row with the highest validation accuracy, of
    equal ones that with the lowest loss; best_state: the network's tensors after that epoch; outcomes: for each of the
    rows, which validation images the network predicted correctly, (n_val,) bool.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0
    microbatch: int = 0
    rows: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    outcomes: list[torch.Tensor] = field(default_factory=list)

    def add_step(self, loss: float, correct: float, images: float) -> None:
        """Add the sums of a step."""
        self.loss, self.correct, self.images = self.loss + loss, self.correct + correct, self.images + images

    def end_epoch(self, row: EpochRow, outcome: torch.Tensor) -> bool:
        """Note the row and the outcome of an epoch, and return whether it is the best so far."""
        self.rows.append(row)
        self.outcomes.append(outcome)
        self.step, self.loss, self.correct, self.images = 0, 0.0, 0.0, 0.0
        better = self.best is None or _rank(row) > _rank(self.best)
        if better:
            self.best = row
        return better


def _rank(row: EpochRow) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]
