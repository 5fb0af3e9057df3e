"""The training loop: steps, evaluation, the best weights, and resuming from a checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline import errors
from pipeline.finetuning import recipes
from pipeline.finetuning.batches import BatchLoader
from pipeline.finetuning.checkpoint import Checkpoint
from pipeline.finetuning.distributed import Processes
from pipeline.finetuning.initialization import TrainValSplit
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.progress import EpochRow, Progress
from pipeline.finetuning.sampling import Sampling
from pipeline.progress import track

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 32
"""Number of images per forward pass in evaluation."""

ALL_ALIKE = Sampling()

OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""Parts of torch's messages on devices that have no exception for it: CPUs, and Apple's GPUs."""


class LossDiverged(Exception):  # noqa: N818 - it is an outcome of training, not a mistake
    """The loss is not finite any more; the message says where."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How the computation runs; it changes results by rounding at most.

    threads: number of decoding threads; precision: of the training steps, "fp32" or "bf16"; compile: whether the steps
    are compiled; checkpoint_seconds: time between checkpoints within an epoch; processes: those that train together.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    compile: bool = False
    checkpoint_seconds: float = 300.0
    processes: Processes = field(default_factory=Processes)


class Trainer:
    """One run of training.

    All randomness comes from (seed, epoch, row or step), never from timing: a run that is resumed from a checkpoint
    ends with the same weights as one that was never interrupted.
    """

    def __init__(
        self,
        network: TunableNetwork,
        recipe: recipes.Recipe,
        data: TrainValSplit,
        seed: int,
        runtime: RuntimeConfig,
        checkpoint: Checkpoint | None = None,
        sampling: Sampling = ALL_ALIKE,
    ) -> None:
        self.network, self.recipe, self.data, self.seed = network, recipe, data, seed
        self.runtime, self.checkpoint, self.sampling = runtime, checkpoint, sampling
        factors = sampling.loss_weights(data.train_labels())
        self.loss_weights = None if factors is None else torch.from_numpy(factors).float().to(runtime.device)
        kind, arguments = recipes.OPTIMISERS[recipe.optimiser]
        self.optimiser: torch.optim.Optimizer = getattr(torch.optim, kind)(
            network.parameter_groups(recipe), lr=recipe.lr_head, **arguments
        )
        self.loader = BatchLoader(data.manifest, network.transform, runtime.device, runtime.threads)
        self.forward = torch.compile(network) if runtime.compile else network
        self.steps = math.ceil(sampling.count(len(data.train)) / recipe.batch_size)
        self.progress = Progress()
        self.saved_at = time.monotonic()

    def run(self) -> Iterator[EpochRow]:
        """Train to the end and yield the row of each epoch, that of the start first; restore the best weights at last.

        A checkpoint is resumed, and the rows of its epochs are yielded again. Raise LossDiverged if the loss is not
        finite any more; the best weights are restored then as well.
        """
        self._resume()
        yield from list(self.progress.rows)
        try:
            if not self.progress.rows:
                yield self._end_epoch(*self._evaluate())
            while self.progress.epoch < self.recipe.all_epochs and not self._patience_is_over():
                self.progress.epoch, start = self.progress.epoch + 1, time.monotonic()
                images = self.train_epoch()
                seconds = time.monotonic() - start
                yield self._end_epoch(*self._evaluate(), seconds, images / seconds)
        finally:
            if self.progress.best_state:
                self.network.restore(self.progress.best_state)

    def _patience_is_over(self) -> bool:
        best = self.progress.best["epoch"] if self.progress.best else 0
        return 0 < self.recipe.patience <= self.progress.epoch - max(best, self.recipe.head_epochs)

    # Steps

    @property
    def phase(self) -> recipes.Phase:
        """The phase of the current epoch; without anything trainable in the backbone it is always that of the head."""
        phase = self.recipe.phase(self.progress.epoch)
        return phase if self.network.trainable() else phase._replace(name="head")

    def train_epoch(self) -> int:
        """Take the remaining steps of the current epoch; return the number of images in them, over all processes."""
        progress, processes = self.progress, self.runtime.processes
        self.network.train_backbone(self.phase.name == "network")
        self.network.set_mode(True, self.recipe.batch_norm)
        drawn = self.sampling.draw(self.data.train_labels(), self.seed, progress.epoch)
        drawn[:, 0] = self.data.train[drawn[:, 0]]
        batches = np.array_split(drawn, self.steps)[progress.step :]
        own = [batch[processes.rank :: processes.count] for batch in batches]
        loaded = self.loader.training(own, self.recipe, self._side(), (self.seed, progress.epoch))
        loaded = track(loaded, f"epoch {progress.epoch}", len(batches), "step") if processes.is_main else loaded
        for batch, (images, labels) in zip(batches, loaded, strict=True):
            self._set_rates()
            self._seed_dropout()
            self._take_step(images, labels, len(batch))
            progress.step += 1
            late = time.monotonic() - self.saved_at >= self.runtime.checkpoint_seconds
            if late and progress.step < self.steps:
                self._save()
        return sum(map(len, batches))

    def _side(self) -> int:
        """Return the side of this epoch's images, in pixels."""
        small = self.phase.name == "network" and self.phase.passed < self.recipe.small_epochs
        return self.recipe.small_side if small else self.network.transform.crop

    def _set_rates(self) -> None:
        phase = self.phase
        schedule = recipes.SCHEDULES[self.recipe.schedule]
        factor = schedule(phase.passed + self.progress.step / self.steps, phase.epochs)
        for group in self.optimiser.param_groups:
            trained = phase.name == "network" or group["name"] == "head"
            group["lr"] = group["initial_lr"] * factor if trained else 0.0

    def _seed_dropout(self) -> None:
        """Let dropout depend on the step, and on nothing before it."""
        place = (self.seed, self.progress.epoch, self.progress.step, self.runtime.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _take_step(self, images: torch.Tensor, labels: torch.Tensor, total: int) -> None:
        """Take one step on this process's share of a batch of `total` images."""
        sums = self._backward(images, labels, total)
        trained = [value for value in self.network.parameters() if value.requires_grad]
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in trained]
        for value, gradient in zip(trained, gradients, strict=True):
            value.grad = gradient
        self.runtime.processes.sum_in_place([*gradients, sums])
        self.progress.add_step(*sums.tolist())
        if not math.isfinite(self.progress.loss):
            place = f"epoch {self.progress.epoch}, step {self.progress.step + 1}"
            raise LossDiverged(f"the loss became {self.progress.loss} in {place}")
        self.optimiser.step()

    def _backward(self, images: torch.Tensor, labels: torch.Tensor, total: int) -> torch.Tensor:
        """Compute the gradient, in smaller microbatches if memory runs out; return the sums of `_accumulate`."""
        while True:
            self.optimiser.zero_grad()
            try:
                return self._accumulate(images, labels, total)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_microbatch(error, len(images))

    def _accumulate(self, images: torch.Tensor, labels: torch.Tensor, total: int) -> torch.Tensor:
        """Add up the gradient over microbatches; return the sums (3,) of losses, correct predictions and images."""
        sums = torch.zeros(3, device=images.device)
        size = self.progress.microbatch or max(len(images), 1)
        for some_images, some_labels in zip(images.split(size), labels.split(size), strict=True):
            if len(some_images):
                sums += self._backward_microbatch(some_images, some_labels, total)
        return sums

    def _backward_microbatch(self, images: torch.Tensor, labels: torch.Tensor, total: int) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.runtime.precision == "bf16"):
            logits = self.forward(images)
        loss = self._loss(logits.float(), labels)
        (loss / total).backward()
        return torch.stack([loss.detach(), (logits.argmax(1) == labels).sum(), labels.new_tensor(len(labels))])

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the losses of some images, each multiplied by the weight of its class, if there are any."""
        smoothing = self.recipe.label_smoothing
        if self.loss_weights is None:
            return cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (losses * self.loss_weights[labels]).sum()

    def _halve_microbatch(self, error: Exception, count: int) -> None:
        """Halve the number of images per forward pass, after memory ran out with `count` images in the batch."""
        if (size := self.progress.microbatch or count) <= 1:
            raise errors.PipelineError("One image does not fit into memory. Take a smaller backbone.") from error
        if self.runtime.processes.count > 1 and self.recipe.batch_norm == "trained":
            # The other processes wait for the statistics of this one
            raise errors.PipelineError("Out of memory. Take a smaller --batch-size, or --batch-norm frozen.") from error
        self.progress.microbatch = math.ceil(size / 2)
        logger.warning("Out of memory: from here on, steps use microbatches of %d images", self.progress.microbatch)

    # Evaluation

    def _evaluate(self) -> tuple[float, torch.Tensor]:
        """Return the mean loss on the validation images, and which are predicted correctly, (n_val,) bool.

        The images are read as extraction reads them.
        """
        self.network.set_mode(False, self.recipe.batch_norm)
        evaluator, processes = self.network.evaluator(), self.runtime.processes
        size = min(EVALUATION_BATCH, self.progress.microbatch or EVALUATION_BATCH)
        loss, correct = torch.zeros((), dtype=torch.float64), torch.zeros(len(self.data.val), dtype=torch.float64)
        own, done = correct[processes.rank :: processes.count], 0
        for images, labels in self.loader.validation(self.data.val[processes.rank :: processes.count], size):
            with torch.no_grad():
                logits = evaluator(images)
            loss += cross_entropy(logits, labels, reduction="sum").cpu()
            own[done : done + len(labels)] = (logits.argmax(1) == labels).cpu()
            done += len(labels)
        processes.sum_in_place([loss, correct])
        if not math.isfinite(loss):
            raise LossDiverged(f"the validation loss is {loss.item()} after epoch {self.progress.epoch}")
        return loss.item() / len(correct), correct.bool()

    def _end_epoch(self, val_loss: float, outcome: torch.Tensor, seconds: float = 0.0, speed: float = 0.0) -> EpochRow:
        """Note an epoch's figures, keep its weights if they are the best so far, and write a checkpoint."""
        progress = self.progress
        rates = {group["name"]: group["lr"] for group in reversed(self.optimiser.param_groups)}
        row: EpochRow = {
            "epoch": progress.epoch,
            "phase": self.phase.name if progress.epoch else "start",
            "train_loss": progress.loss / progress.images if progress.images else None,
            "train_accuracy": progress.correct / progress.images if progress.images else None,
            "val_loss": val_loss,
            "val_accuracy": outcome.double().mean().item(),
            "lr_head": rates.pop("head"),
            "lr_backbone": max(rates.values(), default=0.0),
            "seconds": round(seconds, 3),
            "images_per_second": round(speed, 2),
        }
        if progress.end_epoch(row, outcome):
            progress.best_state = {name: value.clone() for name, value in self.network.mutable_state().items()}
        self._save()
        return row

    # Checkpoints

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.checkpoint and self.runtime.processes.is_main:
            tensors = {"network": self.network.mutable_state(), "optimiser": self.optimiser.state_dict()}
            self.checkpoint.save({**tensors, "progress": vars(self.progress)})

    def _resume(self) -> None:
        state = self.checkpoint.load(self.runtime.device) if self.checkpoint else None
        if state is None:
            return
        self.network.restore(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])
        if self.progress.step:
            self.progress.epoch -= 1  # `run` begins the epoch again, at this step
        if self.runtime.processes.is_main:
            logger.info("Resuming after epoch %d, step %d", self.progress.epoch, self.progress.step)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception of torch means that memory ran out."""
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return out_of_memory or any(text in str(error) for text in OUT_OF_MEMORY)


def choose_step_precision(precision: str, device: str) -> str:
    """Return the precision of the steps; "auto" becomes bf16 where the device multiplies in it, and fp32 elsewhere."""
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    units = ("amx_bf16", "avx512_bf16")
    return "bf16" if device == "cpu" and any(torch.cpu.get_capabilities().get(unit) for unit in units) else "fp32"
