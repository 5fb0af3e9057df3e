"""L2TL on digits: do learned weights tell matching source classes from noise, and does the target gain by them?

The source has ten classes of digits written large, and ten of noise: digits that look as the target's do, with labels
by chance. The target has few digits of other writers, with thicker strokes. All are made from scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from pipeline.data.digits import add_digests
from pipeline.data.manifest import ListedImage, Manifest, read_manifest, write_manifest
from pipeline.finetuning import evaluation, initialization, joint, recipes, source
from pipeline.finetuning.batches import BatchLoader
from pipeline.finetuning.initialization import TrainValSplit
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.plan import JointPlan, LearnedSettings, Plan
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.sampling import Sampling
from pipeline.finetuning.trainer import Trainer
from pipeline.images.transforms import Transform
from pipeline.networks import backbones, layer_names
from pipeline.networks.frozen import FrozenNetwork
from pipeline.networks.origins import PackagedWeights

SIDE = 16
"""Side of all images, in pixels."""

N_MATCHING, N_NOISE = 10, 10


class SmallNetwork(nn.Module):
    """A hidden layer of 32 units, for images of 16×16 pixels: small, so that what is useless takes its room."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, num_classes) scores of (n, 3, 16, 16) normalised images."""
        scores: torch.Tensor = self.head(self.hidden(images))
        return scores


TRANSFORM = Transform(SIDE, SIDE, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SMALL = backbones.Backbone(
    "small",
    SmallNetwork,
    layer_names.name_fixed_layers({"hidden": "hidden.2"}),
    PackagedWeights("small", lambda: Path(), "", TRANSFORM, lambda: (), 0.0),
)


class Arm(NamedTuple):
    """How the source is used.

    uses: whether it is used; matching_alone: whether classes of noise have the weight 0; reward: by which weights are
    learned, "" where they are fixed; learned_before: whether these are the ones that such a run has learned.
    """

    uses: bool = True
    matching_alone: bool = False
    reward: str = ""
    learned_before: str = ""


ALONE, UNIFORM, MATCHING, LOSS_DROP, ACCURACY = ("target alone", "uniform", "matching alone", "loss-drop", "accuracy")
GRADIENT, LEARNED_BEFORE = ("gradient", "learned before")
ARMS = {
    ALONE: Arm(uses=False),
    UNIFORM: Arm(),
    MATCHING: Arm(matching_alone=True),
    GRADIENT: Arm(reward="gradient"),
    LEARNED_BEFORE: Arm(learned_before=GRADIENT),
    LOSS_DROP: Arm(reward="loss-drop"),
    ACCURACY: Arm(reward="accuracy"),
}
"""All but the learned ones train on the reward images too. "matching alone" knows what the learned ones are to find;
"learned before" trains with the weights that "gradient" found."""

RECIPE = {
    "schedule": "constant",
    "patience": 0,
    "batch_size": 32,
    "lr_decay": 1.0,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "augment": "none",
    "flip": 0.0,
    "batch_norm": "trained",
}


class Data(NamedTuple):
    """The datasets of a draw; test: rows (n,) int64 of the target's manifest."""

    source: Manifest
    target: Manifest
    test: np.ndarray


def other_look(grey: np.ndarray) -> np.ndarray:
    """Return an image (8, 8) in [0, 1] with thicker strokes, (16, 16)."""
    thick: np.ndarray = ndimage.grey_dilation(large(grey), (2, 2))
    return thick


def large(grey: np.ndarray) -> np.ndarray:
    """Return an image (8, 8) in [0, 1] as (16, 16)."""
    return np.clip(ndimage.zoom(grey, 2, order=1, grid_mode=True, mode="nearest"), 0, 1)


def write(folder: Path, images: list[tuple[np.ndarray, str, str]]) -> Manifest:
    """Write images as a prepared dataset; each is grey in [0, 1], with its class and split."""
    listed = []
    for number, (grey, label, split) in enumerate(images):
        path = folder / label / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey * 255).round().astype(np.uint8)).save(path)
        listed.append(ListedImage(path, label, split))
    write_manifest(folder, add_digests(listed))
    return read_manifest(folder)


def make_data(folder: Path, seed: int, per_class: int) -> Data:
    """Draw the digits of source and target, which share none; per_class: the target's for training and reward."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    order, greys = rng.permutation(len(digits.target)), digits.images / 16
    half = len(order) // 2
    images = [(large(greys[row]), f"digit{digits.target[row]}", "train") for row in order[:half]]
    for row in order[:half]:
        images.append((other_look(greys[row]), f"noise{rng.integers(N_NOISE)}", "train"))
    target, seen = [], np.zeros(10, int)
    for row in order[half:]:
        label = digits.target[row]
        split = "train" if seen[label] < per_class else "val" if seen[label] < per_class + 5 else "test"
        seen[label] += 1
        target.append((other_look(greys[row]), str(label), split))
    manifest = write(folder / "target", target)
    return Data(write(folder / "source", images), manifest, np.flatnonzero(manifest.splits.isin(["test"])))


class Result(NamedTuple):
    """What an arm reached: accuracy on the test images, and of learned weights the AUC, matching against noise.

    weights: the expected ones at the end, (k,) of the source classes; alpha: likewise.
    """

    accuracy: float
    auc: float | None
    alpha: float | None
    weights: np.ndarray | None


def plan_of(arm: Arm, data: Data, seed: int, given: np.ndarray | None, options: argparse.Namespace) -> Plan:
    """Return how an arm trains the small network from scratch; given: weights of source classes, if they are given."""
    settings = {name: getattr(options, name) for name in ("optimiser", "epochs", "lr_head", "lr_backbone")}
    recipe = recipes.choose("modern", RECIPE | settings)
    split = initialization.split_train_val(data.target, 0, seed)
    if arm.reward:
        split = initialization.hold_out_reward(split, options.reward_share, seed)
    network = FrozenNetwork(SMALL.name, ["hidden"], f"random:{seed}", "auto")
    start = initialization.from_random_head(network, len(data.target.classes), recipe.dropout, seed)
    sampling = Sampling(draws=options.draws, again=True)
    joint_plan = plan_of_source(arm, data, split, given, options) if arm.uses else None
    return Plan(start, split, "modern", recipe, "all", seed, sampling, joint_plan)


def plan_of_source(
    arm: Arm, data: Data, split: TrainValSplit, given: np.ndarray | None, options: argparse.Namespace
) -> JointPlan:
    """Return how an arm uses the source."""
    images = source.of_dataset(data.source, data.target, split.train)
    if arm.reward:
        rate = options.gradient_rate if arm.reward == GRADIENT else options.policy_rate
        learned = LearnedSettings(arm.reward, options.bins, rate, options.policy_entropy)
        return JointPlan(images, learned, options.alpha, options.pool)
    alike = np.ones(N_MATCHING + N_NOISE)
    weights = given if given is not None else is_matching(data) if arm.matching_alone else alike
    alpha = options.alpha if given is None else options.second_alpha
    return JointPlan(images, weights.astype(float), alpha, options.pool)


def is_matching(data: Data) -> np.ndarray:
    """Return which source classes are digits, (k,) bool."""
    return np.array([name.startswith("digit") for name in data.source.classes])


def train(arm: Arm, data: Data, seed: int, given: np.ndarray | None, options: argparse.Namespace) -> Result:
    """Train an arm, keep the weights of the best epoch, and score them on the target's test images."""
    plan, runtime = plan_of(arm, data, seed, given, options), RuntimeConfig()
    network = TunableNetwork(plan.start.spec, plan.start.head, plan.unfreeze)
    auxiliary = joint.of_plan(plan, network, runtime)
    trainer = Trainer(network, plan.recipe, plan.data, seed, runtime, None, plan.sampling, auxiliary)
    for _ in trainer.run():
        pass
    network.set_mode(False, plan.recipe.batch_norm)
    loader = BatchLoader(data.target, network.transform, runtime.device, 1)
    correct = evaluation.evaluate(network, loader, data.test, runtime.processes)[1]
    learned = joint.learned_by(auxiliary)
    expected = learned.expected() if learned else None
    accuracy = correct.double().mean().item()
    if not expected:
        return Result(accuracy, None, None, None)
    auc = float(roc_auc_score(is_matching(data), expected.weights))
    return Result(accuracy, auc, float(expected.alpha), expected.weights)


def summarise(results: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, object]]:
    """Return the means of each arm over seeds, and by how much arms are ahead of others, paired."""
    summary: dict[str, dict[str, object]] = {}
    accuracies = {name: np.array([result.accuracy for result in runs]) for name, runs in results.items()}
    for name, runs in results.items():
        if not runs:
            continue
        ours = accuracies[name]
        summary[name] = {"accuracy": ours.mean(), "standard_deviation": ours.std(ddof=1)}
        if name not in (ALONE, UNIFORM):
            beside = [other for other in (UNIFORM, ALONE) if results[other]]
            summary[name] |= {f"minus {other}": paired(ours, accuracies[other]) for other in beside}
        if ARMS[name].reward:
            aucs = np.array([run.auc for run in runs])
            alpha = np.mean([run.alpha for run in runs])
            summary[name] |= {"auc": aucs.mean(), "auc_standard_deviation": aucs.std(ddof=1), "alpha": alpha}
    return summary


def paired(ours: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Return the mean difference over seeds (n,), and the p of a paired t test."""
    return {"mean": round(float((ours - others).mean()), 4), "p": round(float(ttest_rel(ours, others).pvalue), 4)}


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of the benchmark."""
    command.add_argument("--seeds", type=int, default=10, help="number of seeds (default: 10)")
    command.add_argument("--first-seed", type=int, default=0, help="the first seed (default: 0)")
    command.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="which arms (default: all)")
    command.add_argument("--per-class", type=int, default=6, help="target images per class, without val (default: 6)")
    command.add_argument("--epochs", type=int, default=50, help="epochs (default: 50)")
    command.add_argument("--draws", type=int, default=320, help="target images per epoch (default: 320)")
    command.add_argument("--optimiser", default="sgd", help="optimiser (default: sgd)")
    command.add_argument("--lr-head", type=float, default=0.03, help="rate of both heads (default: 0.03)")
    command.add_argument("--lr-backbone", type=float, default=0.01, help="rate of the trunk (default: 0.01)")
    command.add_argument("--alpha", type=float, default=4.0, help="factor of the source's loss (default: 4)")
    command.add_argument("--second-alpha", type=float, default=2.0, help="the same with learned weights (default: 2)")
    command.add_argument("--pool", type=int, default=2, help="source images drawn per image kept (default: 2)")
    command.add_argument("--bins", type=int, default=10, help="values of a weight (default: 10)")
    command.add_argument("--reward-share", type=float, default=0.3, help="share of reward images (default: 0.3)")
    command.add_argument("--gradient-rate", type=float, default=0.02, help="rate with gradient (default: 0.02)")
    command.add_argument("--policy-rate", type=float, default=0.1, help="rate of the weights (default: 0.1)")
    command.add_argument("--policy-entropy", type=float, default=0.01, help="entropy bonus (default: 0.01)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train all arms with each seed; print a line for each run, and JSON on the last line."""
    backbones.registry()[SMALL.name] = SMALL
    begun = time.monotonic()
    results: dict[str, list[Result]] = {name: [] for name in ARMS}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            data = make_data(Path(folder), seed, options.per_class)
            for name in options.arms:
                before = results[ARMS[name].learned_before][-1].weights if ARMS[name].learned_before else None
                result = train(ARMS[name], data, seed, before, options)
                results[name].append(result)
                print(f"seed {seed}, {name}: {result._replace(weights=None)}", flush=True)
    seconds = round(time.monotonic() - begun)
    print(json.dumps(summarise(results) | {"seconds": seconds}, default=float))
