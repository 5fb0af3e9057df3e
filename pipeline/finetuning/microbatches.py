"""The gradient of a step, added up over microbatches that are halved where memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from pipeline import errors
from pipeline.finetuning.auxiliary import Term
from pipeline.finetuning.progress import Progress

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""Parts of torch's messages on devices that have no exception for it: CPUs, and Apple's GPUs."""


@dataclass(frozen=True)
class Accumulator:
    """Computes gradients.

    zero_grad: forgets the gradients; precision: "fp32" or "bf16"; label_smoothing: in [0, 1]; together: whether other
    processes wait for the statistics of this one in each forward pass, so that it may not take another number of them.
    """

    zero_grad: Callable[[], None]
    precision: str
    label_smoothing: float
    together: bool

    def backward(self, terms: Sequence[Term], progress: Progress) -> torch.Tensor:
        """Compute the gradient of a sum of terms, in smaller microbatches if memory runs out.

        Return for each term the sums (n_terms, 3) of losses, correct predictions and images of this process.
        """
        while True:
            self.zero_grad()
            try:
                return torch.stack([self._accumulate(term, progress.microbatch) for term in terms])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(progress, max(len(term.images) for term in terms), error)

    def _accumulate(self, term: Term, microbatch: int) -> torch.Tensor:
        """Add a term's gradient, at most `microbatch` images at a time, 0 for all; return its sums (3,)."""
        images, labels, size = term.images, term.labels, microbatch or max(len(term.images), 1)
        sums = torch.zeros(3, device=images.device)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            factors = None if term.factors is None else term.factors[part]
            sums += self._backward_part(Term(term.forward, images[part], labels[part], factors, term.total))
        return sums

    def _backward_part(self, term: Term) -> torch.Tensor:
        with torch.autocast(term.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = term.forward(term.images)
        loss = self._loss(logits.float(), term.labels, term.factors)
        (loss / term.total).backward()
        correct = (logits.argmax(1) == term.labels).sum()
        return torch.stack([loss.detach(), correct, term.labels.new_tensor(len(term.labels))])

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        """Return the sum of the losses of some images, each multiplied by its factor, if there are any."""
        smoothing = self.label_smoothing
        if factors is None:
            return cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        return (cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing) * factors).sum()

    def _halve(self, progress: Progress, count: int, error: Exception) -> None:
        """Halve the number of images per forward pass, after memory ran out with `count` images in the batch."""
        if (size := progress.microbatch or count) <= 1:
            raise errors.PipelineError("One image does not fit into memory. Take a smaller backbone.") from error
        if self.together:
            raise errors.PipelineError("Out of memory. Take a smaller --batch-size, or --batch-norm frozen.") from error
        progress.microbatch = math.ceil(size / 2)
        logger.warning("Out of memory: from here on, steps use microbatches of %d images", progress.microbatch)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception of torch means that memory ran out."""
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return out_of_memory or any(text in str(error) for text in OUT_OF_MEMORY)
