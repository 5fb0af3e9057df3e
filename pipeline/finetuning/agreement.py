"""By how much the gradients of source images agree with that of the reward images, on the layers that both share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline.finetuning import evaluation
from pipeline.finetuning.batches import BatchLoader
from pipeline.finetuning.distributed import Processes
from pipeline.finetuning.model import SourceNetwork, TunableNetwork

STEP = 1e-3
"""Length of the trial step, as a share of the length of all trained weights of the trunk."""


@dataclass(frozen=True)
class GradientAgreement:
    """Measures class by class whether a step on source images would help the reward images, to first order.

    That is the inner product of their gradients (Ren et al., "Learning to Reweight Examples for Robust Deep Learning",
    2018), which is symmetric: it is measured by how much the loss of each source image falls in a small step of the
    trunk down the loss of the reward images. source: the trunk under the head of the source; rows: (n,) int64 of the
    reward images in the target's manifest, which `loader` reads; k: number of source classes.
    """

    network: TunableNetwork
    source: SourceNetwork
    loader: BatchLoader
    rows: np.ndarray
    k: int
    batch_norm: str
    processes: Processes

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean fall of the loss (k,) of each class per unit of the step, and its share (k,) of the images.

        images, labels: of this process; what is returned is of all processes.
        """
        self._set_mode(training=False)
        before = self._losses(images, labels)
        with self._small_step() as length:
            falls = (before - self._losses(images, labels)) / length
        self._set_mode(training=True)
        sums = torch.zeros(2, self.k, dtype=torch.float64)
        sums.index_add_(1, labels.cpu(), torch.stack([falls, torch.ones_like(falls)]).cpu().double())
        self.processes.sum_in_place([sums])
        totals, counts = sums.numpy()
        return totals / np.maximum(counts, 1), counts / max(counts.sum(), 1)

    def _set_mode(self, *, training: bool) -> None:
        self.network.set_mode(training, self.batch_norm)
        self.source.head.train(training)

    def _losses(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss (n,) of each source image."""
        if not len(labels):
            return torch.zeros(0)
        with torch.no_grad():
            return cross_entropy(self.source(images).float(), labels, reduction="none")

    @contextmanager
    def _small_step(self) -> Iterator[float]:
        """Move the trunk down the gradient of the reward images, for a while; give the length of the step."""
        trunk: list[torch.Tensor] = list(self.network.trainable().values())
        gradients, kept = self._reward_gradient(trunk), [value.detach().clone() for value in trunk]
        length = STEP * _length(kept)
        scale = length / max(_length(gradients), torch.finfo(torch.float32).tiny)
        try:
            _copy([old - scale * gradient for old, gradient in zip(kept, gradients, strict=True)], trunk)
            yield length
        finally:
            _copy(kept, trunk)

    def _reward_gradient(self, trunk: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradient of the sum of the reward images' losses, over all processes."""
        total = [torch.zeros_like(value) for value in trunk]
        own = self.rows[self.processes.rank :: self.processes.count]
        for images, labels in self.loader.validation(own, evaluation.BATCH):
            loss = cross_entropy(self.network(images), labels, reduction="sum")
            for value, gradient in zip(total, torch.autograd.grad(loss, trunk), strict=True):
                value.add_(gradient)
        self.processes.sum_in_place(total)
        return total


@torch.no_grad()
def _copy(values: Sequence[torch.Tensor], trunk: Sequence[torch.Tensor]) -> None:
    for value, parameter in zip(values, trunk, strict=True):
        parameter.copy_(value)


def _length(tensors: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean length of tensors as one vector."""
    return float(torch.stack([value.square().sum() for value in tensors]).sum().sqrt())
