"""Fine-tune a network: train its head, and the layers from one on, on a dataset; keep the best weights."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.finetuning import initialization
    from pipeline.finetuning.distributed import Processes
    from pipeline.finetuning.trainer import EpochRow, Trainer

from pipeline import command_line, errors, files, params
from pipeline.classifiers import persistence, scoring
from pipeline.codes.spec import flatten
from pipeline.config import Extract, Finetune
from pipeline.data import sources
from pipeline.data.manifest import require_single_label
from pipeline.finetuning import recipes
from pipeline.images import decoding, parallel
from pipeline.paths import Experiment

EXAMPLE = "python -m pipeline.finetune --layer fc7 --model softmax --unfreeze conv7 --recipe modern --augment none"

HELP = {
    "optimiser": "of the steps",
    "schedule": "of every rate over the epochs",
    "epochs": "of the network, or of the head alone with --unfreeze none",
    "head_epochs": "of the head alone before these",
    "batch_size": "images a step",
    "lr_head": "rate of the head",
    "lr_backbone": "rate of the last layer before the head",
    "lr_decay": "factor of the rate from each layer to the one before it",
    "weight_decay": "of the weights",
    "decay_all": "1: of biases and norms too, 0: not",
    "label_smoothing": "share of each label that is given to all classes alike",
    "dropout": "share of the codes that the head does not see in a step",
    "batch_norm": "statistics of the layers that are trained: as they are, or of each batch",
    "augment": "what becomes of training images",
    "flip": "share of training images that are mirrored",
    "patience": "epochs without a better one until it stops, 0: never",
    "small_epochs": "of the network, the first ones, on smaller images",
    "small_side": "pixels of these images",
}
FINETUNED = "finetuned"
"""The word for the model in the address of what fine-tuning gives."""


def fine_tune(trainer: Trainer, report: Path) -> errors.PipelineError | None:
    """Train to the end, a line an epoch on the screen and in epochs.csv; return what ended it too early, if so."""
    from pipeline.finetuning.trainer import LossDiverged

    rows: list[EpochRow] = []
    try:
        for row in trainer.run():
            rows.append(row)
            trainer.say(line(row))
            if trainer.processes.first:
                cells = [["" if value is None else value for value in each.values()] for each in rows]
                files.write_csv(report / "epochs.csv", list(row), cells)
    except LossDiverged as lost:
        rates = f"--lr-backbone ({trainer.recipe.lr_backbone:g}) or --lr-head ({trainer.recipe.lr_head:g})"
        return errors.PipelineError(f"Stopped, since {lost}: the rate is too high. Lower {rates}.")
    return None


def line(row: EpochRow) -> str:
    """Say an epoch's figures in a line."""
    trained = f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}; " if row["epoch"] else ""
    speed = f"; {row['images_per_second']:.1f} images/s" if row["images_per_second"] else ""
    return (
        f"epoch {row['epoch']} ({row['part']}): {trained}"
        f"validation loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}{speed}"
    )


def keep(trainer: Trainer, start: initialization.InitialState, path: Path, facts: dict[str, Any]) -> None:
    """Write the weights file, and the head beside it as a classifier of the codes that these weights give."""
    from pipeline.networks import weights

    state, classes = trainer.network.backbone_state(), trainer.data.manifest.classes
    transform = replace(start.spec.transform, decoder=decoding.PILLOW)
    spec = replace(start.spec, weights=str(path), weights_sha256=weights.digest_of(state), transform=transform)
    described = {"spec": spec.to_dict(), "facts": facts, "classes": classes}
    texts = {name: json.dumps(value) for name, value in described.items()}
    weights.write_state(path, state, {"format": "pt"} | texts)
    persistence.save(
        path.with_suffix(".skops"), persistence.SavedClassifier(trainer.network.head.classifier(), spec, classes), facts
    )


def identity(
    start: initialization.InitialState,
    data: initialization.TrainValSplit,
    options: Finetune,
    recipe: recipes.Recipe,
) -> dict[str, Any]:
    """Return what makes two runs the same, so that one may go on where the other stopped."""
    labelled = [(data.manifest.paths[row], int(data.manifest.labels[row])) for row in (*data.train, *data.val)]
    listed = decoding.digest(repr((len(data.train), labelled)).encode())
    head = hashlib.sha256(b"".join(value.numpy().tobytes() for value in start.head.state_dict().values()))
    return {
        **flatten(start.spec.to_dict()),
        "images": listed[:12],
        "head": head.hexdigest()[:12],
        "unfreeze": options.unfreeze,
        "seed": options.seed,
        "precision": options.precision,
        **asdict(recipe),
    }


def run(settings: Finetune) -> None:
    """Fine-tune what the settings name."""
    changes = {field.name: getattr(settings, field.name) for field in fields(recipes.Recipe)}
    recipe = recipes.choose(settings.recipe, {name: value for name, value in changes.items() if value is not None})
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    manifest = sources.open_prepared(address.data, **params.split_settings())
    require_single_label(manifest)
    from pipeline.finetuning import initialization
    from pipeline.finetuning.distributed import join_processes
    from pipeline.networks.frozen import choose_device

    data = initialization.split_train_val(manifest, settings.val, settings.seed)
    start = begin(settings, address, data, recipe)
    if settings.deterministic:
        be_deterministic()
    with join_processes(choose_device(settings.device)) as (processes, device):
        train_and_keep(settings, recipe, data, start, processes, device)


def begin(
    options: Finetune, address: Experiment, data: initialization.TrainValSplit, recipe: recipes.Recipe
) -> initialization.InitialState:
    """Return the start that the options name."""
    from pipeline.finetuning import initialization

    if options.head == "classifier":
        files = (options.classifier or address.classifier, options.codes or address.codes)
        return initialization.from_classifier(*files, data, recipe.dropout, options.weights or "")
    usual, _ = params.load(Extract)
    origin, pool = options.weights or usual.weights, options.pool or usual.pool
    classes = len(data.manifest.classes)
    return initialization.from_random_head(
        options.backbone, options.layer, origin, pool, classes, recipe.dropout, options.seed
    )


def be_deterministic() -> None:
    """Let torch refuse what does not give the same bits each time."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def train_and_keep(
    options: Finetune,
    recipe: recipes.Recipe,
    data: initialization.TrainValSplit,
    start: initialization.InitialState,
    processes: Processes,
    device: str,
) -> None:
    """Train in this process, among others or alone; the first of them writes and prints."""
    from pipeline.finetuning.checkpoint import Checkpoint
    from pipeline.finetuning.distributed import share_batch_norms
    from pipeline.finetuning.model import TunableNetwork
    from pipeline.finetuning.trainer import RuntimeConfig, Trainer, choose_step_precision

    address = Experiment(options.dataset, options.backbone, options.layer, FINETUNED)
    path, report = options.out or address.classifier.with_suffix(".safetensors"), options.report or address.report
    checkpoint = Checkpoint(path.parent / ".store" / f"{path.name}.checkpoint", identity(start, data, options, recipe))
    precision = choose_step_precision(options.precision, device)
    threads = options.threads or parallel.default_threads()
    work = RuntimeConfig(device, threads, precision, options.compile, options.checkpoint_every)
    network = TunableNetwork(start.spec, start.head, options.unfreeze, start.origin).to(device)
    if processes.count > 1 and recipe.batch_norm == "trained":
        share_batch_norms(network.graph)
    say = print if processes.first else lambda text: None
    with checkpoint.claimed() if processes.first else nullcontext():
        if options.restart and processes.first:
            checkpoint.remove()
        processes.wait()
        trainer = Trainer(network, recipe, data, options.seed, work, checkpoint, processes, say)
        say(introduction(trainer, options))
        stopped = fine_tune(trainer, report)
        if processes.first:
            keep(trainer, start, path, described(trainer, options, stopped))
            checkpoint.remove()
    say(conclusion(trainer, path))
    if stopped:
        raise errors.PipelineError(f"{stopped} {path} holds the best weights so far, of epoch {trainer.best['epoch']}.")


def introduction(trainer: Trainer, options: Finetune) -> str:
    """Say what is trained on what, and how."""
    recipe, data, work, count = trainer.recipe, trainer.data, trainer.work, trainer.processes.count
    together = f" in {count} processes" if count > 1 else ""
    source = "carved out of training" if data.carved else "the val split"
    norms = "as they are" if recipe.batch_norm == "frozen" else "of each batch"
    return (
        f"{options.backbone} to {options.layer}, trained from {options.unfreeze} on, on {work.device}{together}, "
        f"{work.precision}: {len(data.train)} images, {len(data.val)} to decide by ({source})\n"
        f"{options.recipe}: {recipe.optimiser}, {recipe.schedule}, batches of {recipe.batch_size}, "
        f"augmentation {recipe.augment}, batch norm with statistics {norms}"
    )


def conclusion(trainer: Trainer, path: Path) -> str:
    """Say which weights were kept, what they reach, and where they lie."""
    best, count = trainer.best, len(trainer.data.val)
    low, high = scoring.wilson_interval(round(best["val_accuracy"] * count), count)
    return (
        f"{path}: the weights after epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.4f} "
        f"(95% {low:.4f}–{high:.4f}), n = {count}; before the first step it was {trainer.rows[0]['val_accuracy']:.4f}"
    )


def described(trainer: Trainer, options: Finetune, stopped: errors.PipelineError | None) -> dict[str, Any]:
    """Return how the network was trained, for the description beside its files."""
    return {
        "dataset": Experiment(options.dataset, options.backbone).name,
        "model": FINETUNED,
        "unfreeze": options.unfreeze,
        "started_from": options.model if options.head == "classifier" else "random",
        "recipe": {"name": options.recipe, **asdict(trainer.recipe)},
        "seed": trainer.seed,
        "best": trainer.best,
        "epochs_run": trainer.epoch,
        "stopped": str(stopped) if stopped else "",
        "n_train": len(trainer.data.train),
        "n_val": len(trainer.data.val),
        "seconds": round(sum(row["seconds"] for row in trainer.rows), 1),
        "processes": trainer.processes.count,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("finetune", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
