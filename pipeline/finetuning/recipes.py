"""Recipes of fine-tuning: named presets of optimiser, learning rates, schedule, augmentation and batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from pipeline import errors
from pipeline.images import augmentation

OPTIMISERS: dict[str, tuple[str, dict[str, float | bool]]] = {
    "sgd": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adamw": ("AdamW", {}),
}
"""Names of torch.optim's classes (torch itself would slow down `--help`), each with its fixed arguments."""

BATCH_NORMS = ("frozen", "trained")

# The rates are functions of the epoch, since torch's schedulers give others: SequentialLR warms up for whole steps,
# LinearLR starts above 0, OneCycleLR rounds its peak to a step. LambdaLR would only add a counter to the checkpoint,
# and evaluate a schedule beyond its last step.


def _constant(epoch: float, epochs: int) -> float:
    return 1.0


def _step(epoch: float, epochs: int) -> float:
    """Multiply by a tenth after every 7 epochs: StepLR as in PyTorch's tutorial on transfer learning."""
    return 0.1 ** (int(epoch) // 7)


def _cosine(epoch: float, epochs: int) -> float:
    """Rise linearly from 0 for the first twentieth of the epochs, then fall to 0 along half a cosine."""
    warm_up = 0.05 * epochs
    return epoch / warm_up if epoch < warm_up else _half_cosine(1, 0, (epoch - warm_up) / (epochs - warm_up))


def _one_cycle(epoch: float, epochs: int) -> float:
    """Rise from 1/25 for the first fifth of the epochs, then fall almost to 0, along half cosines (Smith, 2018)."""
    peak = 0.2 * epochs
    if epoch < peak:
        return _half_cosine(1 / 25, 1, epoch / peak)
    return _half_cosine(1, 4e-6, (epoch - peak) / (epochs - peak))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
"""The factor of every learning rate, from the epochs that have passed (with a fraction) and their total number."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; `finetune` has a flag for each field.

    optimiser, schedule, batch_norm, augment: names, see `CHOICES`; epochs: of the network, after head_epochs of the
    head alone; batch_size: images per step; lr_head, lr_backbone: learning rates of the head and of the last layer
    before it; lr_decay: factor of the rate from each layer to the one before; decay_all: whether weight decay reaches
    biases and norms as well; label_smoothing, dropout, flip: shares in [0, 1]; patience: epochs without a better one
    after which training stops, 0 for never; small_epochs: number of first epochs of the network whose images have
    small_side pixels instead of the transform's.
    """

    optimiser: str
    schedule: str
    epochs: int
    head_epochs: int
    batch_size: int
    lr_head: float
    lr_backbone: float
    lr_decay: float
    weight_decay: float
    decay_all: bool
    label_smoothing: float
    dropout: float
    batch_norm: str
    augment: str
    flip: float
    patience: int
    small_epochs: int = 0
    small_side: int = 0

    @property
    def all_epochs(self) -> int:
        """Number of epochs of both phases."""
        return self.head_epochs + self.epochs

    def phase(self, epoch: int) -> Phase:
        """Return the phase of an epoch, counted from 1."""
        if epoch <= self.head_epochs:
            return Phase("head", epoch - 1, self.head_epochs)
        return Phase("network", epoch - 1 - self.head_epochs, self.epochs)


class Phase(NamedTuple):
    """What is trained, "head" or "network", the epochs of this phase before the current one, and their total number."""

    name: str
    passed: int
    epochs: int


RECIPES: dict[str, Recipe] = {
    "tutorial": Recipe(
        optimiser="sgd",
        schedule="step",
        epochs=25,
        head_epochs=0,
        batch_size=4,
        lr_head=0.001,
        lr_backbone=0.001,
        lr_decay=1.0,
        weight_decay=0.0,
        decay_all=True,
        label_smoothing=0.0,
        dropout=0.0,
        batch_norm="trained",
        augment="crop",
        flip=0.5,
        patience=0,
    ),
    "modern": Recipe(
        optimiser="adamw",
        schedule="cosine",
        epochs=15,
        head_epochs=0,
        batch_size=32,
        lr_head=0.001,
        lr_backbone=0.0001,
        lr_decay=0.9,
        weight_decay=0.05,
        decay_all=False,
        label_smoothing=0.1,
        dropout=0.0,
        batch_norm="frozen",
        augment="gentle",
        flip=0.5,
        patience=5,
    ),
    "scratch": Recipe(
        optimiser="nesterov",
        schedule="one-cycle",
        epochs=18,
        head_epochs=0,
        batch_size=128,
        lr_head=0.1,
        lr_backbone=0.1,
        lr_decay=1.0,
        weight_decay=5e-4,
        decay_all=True,
        label_smoothing=0.1,
        dropout=0.3,
        batch_norm="trained",
        augment="shift",
        flip=0.5,
        patience=0,
        small_epochs=8,
        small_side=48,
    ),
}
"""tutorial: PyTorch's on transfer learning; modern: AdamW and cosine; scratch: how the embedded tinyvgg was trained."""

CHOICES: dict[str, Iterable[str]] = {
    "optimiser": OPTIMISERS,
    "schedule": SCHEDULES,
    "augment": augmentation.AUGMENTATIONS,
    "batch_norm": BATCH_NORMS,
}
"""The fields that are names, and the names they may have."""

SHARES = ("label_smoothing", "dropout", "flip")
"""The fields that must be in [0, 1]."""


def choose(name: str, changes: Mapping[str, Any]) -> Recipe:
    """Return a preset with some fields changed; raise PipelineError for values that cannot be used."""
    if name not in RECIPES:
        raise errors.unknown("recipe", name, RECIPES)
    recipe = replace(RECIPES[name], **changes)
    for field in fields(Recipe):
        _validate_field(field.name, getattr(recipe, field.name))
    return recipe


def _validate_field(field: str, value: str | float) -> None:
    flag = f"--{field.replace('_', '-')}"
    if isinstance(value, str):
        if value not in CHOICES[field]:
            raise errors.unknown(flag, value, CHOICES[field])
    elif not math.isfinite(value) or value < 0:
        raise errors.PipelineError(f"{flag} {value} must be a number, 0 or more.")
    elif field in SHARES and value > 1:
        raise errors.PipelineError(f"{flag} {value} is a share: it must be 1 or less.")
    elif field == "batch_size" and value < 1:
        raise errors.PipelineError(f"{flag} must be 1 or more.")
