"""finetune: from a trained classifier to weights that extract reads; kills, several processes, mistakes."""

from __future__ import annotations

import csv
import json
import math
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
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.data.manifest import read_manifest
from pipeline.finetuning import initialization
from pipeline.finetuning.trainer import Trainer
from pipeline.networks import backbones, tinyvgg, weights

Run = Callable[..., Outcome]
CONV7 = ("--dataset", "photos", "--layer", "conv7", "--head", "random", "--pool", "avg", "--precision", "fp32")
"""A layer without dropout before it, where a step's result for one image does not depend on the other images.

In bf16, the default on CPUs that have it, sums over other microbatches differ by more than the tests allow.
"""

ADDRESS = ("--dataset", "photos", "--layer", "fc7", "--model", "softmax")
QUICK = ("--augment", "none", "--epochs", 1, "--batch-size", 8)
OUT = Path("models/photos/tinyvgg/fc7-finetuned.safetensors")
EPOCHS = Path("reports/photos/tinyvgg/fc7-finetuned/epochs.csv")


@pytest.fixture
def trained(run: Run, tmp_path: Path) -> Run:
    """Train a classifier of six classes, in groups of three that look alike: 5 train, 3 val and 3 test images each."""
    prepare_photos(run, tmp_path, "--test", 0.25, "--val", 0.25)
    return run


def prepare_photos(run: Run, folder: Path, *splits: object) -> None:
    write_photos(folder / "photos", dict.fromkeys("abcdef", 11))
    assert run("prepare", "--dataset", folder / "photos", *splits).code == 0
    assert run("extract", "--dataset", "photos", "--layer", "fc7").code == 0
    assert run("classify", *ADDRESS, "--grid", "{l2: {C: [10]}}", "--folds", 2).code == 0


def epochs(path: Path = EPOCHS) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def accuracy(model: str, codes_path: str, split: str) -> float:
    """Return the accuracy that a saved classifier of codes has on a split."""
    classifier = persistence.load(Path(f"models/photos/tinyvgg/fc7-{model}.skops"))
    codes = reader.read(Path(codes_path), {}, split)
    return float((persistence.margins(classifier, codes.values).argmax(1) == codes.labels).mean())


# From a classifier to tuned weights, and back


@pytest.mark.parametrize("model", ["svm", "softmax"])
@pytest.mark.parametrize("normalise", ["l2: {C: [10]}", "standard: {C: [0.01]}"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_any_step_the_accuracy_is_that_of_the_classifier(
    trained: Run, model: str, normalise: str, precision: str
) -> None:
    address = (*ADDRESS[:4], "--model", model)
    trained("extract", *ADDRESS[:4], "--precision", precision)
    trained("classify", *address, "--grid", f"{{{normalise}}}", "--folds", 2)
    outcome = trained("finetune", *address, "--epochs", 0)
    assert outcome.code == 0, outcome.err
    frozen = accuracy(model, "features/photos/tinyvgg/fc7.h5", "val")
    assert 1 / 6 < frozen < 1, "classes that look alike are confused, so the accuracy is not trivial"
    assert float(epochs()[0]["val_accuracy"]) == frozen
    assert accuracy("finetuned", "features/photos/tinyvgg/fc7.h5", "test") == accuracy(
        model, "features/photos/tinyvgg/fc7.h5", "test"
    )


@pytest.mark.slow
def test_finetune_extract_evaluate_and_predict_follow_each_other(trained: Run, tmp_path: Path) -> None:
    outcome = trained("finetune", *ADDRESS, *QUICK, "--epochs", 2, "--lr-backbone", 0.001)
    assert outcome.code == 0, outcome.err
    assert "30 training images, 18 validation images (the val split)" in outcome.out
    assert re.search(r"^(Training (helped|did not help)|Whether training helped is open): ", outcome.out, re.M)
    assert "batch norm with statistics frozen" in outcome.out
    rows = epochs()
    assert [row["epoch"] for row in rows] == ["0", "1", "2"] and rows[0]["train_loss"] == ""
    assert all(0 <= float(row["train_accuracy"]) <= 1 and float(row["val_loss"]) > 0 for row in rows[1:])
    flags = ("--layer", "fc7", "--weights", OUT, "--out", "features/photos/tuned")
    outcome = trained("extract", "--dataset", "photos", *flags)
    assert outcome.code == 0 and "as the weights were tuned" in outcome.out
    best = max(float(row["val_accuracy"]) for row in rows)
    assert accuracy("finetuned", "features/photos/tuned/fc7.h5", "val") == best
    tuned = ("--codes", "features/photos/tuned/fc7.h5")
    assert trained("evaluate", *ADDRESS[:4], "--model", "finetuned", *tuned).code == 0
    assert "finetuned" in trained("report").out
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert "<h3>Fine-tuning, epoch by epoch</h3>" in page and "epoch 2: " in page and "validation" in page
    again = ("--grid", "{l2: {C: [10]}}", "--folds", 2, "--out", "again.skops")
    assert trained("classify", *ADDRESS, *tuned, *again).code == 0
    assert trained("predict", *ADDRESS[:4], "--model", "finetuned", tmp_path / "photos" / "a").code == 0
    facts = json.loads(OUT.with_suffix(".json").read_text())
    assert facts["recipe"]["name"] == "modern" and facts["best"]["val_accuracy"] == best and facts["n_val"] == 18
    assert not list(OUT.parent.glob(".cache/*.checkpoint"))


def test_the_weights_file_is_the_whole_backbone_with_its_spec(trained: Run) -> None:
    flags = ("--unfreeze", "fc6", "--head", "random", "--lr-head", 0.01)
    assert trained("finetune", *ADDRESS, *QUICK, *flags).code == 0
    state, original = load_file(OUT), backbones.load(backbones.get("tinyvgg"), "default")[0].state_dict()
    assert state.keys() == original.keys()
    same = {name for name, value in state.items() if torch.equal(value, original[name])}
    assert {name for name in original if name.startswith("features.")} <= same
    assert {"classifier.6.weight", "classifier.6.bias"} <= same, "the layers after it are not changed"
    assert not {"classifier.0.weight", "classifier.3.weight"} & same
    with safe_open(OUT, "pt") as file:
        spec = json.loads(file.metadata()["spec"])
    assert (spec["layer"], spec["weights"]) == ("fc7", str(OUT))
    assert persistence.load(OUT.with_suffix(".skops")).spec.weights_sha256 == spec["weights_sha256"]
    assert tinyvgg.WEIGHTS.exists()


@pytest.mark.parametrize("spec", [None, "no JSON", "[1]", '{"precision": "fp8", "decoder": 1}'])
def test_the_spec_in_weights_of_another_program_is_ignored(trained: Run, spec: str | None) -> None:
    state = {name: value + 0 for name, value in load_file(tinyvgg.WEIGHTS).items()}
    weights.write_state(Path("theirs.safetensors"), state, {} if spec is None else {"spec": spec})
    outcome = trained("extract", *ADDRESS[:4], "--weights", "theirs.safetensors", "--out", "theirs")
    assert outcome.code == 0 and "Precision " in outcome.out and "tuned" not in outcome.out


def test_held_out_validation_images_are_not_in_the_classifiers_training(run: Run, tmp_path: Path) -> None:
    prepare_photos(run, tmp_path, "--test", 0.25)
    outcome = run("finetune", *ADDRESS, "--epochs", 0, "--val", 0.25)
    assert "36 training images, 12 validation images (held out of the training split)" in outcome.out
    data = initialization.split_train_val(read_manifest(Path("data/photos")), 0.25, 0)
    kept = data.manifest.paths.take(data.train)
    codes_path = Path("features/photos/tinyvgg/fc7.h5")
    classifier = persistence.load(Path("models/photos/tinyvgg/fc7-softmax.skops"))
    retrained = initialization.retrain_on(classifier, codes_path, kept)
    codes = reader.read(codes_path, {}, "train")
    rows = np.array([path not in kept for path in codes.paths])
    correct = persistence.margins(retrained, codes.values[rows]).argmax(1) == codes.labels[rows]
    assert float(epochs()[0]["val_accuracy"]) == correct.mean()
    assert accuracy("softmax", str(codes_path), "train") > correct.mean(), "it is more accurate on its training images"


def test_codes_with_other_labels_than_the_dataset_are_refused(run: Run, tmp_path: Path) -> None:
    prepare_photos(run, tmp_path, "--test", 0.25)
    manifest = Path("data/photos/manifest.csv")
    line = next(line for line in manifest.read_text().splitlines() if ",a,train" in line)
    manifest.write_text(manifest.read_text().replace(line, line.replace(",a,train", ",b,train")))
    mistake(
        run("finetune", *ADDRESS, *QUICK), "is labelled 'a' in the codes and 'b' in the dataset", "pipeline.extract"
    )


def test_training_from_scratch_learns(run: Run, photos: Path) -> None:
    write_photos(photos, {"red": 30, "green": 30, "blue": 30})
    run("prepare", "--dataset", photos, "--test", 0.2, "--val", 0.2)
    flags = ("--head", "random", "--weights", "random", "--recipe", "scratch", "--layer", "pool2", "--pool", "avg")
    small = ("--epochs", 4, "--small-epochs", 1, "--batch-size", 9)
    outcome = run("finetune", "--dataset", "photos", *flags, *small)
    assert outcome.code == 0, outcome.err
    rows = epochs(Path("reports/photos/tinyvgg/pool2-finetuned/epochs.csv"))
    assert max(float(row["val_accuracy"]) for row in rows) >= 0.9
    assert float(rows[-1]["train_loss"]) < float(rows[1]["train_loss"])


# What goes wrong


def test_a_diverging_loss_ends_in_a_sentence_and_the_best_weights_so_far(trained: Run) -> None:
    outcome = trained("finetune", *ADDRESS, *QUICK, "--epochs", 5, "--optimiser", "sgd", "--lr-backbone", 1e12)
    mistake(
        outcome, "Stopped, since the loss became", "the learning rate is too high", "--lr-backbone (1e+12)", str(OUT)
    )
    assert all(math.isfinite(float(value.double().sum())) for value in load_file(OUT).values())
    best = int(json.loads(OUT.with_suffix(".json").read_text())["best"]["epoch"])
    assert f"of epoch {best}" in outcome.err
    assert trained("finetune", *ADDRESS, *QUICK).code == 0, "its checkpoint does not stop a run with another rate"


def test_out_of_memory_continues_in_smaller_microbatches_to_the_same_weights(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*CONV7, *QUICK, "--unfreeze", "conv6", "--optimiser", "sgd", "--lr-backbone", 0.01)
    assert trained("finetune", *flags, "--out", "whole.safetensors").code == 0
    forward, sizes = torch.nn.functional.cross_entropy, []

    def scarce(scores: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        if options.get("label_smoothing") is not None:
            sizes.append(len(scores))
            if len(scores) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(scores, *rest, **options)

    monkeypatch.setattr("pipeline.finetuning.microbatches.cross_entropy", scarce)
    outcome = trained("finetune", *flags, "--out", "parts.safetensors")
    assert outcome.code == 0 and "microbatches of 4" in outcome.err and "microbatches of 2" in outcome.err
    assert max(sizes[2:]) == 2
    whole, parts = load_file("whole.safetensors"), load_file("parts.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_other_errors_than_of_memory_are_not_hidden(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*rest: object, **options: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("pipeline.finetuning.microbatches.cross_entropy", broken)
    with pytest.raises(RuntimeError, match="something else"):
        trained("finetune", *ADDRESS, *QUICK)


def test_unknown_names_and_missing_files(trained: Run) -> None:
    mistake(trained("finetune", *ADDRESS, "--unfreeze", "conv9"), "Unknown layer 'conv9' for tinyvgg", "conv7")
    mistake(trained("finetune", *ADDRESS[:2], "--layer", "conv9", "--head", "random"), "Unknown layer 'conv9'")
    mistake(trained("finetune", *ADDRESS[:4], "--model", "ridge"), "no classifier at", "pipeline.classify")
    mistake(trained("finetune", *ADDRESS, "--recipe", "modem"), "--recipe is 'modem'", "modern")
    mistake(trained("finetune", *ADDRESS, "--weights", "random"), "is not the network that gave the codes")
    trained("classify", *ADDRESS[:4], "--model", "knn", "--folds", 2, "--grid", "{l2: {n_neighbors: [1]}}")
    mistake(trained("finetune", *ADDRESS[:4], "--model", "knn"), "not linear", "--head random")


def test_codes_that_fine_tuning_cannot_give(trained: Run) -> None:
    trained("classify", *ADDRESS, "--folds", 2, "--grid", "{sqrt: {C: [1]}}")
    mistake(trained("finetune", *ADDRESS, *QUICK), "SignedRoot", "l2 or standard")
    trained("extract", "--dataset", "photos", "--layer", "fc7", "--views", "flips")
    trained("classify", *ADDRESS, "--folds", 2, "--grid", "{l2: {C: [1]}}")
    mistake(trained("finetune", *ADDRESS, *QUICK), "views is 'flips', not 'one'", "without these options")


def test_no_validation_data_and_classes_without_any(run: Run, tmp_path: Path) -> None:
    prepare_photos(run, tmp_path, "--test", 0.25)
    mistake(run("finetune", *ADDRESS, "--val", 0), "no validation data", "--val 0.15")
    mistake(run("finetune", *ADDRESS, "--val", 1), "--val is '1', but it must be less than 1")
    mistake(run("finetune", *ADDRESS, "--val", -0.5), "--val is '-0.5', but it must be 0 or more")
    manifest = Path("data/photos/manifest.csv")
    kept = manifest.read_text()
    lines = kept.splitlines()
    of_d = [line for line in lines if ",d,train" in line]
    manifest.write_text("\n".join(line for line in lines if line not in of_d[1:]) + "\n")
    mistake(run("finetune", *ADDRESS), "class 'd' has no validation image")
    changed = [line.replace(",train", ",val") if ",a,train" in line else line for line in lines]
    manifest.write_text("\n".join(changed) + "\n")
    mistake(run("finetune", *ADDRESS), "class 'b' has no validation image", "val split")
    manifest.write_text("\n".join(line for line in lines if "train" not in line) + "\n")
    mistake(run("finetune", *ADDRESS), "no training images")


def test_a_checkpoint_of_another_run_or_a_damaged_one(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", interrupted)
        assert trained("finetune", *ADDRESS, *QUICK).code == 130
    checkpoint = Path(f"{OUT.parent}/.cache/{OUT.name}.checkpoint")
    assert checkpoint.exists()
    mistake(trained("finetune", *ADDRESS, *QUICK, "--lr-head", 0.5), "of another run", "lr_head is 0.001, not 0.5")
    resnet = ("--head", "random", "--backbone", "resnet18", "--weights", "random", "--layer", "avgpool")
    mistake(
        trained("finetune", *ADDRESS[:2], *resnet, *QUICK, "--out", OUT), "of another run", "its backbone is 'tinyvgg'"
    )
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    mistake(trained("finetune", *ADDRESS, *QUICK), "cannot be read", "--restart")
    assert trained("finetune", *ADDRESS, *QUICK, "--restart").code == 0


def test_an_image_that_became_bad_is_named(trained: Run, tmp_path: Path) -> None:
    manifest = read_manifest(Path("data/photos"))
    row = next(row for row, name in enumerate(manifest.splits) if name == "train")
    manifest.file(row).write_bytes(b"")
    mistake(trained("finetune", *ADDRESS, *QUICK), manifest.paths[row], "zero bytes", "pipeline.prepare")


# Kills, and several processes

KILLER = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import pipeline.finetune, skops.io
from pipeline.command_line import run_command

def start(name):
    child = os.fork()
    if child == 0:
        os._exit(run_command("finetune", [*sys.argv[2:], "--out", f"{name}.safetensors", "--report", name]))
    return child

begun = time.monotonic()
assert os.waitpid(start("whole"), 0)[1] == 0
longest, rng, killed = time.monotonic() - begun, random.Random(0), 0
while killed < int(sys.argv[1]):
    child = start("killed")
    time.sleep(rng.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(start("killed"), 0)[1] == 0
"""
"""Trains without interruption; then kills a run at random moments and lets it end.

The runs are forks, so that the kills fall into the training, not into imports.
"""


@pytest.mark.slow
def test_kill_9_at_6_random_moments_changes_no_bit(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos, "--test", 0.25, "--val", 0.25)
    chance = ("--augment", "crop", "--dropout", 0.2, "--batch-norm", "trained", "--seed", 3)
    flags = ("--layer", "conv4", "--head", "random", "--epochs", 4, "--batch-size", 3, "--lr-backbone", 0.001)
    safe = ("--deterministic", "--checkpoint-every", 0, "--patience", 0)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-c", KILLER, "6", "--dataset", "photos", *map(str, (*chance, *flags, *safe))]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"Resuming after epoch \d+, step [1-9]", ended.stderr), (
        "some kills fell between the steps of an epoch"
    )
    whole, killed = load_file("whole.safetensors"), load_file("killed.safetensors")
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    heads = [persistence.load(Path(f"{name}.skops")).pipeline[-1].coef_ for name in ("whole", "killed")]
    np.testing.assert_array_equal(*heads)
    timed = ("seconds", "images_per_second")
    curves = [
        [{name: value for name, value in row.items() if name not in timed} for row in epochs(Path(path, "epochs.csv"))]
        for path in ("whole", "killed")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 5
    assert json.loads(Path("whole.json").read_text())["best"]["epoch"] > 0, "the weights differ from those at the start"


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_two_processes_reach_the_losses_of_one(trained: Run, batch_norm: str) -> None:
    flags = (
        *CONV7,
        "--augment",
        "crop",
        "--epochs",
        3,
        "--batch-norm",
        batch_norm,
        "--batch-size",
        7,
        "--optimiser",
        "sgd",
        "--patience",
        0,
    )
    arguments = ("-m", "pipeline.finetune", *flags, "--lr-backbone", 0.01, "--device", "cpu")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    curves = []
    for launcher in ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")):
        command = [sys.executable, *launcher, *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ("in 2 processes" in ended.stdout) == bool(launcher)
        assert ended.stdout.count("epoch 3 (network)") == 1
        curves.append(
            [
                [float(row[name] or 0) for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy")]
                for row in epochs(Path("reports/photos/tinyvgg/conv7-finetuned/epochs.csv"))
            ]
        )
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4, atol=1e-5)
    assert curves[0][1][0] > curves[0][3][0], "the loss falls"
