"""Recipes of fine-tuning: presets of optimiser, rates, schedule, augmentation and batch norm, under names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline import errors
from pipeline.images import augmentation

OPTIMISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adamw": ("AdamW", {}),
}
"""torch.optim's classes, each with its fixed options."""

BATCH_NORMS = ("frozen", "trained")


def _constant(done: float, epochs: int) -> float:
    return 1.0


def _step(done: float, epochs: int) -> float:
    """A tenth after every 7 epochs: StepLR as in PyTorch's tutorial on transfer learning."""
    return 0.1 ** (int(done) // 7)


def _cosine(done: float, epochs: int) -> float:
    """Up in a straight line for a twentieth of the way, then down to 0 along half a cosine."""
    warm = 0.05 * epochs
    return done / warm if done < warm else _half_cosine(1, 0, (done - warm) / (epochs - warm))


def _one_cycle(done: float, epochs: int) -> float:
    """Up from 1/25 for a fifth of the way, then down to nearly 0, both along half a cosine (Smith, 2018)."""
    top = 0.2 * epochs
    if done < top:
        return _half_cosine(1 / 25, 1, done / top)
    return _half_cosine(1, 4e-6, (done - top) / (epochs - top))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
"""The factor of every rate by the epochs done, a fraction within an epoch, and the epochs in all."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; `finetune` has a flag for each of these.

    head_epochs: before the others, for the head alone; decay_all: whether weight decay reaches biases and norms too;
    small_epochs: the first of them, at small_side pixels instead of the transform's.
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
"""tutorial: PyTorch's on transfer learning; modern: AdamW and cosine; scratch: what trained the embedded tinyvgg."""

CHOICES: dict[str, Iterable[str]] = {
    "optimiser": OPTIMISERS,
    "schedule": SCHEDULES,
    "augment": augmentation.AUGMENTATIONS,
    "batch_norm": BATCH_NORMS,
}
"""What the fields that are names choose from."""

SHARES = ("label_smoothing", "dropout", "flip")


def choose(name: str, changes: Mapping[str, Any]) -> Recipe:
    """Return a preset with some fields changed; refuse what cannot be trained with."""
    if name not in RECIPES:
        raise errors.unknown("recipe", name, RECIPES)
    recipe = replace(RECIPES[name], **changes)
    for field in fields(Recipe):
        _validate_field(field.name, getattr(recipe, field.name))
    return recipe


def _validate_field(field: str, value: Any) -> None:
    flag = f"--{field.replace('_', '-')}"
    if field in CHOICES:
        if value not in CHOICES[field]:
            raise errors.unknown(flag, value, CHOICES[field])
    elif not math.isfinite(value) or value < 0:
        raise errors.PipelineError(f"{flag} {value} must be a number, 0 or more.")
    elif field in SHARES and value > 1:
        raise errors.PipelineError(f"{flag} {value} is a share: it must be 1 or less.")
    elif field == "batch_size" and value < 1:
        raise errors.PipelineError(f"{flag} must be 1 or more.")
