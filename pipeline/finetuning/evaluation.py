"""The loss and the correct predictions of a network on images that it is not trained on, shared among processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline.finetuning.batches import BatchLoader
from pipeline.finetuning.distributed import Processes

BATCH = 32
"""Number of images per forward pass."""


def evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    loader: BatchLoader,
    rows: np.ndarray,
    processes: Processes,
    size: int = BATCH,
) -> tuple[float, torch.Tensor]:
    """Return the mean loss on some images, and which are predicted correctly, (n,) bool; the same in each process.

    forward: maps images to logits, in evaluation mode; loader: reads these images only, as extraction does; rows: (n,)
    int64 of its manifest; size: images per forward pass.
    """
    loss, correct = torch.zeros((), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    own, done = correct[processes.rank :: processes.count], 0
    for images, labels in loader.validation(rows[processes.rank :: processes.count], size):
        with torch.no_grad():
            logits = forward(images)
        loss += cross_entropy(logits, labels, reduction="sum").cpu()
        own[done : done + len(labels)] = (logits.argmax(1) == labels).cpu()
        done += len(labels)
    processes.sum_in_place([loss, correct])
    return loss.item() / len(correct), correct.bool()
