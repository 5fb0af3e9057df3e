"""Training a network: batches, steps, evaluation, the best weights, and going on after anything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline import errors
from pipeline.finetuning import initialization, recipes
from pipeline.finetuning.checkpoint import Checkpoint
from pipeline.finetuning.distributed import Processes
from pipeline.finetuning.model import TunableNetwork
from pipeline.images import augmentation, decoding, parallel, transforms

EVALUATION_BATCH = 32
"""Images a forward pass in evaluation."""

OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""What torch's errors say on devices that have no error of their own for it: the processor, and Apple's."""

KEPT_BYTES = 1 << 28
"""Validation pictures of up to this size in all stay in memory."""

EpochRow = dict[str, Any]


class LossDiverged(Exception):  # noqa: N818 - the loss is what is lost
    """The loss is no finite number any more; the message says where."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How the work is done; it changes results by rounding at most.

    threads: that decode; precision: of the steps, "fp32" or "bf16"; every: seconds between checkpoints in an epoch.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    compiled: bool = False
    every: float = 300.0


class Trainer:
    """One run: the network, its optimiser, and how far they have come.

    All chance comes from (seed, epoch, row or step), never from timing: so a run that goes on from a checkpoint ends
    with the weights of one that was never disturbed. rows: one an epoch, as `run` yields them; best: the row with the
    highest validation accuracy, of these the one with the lowest loss, and `best_state` its weights; passes: the most
    images at a time, 0 for the whole batch.
    """

    def __init__(
        self,
        network: TunableNetwork,
        recipe: recipes.Recipe,
        data: initialization.TrainValSplit,
        seed: int,
        work: RuntimeConfig,
        checkpoint: Checkpoint | None = None,
        processes: Processes | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.network, self.recipe, self.data, self.seed, self.work = network, recipe, data, seed, work
        self.checkpoint, self.processes, self.say = checkpoint, processes or Processes(), say
        kind, options = recipes.OPTIMISERS[recipe.optimiser]
        self.optimiser = getattr(torch.optim, kind)(network.groups(recipe), lr=recipe.lr_head, **options)
        self.steps = math.ceil(len(data.train) / recipe.batch_size)
        self.scores = torch.compile(network) if work.compiled else network
        self.epoch, self.step, self.sums, self.passes = 0, 0, [0.0, 0.0, 0.0], 0
        self.rows: list[EpochRow] = []
        self.best: EpochRow = {}
        self.best_state: dict[str, torch.Tensor] = {}
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.saved = time.monotonic()

    def run(self) -> Iterator[EpochRow]:
        """Train to the end, yielding a row an epoch, that of the start first; the network ends with its best weights.

        A loss that is lost ends it too, with the best weights so far.
        """
        self._resume()
        yield from list(self.rows)
        try:
            if not self.rows:
                yield self._close(*self._evaluate())
            while self.epoch < self.recipe.head_epochs + self.recipe.epochs and not self._stale():
                self.epoch, start = self.epoch + 1, time.monotonic()
                before = self.sums[2]
                self._train()
                seconds = time.monotonic() - start
                yield self._close(*self._evaluate(), seconds, (self.sums[2] - before) / seconds)
        finally:
            if self.best_state:
                self.network.restore(self.best_state)

    def _stale(self) -> bool:
        since = self.epoch - max(self.best["epoch"], self.recipe.head_epochs)
        return 0 < self.recipe.patience <= since

    # An epoch

    @property
    def part(self) -> tuple[str, int, int]:
        """What is trained in this epoch, "head" or "network", the epochs of its kind before it, and those in all."""
        alone = self.recipe.head_epochs
        if self.epoch <= alone:
            return "head", self.epoch - 1, alone
        return "network" if self.network.thawed() else "head", self.epoch - 1 - alone, self.recipe.epochs

    def _train(self) -> None:
        """Take the steps of this epoch that are left."""
        self.network.open_backbone(self.part[0] == "network")
        self.network.set_mode(True, self.recipe.batch_norm)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.data.train)
        batches = np.array_split(order, self.steps)[self.step :]
        mine = [batch[self.processes.rank :: self.processes.count] for batch in batches]
        for batch, (pictures, labels) in zip(batches, self._load(mine, self._augmented), strict=True):
            self._set_rates()
            self._seed()
            self._take_step(pictures, labels, len(batch))
            self.step += 1
            if self.step < self.steps and time.monotonic() - self.saved >= self.work.every:
                self._save()

    def _set_rates(self) -> None:
        part, done, epochs = self.part
        factor = recipes.SCHEDULES[self.recipe.schedule](done + self.step / self.steps, epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor if part == "network" or group["name"] == "head" else 0.0

    def _seed(self) -> None:
        """Let dropout depend on the step and on nothing before it."""
        words = np.random.SeedSequence((self.seed, self.epoch, self.step, self.processes.rank)).generate_state(1)
        torch.manual_seed(int(words[0]))

    def _take_step(self, pictures: torch.Tensor, labels: torch.Tensor, total: int) -> None:
        """Take one step on this process's share of a batch of `total` images."""
        while True:
            self.optimiser.zero_grad()
            try:
                sums = self._accumulate(pictures, labels, total)
                break
            except (RuntimeError, MemoryError) as error:
                self._take_less(error, len(pictures))
        trained = [value for value in self.network.parameters() if value.requires_grad]
        for value in trained:
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        self.processes.total([*(value.grad for value in trained if value.grad is not None), sums])
        self.sums = [before + now for before, now in zip(self.sums, sums.tolist(), strict=True)]
        if not math.isfinite(self.sums[0]):
            raise LossDiverged(f"the loss became {self.sums[0]} in epoch {self.epoch}, step {self.step + 1}")
        self.optimiser.step()

    def _accumulate(self, pictures: torch.Tensor, labels: torch.Tensor, total: int) -> torch.Tensor:
        """Add up the gradient over passes; return the sum of the losses, the right ones and how many there were."""
        sums = torch.zeros(3, device=pictures.device)
        size = self.passes or max(len(pictures), 1)
        for some, true in zip(pictures.split(size), labels.split(size), strict=True):
            if len(some):
                with torch.autocast(some.device.type, torch.bfloat16, enabled=self.work.precision == "bf16"):
                    scores = self.scores(some)
                loss = cross_entropy(scores.float(), true, reduction="sum", label_smoothing=self.recipe.label_smoothing)
                (loss / total).backward()
                sums += torch.stack([loss.detach(), (scores.argmax(1) == true).sum(), true.new_tensor(len(true))])
        return sums

    def _take_less(self, error: Exception, count: int) -> None:
        """Halve what goes through the network at a time, if memory was what failed."""
        said = any(words in str(error) for words in OUT_OF_MEMORY)
        if not said and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise error
        if (size := self.passes or count) <= 1:
            raise errors.PipelineError("One image does not fit into memory. Take a smaller backbone.") from error
        if self.processes.count > 1 and self.recipe.batch_norm == "trained":  # all wait for this one's statistics
            raise errors.PipelineError("Out of memory. Take a smaller --batch-size, or --batch-norm frozen.") from error
        self.passes = math.ceil(size / 2)
        self.say(f"Out of memory: from here on each step takes its images in passes of {self.passes}")

    def _evaluate(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the validation images, as extraction sees them."""
        self.network.set_mode(False, self.recipe.batch_norm)
        evaluator = self.network.evaluator()
        sums = torch.zeros(3, dtype=torch.float64)
        for pictures, labels in self._validation():
            with torch.no_grad():
                scores = evaluator(pictures)
            right = (scores.argmax(1) == labels).sum()
            sums += torch.tensor([cross_entropy(scores, labels, reduction="sum"), right, len(labels)]).double()
        self.processes.total([sums])
        loss, right, count = sums.tolist()
        if not math.isfinite(loss):
            raise LossDiverged(f"the validation loss is {loss} after epoch {self.epoch}")
        return loss / count, right / count

    def _close(self, val_loss: float, val_accuracy: float, seconds: float = 0.0, rate: float = 0.0) -> EpochRow:
        """End an epoch: note its figures, keep its weights if they are the best, and save the state."""
        loss, right, seen = self.sums
        rates = {group["name"]: group["lr"] for group in reversed(self.optimiser.param_groups)}
        row = {
            "epoch": self.epoch,
            "part": self.part[0] if self.epoch else "start",
            "train_loss": loss / seen if seen else None,
            "train_accuracy": right / seen if seen else None,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr_head": rates.pop("head"),
            "lr_backbone": max(rates.values(), default=0.0),
            "seconds": round(seconds, 3),
            "images_per_second": round(rate, 2),
        }
        if not self.best or (val_accuracy, -val_loss) > (self.best["val_accuracy"], -self.best["val_loss"]):
            self.best = row
            self.best_state = {name: value.clone() for name, value in self.network.changing().items()}
        self.rows.append(row)
        self.step, self.sums = 0, [0.0, 0.0, 0.0]
        self._save()
        return row

    # Pictures

    def _augmented(self, row: int) -> np.ndarray:
        recipe, transform = self.recipe, self.network.transform
        small = self.part[0] == "network" and self.part[1] < recipe.small_epochs
        side = recipe.small_side if small else transform.crop
        seed = (self.seed, self.epoch, row)
        return augmentation.load_augmented(
            self.data.manifest.file(row), transform, recipe.augment, recipe.flip, side, seed
        )

    def _plain(self, row: int) -> np.ndarray:
        return transforms.load_image(self.data.manifest.file(row), self.network.transform)

    def _validation(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.kept:
            yield from self.kept
            return
        rows = self.data.val[self.processes.rank :: self.processes.count]
        keep = len(rows) * 3 * self.network.transform.crop**2 <= KEPT_BYTES
        size = min(EVALUATION_BATCH, self.passes or EVALUATION_BATCH)
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        for batch in self._load(batches, self._plain):
            yield batch
            self.kept += [batch] * keep

    def _load(
        self, batches: Sequence[np.ndarray], read: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the pictures and labels of each batch of rows, read ahead by threads while the network works."""
        rows = [int(row) for batch in batches for row in batch]
        ahead = 2 * max(map(len, batches), default=0) + self.work.threads
        pictures = parallel.ordered_map(read, rows, self.work.threads, ahead)
        for batch in batches:
            found = [
                self._sound(row, picture) for row, picture in zip(batch, islice(pictures, len(batch)), strict=True)
            ]
            stacked = np.stack(found) if found else np.empty((0, 3, 1, 1), np.uint8)
            labels = torch.from_numpy(self.data.manifest.labels[batch])
            yield self._move(torch.from_numpy(stacked)), self._move(labels)

    def _sound(self, row: int, picture: np.ndarray | decoding.BadImage) -> np.ndarray:
        if isinstance(picture, decoding.BadImage):
            raise errors.PipelineError(
                f"{self.data.manifest.paths[row]!r} cannot be read: {picture}. Run pipeline.prepare again."
            )
        return picture

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.work.device.startswith("cuda"):
            return tensor.to(self.work.device)
        return tensor.pin_memory().to(self.work.device, non_blocking=True)

    # Checkpoints

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.checkpoint and self.processes.first:
            tensors = {"network": self.network.changing(), "optimiser": self.optimiser.state_dict()}
            place = {"epoch": self.epoch, "step": self.step, "sums": self.sums, "passes": self.passes}
            best = {"rows": self.rows, "best": self.best, "best_state": self.best_state}
            self.checkpoint.save(tensors | place | best)

    def _resume(self) -> None:
        state = self.checkpoint.load(self.work.device) if self.checkpoint else None
        if state is None:
            return
        self.network.restore(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.sums, self.passes = state["step"], state["sums"], state["passes"]
        self.rows, self.best, self.best_state = state["rows"], state["best"], state["best_state"]
        self.epoch = state["epoch"] - (1 if self.step else 0)  # one that was begun is gone on with
        self.say(f"Going on after epoch {self.epoch}" + (f", step {self.step}" if self.step else ""))


def choose_step_precision(asked: str, device: str) -> str:
    """Return the precision of the steps: for "auto" bf16 where the device multiplies in it, else fp32."""
    if asked != "auto":
        return asked
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = device == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bf16" if able else "fp32"
