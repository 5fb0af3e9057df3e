"""Fine-tune a network on a dataset: train its head, and its layers from one on; write the best weights.

Example: python -m pipeline.finetune --layer fc7 --model softmax --unfreeze conv7 --recipe modern --augment none
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("finetune")

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from pipeline import errors, files, params
from pipeline.analysis import source_weights
from pipeline.analysis.gain import Gain, judge_training
from pipeline.analysis.grouping import CodesRows, name_near_duplicates
from pipeline.classifiers import persistence, scoring
from pipeline.codes.belonging import training_digest, validate_dataset
from pipeline.codes.spec import flatten
from pipeline.config import NEAR_DUPLICATES, Extract, Finetune
from pipeline.data import digits
from pipeline.data.manifest import Manifest, read_depths, require_single_label
from pipeline.errors import counted
from pipeline.finetuning import initialization, recipes
from pipeline.finetuning.checkpoint import Checkpoint
from pipeline.finetuning.distributed import join_processes, share_batch_norms
from pipeline.finetuning.initialization import InitialState, TrainValSplit
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.progress import EpochRow
from pipeline.finetuning.sampling import Sampling
from pipeline.finetuning.trainer import LossDiverged, RuntimeConfig, Trainer, choose_step_precision
from pipeline.images import decoding, parallel
from pipeline.images.transforms import Framing
from pipeline.networks import weights
from pipeline.networks.frozen import FrozenNetwork, choose_device
from pipeline.paths import FINETUNED, Experiment


@dataclass(frozen=True)
class Plan:
    """All that determines the tuned weights, apart from rounding.

    recipe_name: the preset that the recipe was made from; unfreeze: the layer from which the backbone is trained, "all"
    or "none"; seed: of order, augmentation, dropout, held-out validation images and random head; sampling: which
    training images an epoch draws.
    """

    start: InitialState
    data: TrainValSplit
    recipe_name: str
    recipe: recipes.Recipe
    unfreeze: str
    seed: int
    sampling: Sampling


def identify_run(plan: Plan, precision: str) -> dict[str, object]:
    """Return the facts that make two runs the same, so that one can resume where the other stopped."""
    data, state = plan.data, plan.start.head.state_dict()
    labelled = [(data.manifest.paths[row], int(data.manifest.labels[row])) for row in (*data.train, *data.val)]
    images = decoding.digest(repr((len(data.train), labelled)).encode())
    head = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values()))
    return {
        **flatten(plan.start.spec.to_dict()),
        "images": images[:12],
        "head": head.hexdigest()[:12],
        "unfreeze": plan.unfreeze,
        "seed": plan.seed,
        "sampling": describe_sampling(plan.sampling),
        "precision": precision,
        **asdict(plan.recipe),
    }


def describe_sampling(sampling: Sampling) -> dict[str, object]:
    """Return how training images are drawn, for the metadata of the files; {} where all are drawn once."""
    drawn: dict[str, object] = {"draws": sampling.draws} if sampling.draws else {}
    if sampling.weights is None:
        return drawn
    return {**drawn, "method": sampling.method, "class_weights": sampling.weights.tolist()}


def fine_tune(
    plan: Plan, runtime: RuntimeConfig, path: Path, report: Path, facts: Mapping[str, object], *, restart: bool
) -> None:
    """Train in this process, alone or among others; the main process writes and prints.

    path: of the weights file; report: folder for epochs.csv; facts: for the metadata of the files; restart: whether an
    unfinished run is discarded. Raise PipelineError if the loss diverges, after the best weights so far are written.
    """
    main = runtime.processes.is_main
    checkpoint = Checkpoint(path.parent / ".cache" / f"{path.name}.checkpoint", identify_run(plan, runtime.precision))
    network = build_network(plan, runtime)
    with checkpoint.locked() if main else nullcontext():
        if restart and main:
            checkpoint.remove()
        runtime.processes.wait()
        trainer = Trainer(network, plan.recipe, plan.data, plan.seed, runtime, checkpoint, plan.sampling)
        stopped = train(trainer, report)
        best = trainer.progress.best
        if best is None:
            raise errors.PipelineError(stopped)
        if main:
            write_weights(trainer, plan.start, path, {**facts, **describe_training(plan, trainer, stopped)})
            checkpoint.remove()
    if main:
        print("\n".join(filter(None, [conclusion(trainer, best, path), judgement(trainer, best, plan.start.trained)])))
    if stopped:
        raise errors.PipelineError(f"{stopped} {path} holds the best weights so far, of epoch {best['epoch']}.")


def build_network(plan: Plan, runtime: RuntimeConfig) -> TunableNetwork:
    """Return the network to train, on its device."""
    network = TunableNetwork(plan.start.spec, plan.start.head, plan.unfreeze, plan.start.origin).to(runtime.device)
    if runtime.processes.count > 1 and plan.recipe.batch_norm == "trained":
        share_batch_norms(network.graph)
    return network


def train(trainer: Trainer, report: Path) -> str:
    """Train to the end, with a line per epoch on the screen and in epochs.csv; return why it stopped early, or ""."""
    rows: list[EpochRow] = []
    try:
        for row in trainer.run():
            rows.append(row)
            if trainer.runtime.processes.is_main:
                print(format_epoch(row), flush=True)
                cells = [["" if value is None else value for value in row.values()] for row in rows]
                files.write_csv(report / "epochs.csv", list(row), cells)
    except LossDiverged as error:
        rates = f"--lr-backbone ({trainer.recipe.lr_backbone:g}) or --lr-head ({trainer.recipe.lr_head:g})"
        return f"Stopped, since {error}: the learning rate is too high. Lower {rates}."
    return ""


def format_epoch(row: EpochRow) -> str:
    """Return an epoch's figures in a line."""
    trained = f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}; " if row["epoch"] else ""
    speed = f"; {row['images_per_second']:.1f} images/s" if row["images_per_second"] else ""
    return (
        f"epoch {row['epoch']} ({row['phase']}): {trained}"
        f"validation loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}{speed}"
    )


def write_weights(trainer: Trainer, start: InitialState, path: Path, facts: Mapping[str, object]) -> None:
    """Write the weights file, and next to it the head as a classifier of the codes that these weights give."""
    state, classes = trainer.network.backbone_state(), trainer.data.manifest.classes
    transform = replace(start.spec.transform, decoder=decoding.PILLOW)
    spec = replace(start.spec, weights=str(path), weights_sha256=weights.digest_of(state), transform=transform)
    metadata = {"spec": spec.to_dict(), "facts": facts, "classes": classes}
    weights.write_state(path, state, {"format": "pt"} | {name: json.dumps(value) for name, value in metadata.items()})
    classifier = persistence.SavedClassifier(trainer.network.head.to_classifier(), spec, classes)
    persistence.save(path.with_suffix(".skops"), classifier, dict(facts))


def describe_training(plan: Plan, trainer: Trainer, stopped: str) -> dict[str, object]:
    """Return how the network was trained, for the metadata of the files."""
    progress, data = trainer.progress, trainer.data
    return {
        "unfreeze": plan.unfreeze,
        "recipe": {"name": plan.recipe_name, **asdict(plan.recipe)},
        "seed": plan.seed,
        "sampling": describe_sampling(plan.sampling),
        "best": progress.best,
        "epochs_run": progress.epoch,
        "stopped": stopped,
        "n_train": len(data.train),
        "n_val": len(data.val),
        "n_val_units": len(np.unique(data.val_units())),
        "seconds": round(sum(row["seconds"] for row in progress.rows), 1),
        "processes": trainer.runtime.processes.count,
    }


def describe_data(settings: Finetune, manifest: Manifest, dataset: str) -> dict[str, object]:
    """Return what the network is trained on, for the metadata of the files; dataset: its name."""
    depths = read_depths(manifest.root)
    return {
        "dataset": dataset,
        "dataset_digest": training_digest(manifest),
        "model": FINETUNED,
        "started_from": settings.model if settings.head == "classifier" else "random",
        "group_by": settings.group_by,
        "near_distance": settings.near_distance,
        **({"depths": depths.to_dict()} if depths else {}),
    }


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
    return (
        f"{spec.backbone} to {spec.layer}, {start}, on {runtime.device}{together}, {runtime.precision}: "
        f"{images}{drawn}{by_weight}, {counted(len(plan.data.val), 'validation image')} "
        f"({source})\n"
        f"{plan.recipe_name}: {recipe.optimiser}, {recipe.schedule}, batches of {recipe.batch_size}, "
        f"augmentation {recipe.augment}, batch norm with statistics {statistics}"
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


def add_near_duplicates(manifest: Manifest, codes: Path, settings: Finetune) -> Manifest:
    """Return the manifest with the groups of near-duplicates, by a file of codes, as a column of its metadata."""
    validate_dataset(codes, manifest.root)
    images = CodesRows.of_splits(codes, "train", "val")
    names = dict(zip(images.paths, name_near_duplicates(images, settings.near_distance), strict=True))
    groups = tuple(names.get(path, path) for path in manifest.paths)
    return replace(manifest, metadata={**manifest.metadata, NEAR_DUPLICATES: groups})


def network_of_codes(settings: Finetune, max_value: float) -> FrozenNetwork:
    """Return the network whose codes a random head reads: that of `extract`, but for what the settings say.

    max_value: the value that is white in the dataset's images.
    """
    usual, _ = params.load(Extract)
    origin, pool = settings.weights or usual.weights, settings.pool or usual.pool
    framing = Framing.sized(**usual.framing(max_value))
    network = FrozenNetwork(settings.backbone, [settings.layer], origin, pool, framing, usual.relu)
    return network.at(usual.fixed_precision, usual.dtype)


def sampling_of(settings: Finetune, data: TrainValSplit) -> Sampling:
    """Return how the settings say that training images are drawn; refuse what these images do not allow."""
    weights = source_weights.read_for(settings.sample_by, data.manifest.classes) if settings.sample_by else None
    sampling = Sampling(weights, settings.sampling, settings.draws)
    sampling.validate(data.train_labels())
    return sampling


def use_deterministic_algorithms() -> None:
    """Let torch raise an exception for operations whose results may differ from run to run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def run(settings: Finetune) -> None:
    """Fine-tune what the settings name."""
    changes = {field.name: getattr(settings, field.name) for field in fields(recipes.Recipe)}
    recipe = recipes.choose(settings.recipe, {name: value for name, value in changes.items() if value is not None})
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    manifest = digits.open_prepared(address.data, **params.split_settings())
    require_single_label(manifest)
    codes = settings.codes or address.codes
    if settings.group_by == NEAR_DUPLICATES:
        manifest = add_near_duplicates(manifest, codes, settings)
    data = initialization.split_train_val(manifest, settings.val, settings.seed, settings.group_by)
    if settings.head == "classifier":
        path = settings.classifier or address.classifier
        start = initialization.from_classifier(path, codes, data, recipe.dropout, settings.weights)
    else:
        network = network_of_codes(settings, manifest.max_value)
        start = initialization.from_random_head(network, len(manifest.classes), recipe.dropout, settings.seed)
    if settings.deterministic:
        use_deterministic_algorithms()
    sampling = sampling_of(settings, data)
    plan = Plan(start, data, settings.recipe, recipe, settings.unfreeze, settings.seed, sampling)
    tuned = replace(address, model=FINETUNED)
    path, report = settings.out or tuned.classifier.with_suffix(".safetensors"), settings.report or tuned.report
    facts = describe_data(settings, manifest, address.name)
    with join_processes(choose_device(settings.device)) as (processes, device):
        threads = settings.threads or parallel.default_threads()
        precision = choose_step_precision(settings.precision, device)
        runtime = RuntimeConfig(device, threads, precision, settings.compile, settings.checkpoint_every, processes)
        if processes.is_main:
            print(introduction(plan, runtime))
        fine_tune(plan, runtime, path, report, facts, restart=settings.restart)
