"""Pretrain from scratch on source images drawn by weight, equally many in each arm; compare the codes on two targets.

The source is Tiny-ImageNet. The targets are a folder of photos, and images of five of the source's classes that
pretraining does not see; source images that may be the same photographs as a target's are removed first. The arms
draw classes alike (uniform), by P_t / P_s (weighted), by the same weights in reverse order, so that the class that is
least like the target gets the greatest (inverse), and alike from classes that a person picks (picked); one network
stays as random as it began (untrained).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import ttest_rel

from pipeline import files, finetune
from pipeline.analysis.source_weights import SourceWeights, read_for
from pipeline.command_line import run_command
from pipeline.data.manifest import read_manifest
from pipeline.finetuning import initialization, recipes
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.sampling import Sampling
from pipeline.finetuning.trainer import RuntimeConfig, Trainer
from pipeline.networks import tinyvgg
from pipeline.networks.frozen import FrozenNetwork

N_CLASSES, N_TRAIN, N_TEST = 5, 20, 20
"""Classes of the second target, and its images per class."""

CHANGES = {"augment": "gentle", "small_epochs": 1, "batch_size": 64, "lr_head": 0.05, "lr_backbone": 0.05}
"""What differs from the recipe scratch: smaller batches and rates, since the steps are few, and small images."""

SAME = 0.9
"""Correlation of 16×16 pixels from which on two images may be the same photograph."""

ARTHROPODS = (
    *(
        "bee",
        "black widow",
        "centipede",
        "cockroach",
        "dragonfly",
        "fly",
        "grasshopper",
        "ladybug",
        "mantis",
        "monarch",
    ),
    *("scorpion", "sulphur butterfly", "tarantula", "walking stick"),
)
"""What a person may pick for ants and bees among the classes of the source; it has no ant."""

UNTRAINED, UNIFORM, WEIGHTED, INVERSE, PICKED = ARMS = ("untrained", "uniform", "weighted", "inverse", "picked")


def call(command: str, **flags: object) -> None:
    """Run a command in this process, without its output; end where it fails."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with redirect_stdout(StringIO()):
        if run_command(command, ["--quiet", *arguments]):
            sys.exit(f"{command} failed")


def unpack(archive: Path) -> None:
    """Unpack the source, in folders that bear the names of tinyvgg's classes, and hold out the second target's images.

    The five classes are drawn by a seed; their first images go to the target's training and test split.
    """
    names, chosen = class_names(), five_classes()
    with tarfile.open(archive) as tar:
        tar.extractall("unpacked", filter="data")
    for folder in sorted(Path("unpacked").iterdir()):
        for number, path in enumerate(sorted(folder.iterdir())):
            held_out = folder.name in chosen and number < N_TRAIN + N_TEST
            split = "train" if number < N_TRAIN else "test"
            parent = Path("five", split) if held_out else Path("source")
            to = parent / names[folder.name] / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            path.rename(to)


def class_names() -> dict[str, str]:
    """Return {WordNet id: name} of tinyvgg's classes."""
    with tinyvgg.CLASSES.open(encoding="utf-8", newline="") as file:
        return {row["wnid"]: row["name"] for row in csv.DictReader(file, delimiter="\t")}


def five_classes() -> set[str]:
    """Return the WordNet ids of the second target's classes."""
    return set(np.random.default_rng(0).choice(sorted(class_names()), N_CLASSES, replace=False).tolist())


def prepare(target: Path) -> str:
    """Prepare source and targets; return the first target's name.

    Photographs that other people collected from the same web sites stand in both, at other sizes: their digests differ.
    """
    call("prepare", dataset="five")
    call("prepare", dataset=target)
    source = sorted(Path("source").glob("*/*"))
    images = np.stack([thumbnail(path) for path in source])
    for name in (target.name, "five"):
        others = np.stack([thumbnail(path) for path in read_manifest(Path("data", name)).files()])
        same = np.flatnonzero((images @ others.T).max(1) >= SAME)
        print(f"{name}: {len(same)} source images may be the same photographs, and are removed")
        for number in same:
            source[number].unlink(missing_ok=True)
    call("prepare", dataset="source", test=0)
    return target.name


def thumbnail(path: Path) -> np.ndarray:
    """Return an image as 16×16 pixels, (768,), of mean 0 and length 1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float32).ravel()
    centred: np.ndarray = pixels - pixels.mean()
    return centred / max(float(np.linalg.norm(centred)), 1e-6)


def write_weights(target: str, picked: Collection[str]) -> SourceWeights:
    """Write the weights of each arm for a target to weights/TARGET-ARM.csv, by tinyvgg's own head.

    picked: the names of the classes of the arm that is picked by hand.
    """
    call("weigh", dataset=target, backbone="tinyvgg")
    found = files.read_csv(Path("reports", target, "tinyvgg", "source_weights", "weights.csv"))
    shares = {row["class"]: float(row["p_target"]) for row in found}
    source = read_manifest(Path("data/source"))
    counts = np.bincount(source.labels, minlength=len(source.classes))
    weights = SourceWeights(source.classes, counts, np.array([shares[name] for name in source.classes]))
    order, reversed_values = np.argsort(weights.values, kind="stable"), np.empty(len(counts))
    reversed_values[order] = weights.values[order[::-1]]
    alike = np.ones(len(counts))
    by_hand = np.isin(source.classes, [*picked]).astype(float)
    arms = {UNTRAINED: alike, UNIFORM: alike, WEIGHTED: weights.values, INVERSE: reversed_values, PICKED: by_hand}
    for arm, values in arms.items():
        files.write_csv(arm_path(target, arm), ("class", "weight"), zip(source.classes, values, strict=True))
    return weights


def arm_path(target: str, arm: str) -> Path:
    """Return where the weights of an arm lie."""
    return Path("weights", f"{target}-{arm}.csv")


def pretrain(weights: Path, seed: int, options: argparse.Namespace) -> Path:
    """Pretrain on the source, if at all; return the weights file.

    It holds the weights after the last step. `finetune` would take the epoch that predicts held-out source images best,
    of all classes alike, and so favour the arm that learned from all alike.
    """
    out = Path("pretrained", f"{weights.stem}-{seed}.safetensors")
    if out.exists():
        return out
    source = read_manifest(Path("data/source"))
    recipe = recipes.choose("scratch", CHANGES | {"epochs": int(not weights.stem.endswith(UNTRAINED))})
    recipe = replace(recipe, small_side=options.side)
    frozen = FrozenNetwork("tinyvgg", ["fc6"], f"random:{seed}", "avg4")
    start = initialization.from_random_head(frozen, len(source.classes), recipe.dropout, seed)
    rows = np.arange(len(source.paths))
    runtime = RuntimeConfig("cpu", options.threads, "fp32")
    sampling = Sampling(read_for(weights, source.classes), draws=options.draws)
    network = TunableNetwork(start.spec, start.head, "all")
    data = initialization.TrainValSplit(source, rows, rows[:1])
    trainer = Trainer(network, recipe, data, seed, runtime, sampling=sampling)
    for row in trainer.run():
        if row["epoch"] == recipe.epochs:  # after it, the trainer restores the best weights
            finetune.write_weights(trainer, start, out, {})
    return out


def score(target: str, weights: Path) -> float:
    """Return the test accuracy of a linear SVM on frozen codes of the target."""
    features, classifier = Path("features", target, weights.stem), Path("models", target, f"{weights.stem}.skops")
    reports, address = Path("reports", target, weights.stem), {"dataset": target, "backbone": "tinyvgg"}
    call("extract", **address, layer="fc6", weights=weights, out=features, compile="no", precision="fp32")
    codes = features / "fc6.h5"
    call("classify", **address, layer="fc6", model="svm", codes=codes, out=classifier)
    call("evaluate", **address, layer="fc6", model="svm", codes=codes, classifier=classifier, out=reports)
    return float(json.loads((reports / "metrics.json").read_text())["top1"])


def runs(targets: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, str, int, float]]:
    """Yield target, arm, seed and accuracy; a seed's networks that know no target serve both."""
    for seed in range(options.seeds):
        for target in targets:
            for arm in ARMS:
                weights = arm_path(targets[0] if arm in (UNTRAINED, UNIFORM) else target, arm)
                accuracy = score(target, pretrain(weights, seed, options))
                print(f"{target:<12} {arm:<9} seed {seed}: {accuracy:.4f}", flush=True)
                yield target, arm, seed, accuracy


def summarise(target: str, accuracies: dict[str, list[float]]) -> list[dict[str, object]]:
    """Return a row for each arm of a target, with a t-test over seeds, paired with the uniform arm."""
    rows: list[dict[str, object]] = []
    n = read_manifest(Path("data", target)).splits.count("test")
    for arm in ARMS:
        values, uniform = np.array(accuracies[arm]), np.array(accuracies[UNIFORM])
        p = float(ttest_rel(values, uniform).pvalue) if arm != UNIFORM and (values != uniform).any() else None
        rows.append(
            {
                **{"target": target, "arm": arm, "n": n, "seeds": len(values), "top1": round(values.mean(), 4)},
                **{"sd": round(values.std(ddof=1), 4), "over_uniform": round((values - uniform).mean(), 4), "p": p},
            }
        )
    return rows


def run(options: argparse.Namespace) -> None:
    """Run all arms; print a line per run, a table, and its rows as JSON on the last line."""
    archive, target = options.archive.resolve(), options.target.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        os.chdir(work)
        if not Path("source").exists():
            unpack(archive)
        targets = [prepare(target), "five"]
        names = class_names()
        for name, picked in zip(targets, (options.picked, [names[number] for number in five_classes()]), strict=True):
            weights = write_weights(name, picked)
            heaviest = ", ".join(weights.classes[number] for number in weights.heaviest(N_CLASSES))
            print(f"{name}: {weights.effective_classes:.1f} effective classes; the heaviest are {heaviest}", flush=True)
        found: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in ARMS} for name in targets}
        for name, arm, _, accuracy in runs(targets, options):
            found[name][arm].append(accuracy)
        rows = [row for name in targets for row in summarise(name, found[name])]
    print(
        f"{'target':<12} {'arm':<9} {'n':>4} {'top-1':>7} {'sd':>7} {'over uniform':>13}  p over {options.seeds} seeds"
    )
    for row in rows:
        p = "" if row["p"] is None else f"{row['p']:.3f}"
        figures = f"{row['n']:>4} {row['top1']:>7} {row['sd']:>7} {row['over_uniform']:>+13}  {p}"
        print(f"{row['target']:<12} {row['arm']:<9} {figures}")
    print(json.dumps({"draws": options.draws, "rows": rows}))
