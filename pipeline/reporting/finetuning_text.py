"""What `finetune` says: what is trained on what, how an epoch went, and what came of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.analysis.gain import Gain, judge_training
from pipeline.classifiers import scoring
from pipeline.errors import counted
from pipeline.finetuning.initialization import TrainValSplit
from pipeline.finetuning.plan import JointPlan, LearnedSettings, Plan
from pipeline.finetuning.progress import EpochRow
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.source import Source
from pipeline.finetuning.trainer import Trainer
from pipeline.finetuning.weighing import LearnedWeights


def introduction(plan: Plan, runtime: RuntimeConfig) -> str:
    """Say what is trained on what, and how."""
    recipe, spec, count = plan.recipe, plan.start.spec, runtime.processes.count
    together = f" in {count} processes" if count > 1 else ""
    source = "held out of the training split" if plan.data.held_out else "the val split"
    statistics = "frozen" if recipe.batch_norm == "frozen" else "of each batch"
    start = {"all": "all trained", "none": "only the head trained"}.get(
        plan.unfreeze, f"trained from {plan.unfreeze} on"
    )
    draws, images = plan.sampling.count(len(plan.data.train)), counted(len(plan.data.train), "training image")
    drawn = "" if draws == len(plan.data.train) else f" ({draws} per epoch)"
    by_weight = "" if plan.sampling.weights is None else f", by the weights of their classes ({plan.sampling.method})"
    lines = [
        f"{spec.backbone} to {spec.layer}, {start}, on {runtime.device}{together}, {runtime.precision}: "
        f"{images}{drawn}{by_weight}, {counted(len(plan.data.val), 'validation image')} "
        f"({source})",
        f"{plan.recipe_name}: {recipe.optimiser}, {recipe.schedule}, batches of {recipe.batch_size}, "
        f"augmentation {recipe.augment}, batch norm with statistics {statistics}",
        *([of_source(plan.joint, plan.data)] if plan.joint else []),
    ]
    return "\n".join(lines)


def of_source(joint: JointPlan, data: TrainValSplit) -> str:
    """Say which source is trained with the target, and how much it counts."""
    source = joint.source
    copies = f" ({source.left_out} left out, copies of images that the target keeps)" if source.left_out else ""
    images, classes = counted(len(source.rows), "training image"), counted(len(source.manifest.classes), "class")
    what = f"with {source.manifest.root.name}: {images} of {classes}{copies}"
    if not isinstance(joint.weights, LearnedSettings):
        equal = "equal" if len(np.unique(joint.weights)) == 1 else "given"
        return f"{what}, {equal} weights, alpha {joint.alpha:g}"
    parts = (
        f"{len(data.train)} to train, {len(data.reward)} for the reward ({joint.weights.reward}), {len(data.val)} to "
        "choose the best weights"
    )
    return f"{what}, learned weights, alpha up to {joint.alpha:g}; the target's images in three parts: {parts}"


def of_learned(source: Source, learned: LearnedWeights) -> str:
    """Say which source classes were found to help most and least."""
    expected, steps = learned.expected(), counted(len(learned.steps), "step")
    order = np.argsort(-expected.weights, kind="stable")
    names = [f"{source.manifest.classes[number]} {expected.weights[number]:.2f}" for number in order]
    ends = f"{', '.join(names[:3])}, …, {', '.join(names[-3:])}" if len(names) > 6 else ", ".join(names)
    return f"Weights of the source's classes, learned in {steps}: {ends}; alpha {expected.alpha:.2f}"


def format_epoch(row: EpochRow) -> str:
    """Return an epoch's figures in a line."""
    trained = f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}; " if row["epoch"] else ""
    speed = f"; {row['images_per_second']:.1f} images/s" if row["images_per_second"] else ""
    return (
        f"epoch {row['epoch']} ({row['phase']}): {trained}"
        f"validation loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}{speed}"
    )


def conclusion(trainer: Trainer, best: EpochRow, path: Path) -> str:
    """Say which weights were kept, how accurate they are, and where they lie."""
    before = trainer.progress.rows[0]["val_accuracy"]
    low, high, n = scoring.interval(best["val_accuracy"], trainer.data.val_units())
    number = scoring.count_text(n, len(trainer.data.val))
    return (
        f"{path}: the weights after epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.4f} "
        f"(95% {low:.4f}–{high:.4f}), {number}; before the first step it was {before:.4f}"
    )


def judgement(trainer: Trainer, best: EpochRow, from_codes: bool) -> str:
    """Say whether training helped, "" where nothing tells; from_codes: as `judge_training` takes it."""
    outcomes = trainer.progress.outcomes
    if len(outcomes) != len(trainer.progress.rows) or len(outcomes) == 1:  # resumed from an older release, or no epoch
        return ""
    start, after = outcomes[0].numpy(), outcomes[best["epoch"]].numpy()
    return judge_training(Gain.of(start, after, trainer.data.val_units()), best["epoch"], from_codes=from_codes)
