"""The training loop: steps, evaluation, the best weights, and resuming from a checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.finetuning import evaluation, recipes
from pipeline.finetuning.auxiliary import Auxiliary, Place, Term
from pipeline.finetuning.batches import BatchLoader
from pipeline.finetuning.checkpoint import Checkpoint
from pipeline.finetuning.initialization import TrainValSplit
from pipeline.finetuning.microbatches import Accumulator
from pipeline.finetuning.model import HEADS, TunableNetwork
from pipeline.finetuning.progress import EpochRow, Progress
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.sampling import Sampling
from pipeline.progress import track

logger = logging.getLogger(__name__)

ALL_ALIKE, ALONE = Sampling(), Auxiliary()


class LossDiverged(Exception):  # noqa: N818 - it is an outcome of training, not a mistake
    """The loss is not finite any more; the message says where."""


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
        auxiliary: Auxiliary = ALONE,
    ) -> None:
        self.network, self.recipe, self.data, self.seed = network, recipe, data, seed
        self.runtime, self.checkpoint, self.sampling, self.auxiliary = runtime, checkpoint, sampling, auxiliary
        factors = sampling.loss_weights(data.train_labels())
        self.loss_weights = None if factors is None else torch.from_numpy(factors).float().to(runtime.device)
        kind, arguments = recipes.OPTIMISERS[recipe.optimiser]
        groups = [*network.parameter_groups(recipe), *auxiliary.parameter_groups(recipe)]
        self.optimiser: torch.optim.Optimizer = getattr(torch.optim, kind)(groups, lr=recipe.lr_head, **arguments)
        together = runtime.processes.count > 1 and recipe.batch_norm == "trained"
        zero_grad, smoothing = self.optimiser.zero_grad, recipe.label_smoothing
        self.accumulator = Accumulator(zero_grad, runtime.precision, smoothing, together)
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
        side = self._side()
        loaded = self.loader.training(own, self.recipe, side, (self.seed, progress.epoch))
        loaded = track(loaded, f"epoch {progress.epoch}", len(batches), "step") if processes.is_main else loaded
        for batch, (images, labels) in zip(batches, loaded, strict=True):
            self._set_rates()
            self._seed_dropout()
            self._take_step(Place(progress.epoch, progress.step, self.phase, side), images, labels, len(batch))
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
            trained = phase.name == "network" or group["name"] in HEADS
            group["lr"] = group["initial_lr"] * factor if trained else 0.0

    def _seed_dropout(self) -> None:
        """Let dropout depend on the step, and on nothing before it."""
        place = (self.seed, self.progress.epoch, self.progress.step, self.runtime.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _take_step(self, place: Place, images: torch.Tensor, labels: torch.Tensor, total: int) -> None:
        """Take one step on this process's share of a batch of `total` images."""
        factors = None if self.loss_weights is None else self.loss_weights[labels]
        terms = [Term(self.forward, images, labels, factors, total), *self.auxiliary.begin_step(place)]
        sums = self.accumulator.backward(terms, self.progress)
        trained = [value for group in self.optimiser.param_groups for value in group["params"] if value.requires_grad]
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in trained]
        for value, gradient in zip(trained, gradients, strict=True):
            value.grad = gradient
        self.runtime.processes.sum_in_place([*gradients, sums])
        self.progress.add_step(*sums[0].tolist())
        if not math.isfinite(total_loss := sums[:, 0].sum().item()):
            raise LossDiverged(f"the loss became {total_loss} in epoch {place.epoch}, step {place.step + 1}")
        self.optimiser.step()
        self.auxiliary.end_step(place)

    # Evaluation

    def _evaluate(self) -> tuple[float, torch.Tensor]:
        """Return the mean loss on the validation images, and which are predicted correctly, (n_val,) bool."""
        self.network.set_mode(False, self.recipe.batch_norm)
        size = min(evaluation.BATCH, self.progress.microbatch or evaluation.BATCH)
        forward, processes = self.network.evaluator(), self.runtime.processes
        loss, correct = evaluation.evaluate(forward, self.loader, self.data.val, processes, size)
        if not math.isfinite(loss):
            raise LossDiverged(f"the validation loss is {loss} after epoch {self.progress.epoch}")
        return loss, correct

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
            "lr_head": rates["head"],
            "lr_backbone": max((rate for name, rate in rates.items() if name not in HEADS), default=0.0),
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
            further = {"progress": vars(self.progress), "auxiliary": self.auxiliary.state()}
            self.checkpoint.save({**tensors, **further})

    def _resume(self) -> None:
        state = self.checkpoint.load(self.runtime.device) if self.checkpoint else None
        if state is None:
            return
        self.network.restore(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])
        self.auxiliary.restore(state.get("auxiliary", {}))
        if self.progress.step:
            self.progress.epoch -= 1  # `run` begins the epoch again, at this step
        if self.runtime.processes.is_main:
            logger.info("Resuming after epoch %d, step %d", self.progress.epoch, self.progress.step)
