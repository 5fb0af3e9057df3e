"""Fine-tune a network: train its head, and the layers from one on, on a dataset; keep the best weights."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.finetuning import initialization
    from pipeline.finetuning.distributed import Processes
    from pipeline.finetuning.trainer import EpochRow, Trainer

from pipeline import config, errors, files
from pipeline.classifiers import persistence, scoring
from pipeline.codes.spec import flatten
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
    options: argparse.Namespace,
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


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags, with defaults from params.yaml."""
    parser = config.command("finetune", __doc__, EXAMPLE, ("dataset", "backbone", "layer", "model"))
    parser.add_argument("--unfreeze", default="all", help="train the backbone from this layer on, or none or all of it")
    parser.add_argument(
        "--head", choices=("classifier", "random"), default="classifier", help="start with stage two's, or anew"
    )
    parser.add_argument("--recipe", default="modern", help=f"preset of the next flags: {', '.join(recipes.RECIPES)}")
    add_recipe_flags(parser)
    parser.add_argument("--val", type=float, default=0.15, help="share of training to decide by, without a val split")
    parser.add_argument("--seed", type=int, default=0, help="of order, augmentation, dropout, validation, random head")
    parser.add_argument("--deterministic", action="store_true", help="the same bits in every run, on a GPU too")
    parser.add_argument("--restart", action="store_true", help="forget what an earlier run left unfinished")
    parser.add_argument(
        "--checkpoint-every", type=float, default=300.0, help="seconds, within an epoch; one follows each epoch as well"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the steps")
    parser.add_argument("--compile", action="store_true", help="compile the steps; pays on a GPU, over many epochs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int, default=parallel.default_threads(), help="that decode")
    add_file_flags(parser)
    parser.set_defaults(**config.section("finetune"))
    return parser


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of a recipe; without it, the preset's value holds."""
    kinds: dict[str, Callable[[str], Any]] = {
        "str": str,
        "int": int,
        "float": float,
        "bool": lambda text: bool(int(text)),
    }
    for field in fields(recipes.Recipe):
        presets = ", ".join(f"{name} {getattr(recipe, field.name)}" for name, recipe in recipes.RECIPES.items())
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kinds[str(field.type)],
            choices=tuple(recipes.CHOICES[field.name]) if field.name in recipes.CHOICES else None,
            metavar=None if field.name in recipes.CHOICES else "N",
            help=f"{HELP[field.name]} ({presets})",
        )


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name files, whose defaults follow from the address."""
    parser.add_argument("--weights", help="of the backbone, or where they are now (default: the classifier's)")
    parser.add_argument("--pool", help="how maps become vectors, with --head random (default: as extract does)")
    parser.add_argument("--codes", type=Path, help="the codes (default: features/DATASET/BACKBONE/LAYER.h5)")
    parser.add_argument(
        "--classifier", type=Path, help="the classifier (default: models/DATASET/BACKBONE/LAYER-MODEL.skops)"
    )
    parser.add_argument(
        "--out", type=Path, help="the weights (default: models/DATASET/BACKBONE/LAYER-finetuned.safetensors)"
    )
    parser.add_argument(
        "--report", type=Path, help="the folder for epochs.csv (default: reports/DATASET/BACKBONE/LAYER-finetuned)"
    )


def run(options: argparse.Namespace) -> None:
    """Fine-tune what the options name."""
    changes = {field.name: getattr(options, field.name) for field in fields(recipes.Recipe)}
    recipe = recipes.choose(options.recipe, {name: value for name, value in changes.items() if value is not None})
    address = Experiment(options.dataset, options.backbone, options.layer, options.model)
    manifest = sources.open_prepared(address.data, **config.section("prepare"))
    require_single_label(manifest)
    from pipeline.finetuning import initialization
    from pipeline.finetuning.distributed import join_processes
    from pipeline.networks.frozen import choose_device

    data = initialization.split_train_val(manifest, options.val, options.seed)
    start = begin(options, address, data, recipe)
    if options.deterministic:
        be_deterministic()
    with join_processes(choose_device(options.device)) as (processes, device):
        train_and_keep(options, recipe, data, start, processes, device)


def begin(
    options: argparse.Namespace, address: Experiment, data: initialization.TrainValSplit, recipe: recipes.Recipe
) -> initialization.InitialState:
    """Return the start that the options name."""
    from pipeline.finetuning import initialization

    if options.head == "classifier":
        files = (options.classifier or address.classifier, options.codes or address.codes)
        return initialization.from_classifier(*files, data, recipe.dropout, options.weights or "")
    usual = config.section("extract")
    origin, pool = options.weights or usual.get("weights", "default"), options.pool or usual.get("pool", "avg")
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
    options: argparse.Namespace,
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
    work = RuntimeConfig(device, options.threads, precision, options.compile, options.checkpoint_every)
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


def introduction(trainer: Trainer, options: argparse.Namespace) -> str:
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


def described(trainer: Trainer, options: argparse.Namespace, stopped: errors.PipelineError | None) -> dict[str, Any]:
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
    return errors.run_command(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
