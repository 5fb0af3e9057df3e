"""A source trained with the target: its gradient, its files, kills, several processes, mistakes."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Outcome, write_photos
from helpers import mistake
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from pipeline.data import digits
from pipeline.data.folders import list_folder
from pipeline.data.manifest import ListedImage, Manifest, read_manifest, write_manifest
from pipeline.finetuning import initialization, recipes
from pipeline.finetuning.agreement import GradientAgreement
from pipeline.finetuning.auxiliary import Place
from pipeline.finetuning.head import Head
from pipeline.finetuning.joint import JointSource
from pipeline.finetuning.model import SourceNetwork, TunableNetwork
from pipeline.finetuning.recipes import Phase
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.source import of_dataset
from pipeline.finetuning.trainer import Trainer
from pipeline.finetuning.weighing import Action, FixedWeights
from pipeline.images.transforms import Framing
from pipeline.networks.frozen import FrozenNetwork
from pipeline.reporting.source_charts import source_charts

Run = Callable[..., Outcome]
FLAGS = ("--dataset", "target", "--layer", "pool1", "--pool", "avg", "--head", "random", "--precision", "fp32")
QUICK = ("--augment", "none", "--epochs", 2, "--batch-size", 6, "--draws", 12, "--patience", 0)
LEARNED = ("--source", "source", "--source-weights", "learned", "--reward-share", 0.3)
REPORT = Path("reports/target/tinyvgg/pool1-finetuned")


def prepared(folder: Path, classes: str, count: int, seed: int) -> Manifest:
    write_photos(folder, dict.fromkeys(classes, count), seed)
    listed = [ListedImage(image.path, image.label, "train") for image in list_folder(folder).images]
    write_manifest(folder, digits.add_digests(listed))
    return read_manifest(folder)


def joint_trainer(folder: Path, weights: np.ndarray, alpha: float) -> Trainer:
    """Return a trainer of a target of three classes with a source of four, on the first layers of tinyvgg."""
    data = initialization.split_train_val(prepared(folder / "target", "abc", 6, 0), 0.34, seed=0)
    manifest = prepared(folder / "source", "wxyz", 5, 1)
    recipe = recipes.choose("modern", {"epochs": 1, "batch_size": 6, "augment": "none", "flip": 0.0})
    framing = Framing(max_value=manifest.max_value)
    start = initialization.from_random_head(FrozenNetwork("tinyvgg", ["pool1"], "default", "avg", framing), 3, 0.0, 0)
    network, runtime = TunableNetwork(start.spec, start.head, "all"), RuntimeConfig()
    source = of_dataset(manifest, data.manifest, data.train)
    joined = SourceNetwork(network, Head.random(network.head.linear.in_features, 4, 0.0, 0))
    joint = JointSource(source, FixedWeights(Action(weights, alpha)), joined, recipe, 0, 2, runtime)
    return Trainer(network, recipe, data, 0, runtime, auxiliary=joint)


# What is minimised


def test_the_gradient_is_that_of_alpha_times_the_weighted_mean_of_the_source(tmp_path: Path) -> None:
    weights = np.array([0.9, 0.0, 0.3, 0.6])
    trainer = joint_trainer(tmp_path, weights, alpha=0.5)
    joint, network = trainer.auxiliary, trainer.network
    assert isinstance(joint, JointSource)
    network.train_backbone(True)
    network.set_mode(True, "frozen")
    (term,) = joint.begin_step(Place(1, 0, Phase("network", 0, 1), network.transform.crop))
    assert len(term.images) == 6 and not (term.labels == 1).any()
    trainer.accumulator.backward([term], trainer.progress)
    parameters = [value for group in trainer.optimiser.param_groups for value in group["params"]]
    ours = [value.grad.clone() for value in parameters if value.grad is not None]
    of_image = torch.from_numpy(weights[term.labels]).float()
    losses = cross_entropy(joint.head(network.codes(term.images)), term.labels, reduction="none", label_smoothing=0.1)
    trainer.optimiser.zero_grad()
    (0.5 * (of_image * losses).sum() / of_image.sum()).backward()
    by_hand = [value.grad for value in parameters if value.grad is not None]
    for gradient, expected in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    assert joint.parameter_groups(trainer.recipe)[0]["params"][0] is joint.head.linear.weight


@pytest.mark.parametrize(("weights", "alpha"), [(np.zeros(4), 1.0), (np.ones(4), 0.0)])
def test_a_source_that_counts_nothing_changes_no_bit(tmp_path: Path, weights: np.ndarray, alpha: float) -> None:
    trained = joint_trainer(tmp_path / "with", weights, alpha)
    alone = joint_trainer(tmp_path / "without", weights, alpha)
    alone = Trainer(alone.network, alone.recipe, alone.data, 0, alone.runtime)
    for trainer in (trained, alone):
        list(trainer.run())
    states = [trainer.network.mutable_state() for trainer in (trained, alone)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_agreement_of_a_class_is_the_inner_product_of_gradients(tmp_path: Path) -> None:
    trainer = joint_trainer(tmp_path, np.ones(4), 1.0)
    joint, network, rows = trainer.auxiliary, trainer.network, trainer.data.val
    assert isinstance(joint, JointSource)
    network.train_backbone(True)
    network.set_mode(True, "frozen")
    joined, state = SourceNetwork(network, joint.head), copy.deepcopy(network.mutable_state())
    reward, (images, labels) = (
        next(loader.validation(some, 16)) for loader, some in ((trainer.loader, rows), (joint.loader, np.arange(10)))
    )
    measure = GradientAgreement(network, joined, trainer.loader, rows, 4, "frozen", trainer.runtime.processes)
    agreement, shares = measure(images, labels)
    assert shares.tolist() == [0.5, 0.5, 0, 0] and agreement[2:].tolist() == [0, 0]
    assert all(torch.equal(value, state[name]) for name, value in network.mutable_state().items())
    trunk = list(network.trainable().values())
    of_reward = torch.autograd.grad(cross_entropy(network(reward[0]), reward[1]), trunk)
    length = torch.stack([value.square().sum() for value in of_reward]).sum().sqrt()
    for number in (0, 1):
        own = labels == number
        of_class = torch.autograd.grad(cross_entropy(joined(images[own]), labels[own]), trunk)
        exact = sum((ours * others).sum() for ours, others in zip(of_class, of_reward, strict=True)) / length
        assert agreement[number] == pytest.approx(float(exact), rel=0.1, abs=1e-3)


# The command


@pytest.fixture
def two(run: Run, tmp_path: Path) -> Run:
    """Prepare a target of three classes and a source of four."""
    for name, classes, count, seed in (("target", "abc", 12, 0), ("source", "wxyz", 8, 1)):
        write_photos(tmp_path / name, dict.fromkeys(classes, count), seed)
        assert run("prepare", "--dataset", tmp_path / name, "--test", 0.25).code == 0
    return run


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((REPORT / name).read_text().splitlines()))


def test_learned_weights_are_written_said_and_taken_again(two: Run) -> None:
    outcome = two("finetune", *FLAGS, *QUICK, *LEARNED)
    assert outcome.code == 0, outcome.err
    assert "with source: 24 training images of 4 classes, learned weights, alpha up to 1" in outcome.out
    assert "in three parts: 18 to train, 6 for the reward (loss-drop), 3 to choose the best weights" in outcome.out
    assert "learned in 4 steps" in outcome.out
    learned = table("source_weights.csv")
    assert sorted(row["class"] for row in learned) == list("wxyz") and {row["n"] for row in learned} == {"6"}
    assert [(row["epoch"], row["step"]) for row in table("source_steps.csv")] == [*zip("1122", "1212", strict=True)]
    by_epoch = table("source_epochs.csv")
    assert [row["epoch"] for row in by_epoch if row["class"] == "w"] == ["0", "1", "2"] and len(by_epoch) == 12
    assert [float(row["weight"]) for row in by_epoch[:4]] == pytest.approx([0.45] * 4)
    scores = {"dataset": "target", "backbone": "tinyvgg", "layer": "pool1", "model": "finetuned"}
    charts = source_charts(Path("reports"), scores)
    assert [chart.titles.y.split()[0] for chart in charts] == ["weight", "alpha,", "reward,"]
    assert {line.name for line in charts[0].lines} == set("wxyz") and {
        len(line.points) for line in charts[0].lines
    } == {3}
    assert (REPORT / "source_weights.png").stat().st_size > 10_000
    (REPORT / "source_weights.csv").rename("learned.csv")
    assert two("finetune", *FLAGS, *QUICK, *LEARNED, "--reward", "gradient").code == 0
    assert len({row["weight"] for row in table("source_weights.csv")}) == 4 == len(table("source_steps.csv"))
    outcome = two("finetune", *FLAGS, *QUICK, "--source", "source", "--source-weights", "learned.csv")
    assert outcome.code == 0 and "24 training images (12 per epoch), 3 validation images" in outcome.out
    assert "given weights, alpha 1" in outcome.out
    assert not source_charts(Path("reports"), scores), "nothing was learned in this run"
    facts = json.loads(Path("models/target/tinyvgg/pool1-finetuned.json").read_text())
    assert facts["joint"]["source"] == "source" and len(facts["joint"]["source_weights"]) == 4


def test_mistakes_with_a_source_are_one_sentence_each(two: Run, tmp_path: Path) -> None:
    ask = lambda *flags: two("finetune", *FLAGS, *QUICK, *flags)  # noqa: E731 - it only adds what all have
    mistake(ask("--source", "target"), "is the target itself")
    mistake(ask("--source", "nowhere"), "nowhere", "pipeline.prepare")
    mistake(ask("--source-weights", "learned"), "Name it with --source")
    mistake(ask("--source", "source", "--source-weights", "learnt"), "no file", "uniform, learned")
    mistake(ask(*LEARNED[:-1], 0), "no target images to measure the reward on", "--reward-share 0.2")
    mistake(ask("--source", "source", "--unfreeze", "none"), "trains nothing that a source could share")
    for lines, words in (("v,1\n", "no weight for 4 classes"), ("w,0\nx,0\ny,0\nz,0\n", "the weight 0")):
        Path("given.csv").write_text("class,weight\n" + lines)
        mistake(ask("--source", "source", "--source-weights", "given.csv"), words)
    two("prepare", "--unlabelled", tmp_path / "source" / "w", "--out", "data/pile")
    mistake(ask("--source", "pile"), "two classes or more")


RUNS = """
import os, sys
import torch
port = sys.argv.pop(1)
torch.set_num_threads(1)
from pipeline.command_line import run_command
import pipeline.finetune, skops.io
from pipeline.reporting import source_learning

source_learning.draw = lambda *of_figure: None  # no figure is looked at

def start(name, **environment):
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        os._exit(run_command("finetune", [*sys.argv[1:], "--out", f"{name}.safetensors", "--report", name]))
    return child

def killed_in_step(number):
    "Kill a run without warning, within a step of the second epoch, after its checkpoint."
    from pipeline.finetuning.trainer import Trainer
    take, taken = Trainer._take_step, []
    def take_step(self, *arguments):
        taken.append(1)
        if len(taken) > number:
            os.kill(os.getpid(), 9)
        take(self, *arguments)
    Trainer._take_step = take_step
    child = start("killed")
    Trainer._take_step = take
    return child

assert os.waitpid(start("whole"), 0)[1] == 0
assert os.waitpid(killed_in_step(3), 0)[1] == 9
assert os.waitpid(start("killed"), 0)[1] == 0
shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
both = [start("both", RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
assert [os.waitpid(child, 0)[1] for child in both] == [0, 0]
"""
"""Trains without interruption; kills a run and lets it end; trains in two processes."""


def test_kills_change_no_bit_and_two_processes_learn_the_same(two: Run) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (*FLAGS, *QUICK, *LEARNED, "--augment", "crop", "--optimiser", "sgd", "--deterministic")
    more = ("--checkpoint-every", 0, "--device", "cpu")
    command = [sys.executable, "-c", RUNS, *map(str, (port, *flags, *more))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"Resuming after epoch 1, step 1", ended.stderr) and "in 2 processes" in ended.stdout
    whole, killed, both = (load_file(f"{name}.safetensors") for name in ("whole", "killed", "both"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    for name in ("source_weights.csv", "source_steps.csv", "source_epochs.csv"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes()
    for name, value in whole.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-5)
    alone, together = (
        np.loadtxt(Path(name, "source_steps.csv"), delimiter=",", skiprows=1) for name in ("whole", "both")
    )
    np.testing.assert_allclose(together, alone, rtol=1e-2, atol=1e-5)
    assert alone.shape == (4, 5)
