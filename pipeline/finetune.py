"""Fine-tune a network on a dataset: train its head, and its layers from one on; write the best weights.

Example: python -m pipeline.finetune --layer fc7 --model softmax --unfreeze conv7 --recipe modern --augment none
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("finetune")

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch

from pipeline import errors, files, params
from pipeline.analysis import source_weights
from pipeline.analysis.grouping import CodesRows, name_near_duplicates
from pipeline.classifiers import persistence
from pipeline.codes.belonging import training_digest, validate_dataset
from pipeline.config import NEAR_DUPLICATES, Extract, Finetune
from pipeline.data import digits
from pipeline.data.manifest import Manifest, read_depths, require_single_label
from pipeline.finetuning import initialization, joint, recipes
from pipeline.finetuning.checkpoint import Checkpoint
from pipeline.finetuning.distributed import join_processes, share_batch_norms
from pipeline.finetuning.initialization import InitialState, TrainValSplit
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.plan import JointPlan, LearnedSettings, Plan, describe_sampling, identify_run
from pipeline.finetuning.progress import EpochRow
from pipeline.finetuning.runtime import RuntimeConfig, choose_step_precision
from pipeline.finetuning.sampling import Sampling
from pipeline.finetuning.source import Source, of_dataset
from pipeline.finetuning.trainer import LossDiverged, Trainer
from pipeline.finetuning.weighing import LearnedWeights
from pipeline.images import decoding, parallel
from pipeline.images.transforms import Framing
from pipeline.networks import weights
from pipeline.networks.frozen import FrozenNetwork, choose_device
from pipeline.paths import FINETUNED, Experiment, prepared_folder, resolve_task
from pipeline.reporting import finetuning_text, source_learning
from pipeline.texts import Texts


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
        auxiliary = joint.of_plan(plan, network, runtime)
        trainer = Trainer(network, plan.recipe, plan.data, plan.seed, runtime, checkpoint, plan.sampling, auxiliary)
        stopped = train(trainer, report)
        best = trainer.progress.best
        if best is None:
            raise errors.PipelineError(stopped)
        if main:
            write_weights(trainer, plan.start, path, {**facts, **describe_training(plan, trainer, stopped)})
            say_learned(plan.joint, joint.learned_by(auxiliary), report)
            checkpoint.remove()
    if main:
        judgement = finetuning_text.judgement(trainer, best, plan.start.trained)
        print("\n".join(filter(None, [finetuning_text.conclusion(trainer, best, path), judgement])))
    if stopped:
        raise errors.PipelineError(f"{stopped} {path} holds the best weights so far, of epoch {best['epoch']}.")


def say_learned(plan: JointPlan | None, learned: LearnedWeights | None, report: Path) -> None:
    """Print the weights of source classes that were learned, if they were, and write them to the report."""
    source_learning.remove(report)
    if plan and learned:
        source_learning.write(report, plan.source, learned)
        print(finetuning_text.of_learned(plan.source, learned))


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
                print(finetuning_text.format_epoch(row), flush=True)
                cells = [["" if value is None else value for value in row.values()] for row in rows]
                files.write_csv(report / "epochs.csv", list(row), cells)
    except LossDiverged as error:
        rates = f"--lr-backbone ({trainer.recipe.lr_backbone:g}) or --lr-head ({trainer.recipe.lr_head:g})"
        return f"Stopped, since {error}: the learning rate is too high. Lower {rates}."
    return ""


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
        **({"joint": plan.joint.facts(), "n_reward": len(data.reward)} if plan.joint else {}),
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


def add_near_duplicates(manifest: Manifest, codes: Path, settings: Finetune) -> Manifest:
    """Return the manifest with the groups of near-duplicates, by a file of codes, as a column of its metadata."""
    validate_dataset(codes, manifest.root)
    images = CodesRows.of_splits(codes, "train", "val")
    names = dict(zip(images.paths, name_near_duplicates(images, settings.near_distance), strict=True))
    groups = Texts.of(names.get(path, path) for path in manifest.paths)
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


def sampling_of(settings: Finetune, data: TrainValSplit, joint: JointPlan | None) -> Sampling:
    """Return how the settings say that training images are drawn; refuse what these images do not allow.

    With a source, an epoch is as long as one of the source, if that has more images.
    """
    draws = max(len(joint.source.rows), len(data.train)) if joint else 0
    weights = source_weights.read_for(settings.sample_by, data.manifest.classes) if settings.sample_by else None
    sampling = Sampling(weights, settings.sampling, settings.draws or draws, again=bool(draws))
    sampling.validate(data.train_labels())
    return sampling


def joint_plan(settings: Finetune, data: TrainValSplit) -> JointPlan | None:
    """Return which source the settings want to be trained with the target, None for none; refuse what does not fit."""
    if not settings.source:
        if settings.source_weights != "uniform":
            raise errors.PipelineError("--source-weights are those of a source dataset. Name it with --source.")
        return None
    if settings.unfreeze == "none":
        raise errors.PipelineError(
            "--unfreeze none trains nothing that a source could share. Take another layer, or all."
        )
    source = open_source(settings.source, data)
    how = LearnedSettings(settings.reward, settings.weight_bins, settings.policy_rate, settings.policy_entropy)
    weights = how if settings.learns_weights else fixed_weights(settings.source_weights, source)
    return JointPlan(source, weights, settings.alpha, settings.source_pool)


def open_source(dataset: str, data: TrainValSplit) -> Source:
    """Return the images of a source dataset that may be trained with the target."""
    manifest = digits.open_prepared(prepared_folder(resolve_task(dataset)), **params.split_settings())
    return of_dataset(manifest, data.manifest, data.train)


def fixed_weights(given: str, source: Source) -> np.ndarray:
    """Return weights (k,) of a source's classes: equal ones, or those of a CSV file."""
    classes = source.manifest.classes
    if given != "uniform" and not Path(given).is_file():
        raise errors.PipelineError(f"--source-weights {given} is no file. Take uniform, learned, or a CSV file.")
    weights = np.ones(len(classes)) if given == "uniform" else source_weights.read_for(Path(given), classes)
    if not weights[source.counts() > 0].any():
        raise errors.PipelineError(
            f"{given} gives all classes with a source image the weight 0. Give one of them more."
        )
    return weights


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
    if settings.source and settings.learns_weights:
        data = initialization.hold_out_reward(data, settings.reward_share, settings.seed)
    with_source = joint_plan(settings, data)
    if settings.head == "classifier":
        path = settings.classifier or address.classifier
        start = initialization.from_classifier(path, codes, data, recipe.dropout, settings.weights)
    else:
        network = network_of_codes(settings, manifest.max_value)
        start = initialization.from_random_head(network, len(manifest.classes), recipe.dropout, settings.seed)
    if settings.deterministic:
        use_deterministic_algorithms()
    sampling = sampling_of(settings, data, with_source)
    plan = Plan(start, data, settings.recipe, recipe, settings.unfreeze, settings.seed, sampling, with_source)
    tuned = replace(address, model=FINETUNED)
    path, report = settings.out or tuned.classifier.with_suffix(".safetensors"), settings.report or tuned.report
    facts = describe_data(settings, manifest, address.name)
    with join_processes(choose_device(settings.device)) as (processes, device):
        threads = settings.threads or parallel.default_threads()
        precision = choose_step_precision(settings.precision, device)
        runtime = RuntimeConfig(device, threads, precision, settings.compile, settings.checkpoint_every, processes)
        if processes.is_main:
            print(finetuning_text.introduction(plan, runtime))
        fine_tune(plan, runtime, path, report, facts, restart=settings.restart)
