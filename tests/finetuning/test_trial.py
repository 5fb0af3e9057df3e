"""A short run of fine-tuning: the same images for both sides, no unit parted, and no more time than is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import count_forwards, mistake

from pipeline.finetuning import trial
from pipeline.finetuning.initialization import TrainValSplit
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.trainer import LossDiverged, Trainer

Run = Callable[..., Outcome]
ADVISE = ("--dataset", "photos", "--layer", "conv2", "--models", "svm", "--folds", 2, "--try-finetuning")


def test_the_advice_says_what_was_tried_on_how_many_images_and_what_follows(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "EPOCHS", 1)
    monkeypatch.setattr(trial, "RECIPE", replace(trial.RECIPE, epochs=1))
    assert run("prepare", "--dataset", photos).code == 0
    outcome = run("advise", *ADVISE)
    assert outcome.code == 0, outcome.err
    assert "Trying fine-tuning: 1 epochs over 18 training images, 9 images held out, about " in outcome.err
    assert "5 at most (--try-minutes)" in outcome.err
    content = json.loads(Path("reports/photos/tinyvgg/advice/advice.json").read_text(encoding="utf-8"))
    tried, advice = content["finetuning"], content["advice"]
    assert (tried["n_train"], tried["epochs"], tried["gain"]["n_images"]) == (18, 1, 9)
    assert advice["fine_tune"] == (tried["gain"]["low"] > 0)
    assert "With 1 epoch on 18 training images" in outcome.out and "paired, n = 9" in outcome.out
    assert "rule of thumb" not in outcome.out
    outcome = run("advise", *ADVISE, "--try-minutes", 1e-6)
    assert outcome.code == 0 and "Fine-tuning was not tried: in 1e-06 minutes" in outcome.out
    assert "by the rule of thumb, which was not measured here" in outcome.out

    def diverge(self: Trainer) -> None:
        raise LossDiverged("the loss became nan in epoch 1, step 1")

    monkeypatch.setattr(trial.Trial, "time_training", lambda self: 1e-3)
    monkeypatch.setattr(Trainer, "run", diverge)
    assert "Fine-tuning was not tried: the loss became nan" in run("advise", *ADVISE).out


def test_what_cannot_be_tried_is_refused_at_the_start(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("prepare", "--dataset", photos)
    forwards = count_forwards(monkeypatch)
    mistake(
        run("advise", *ADVISE, "--models", "knn", "svm"), "starts from the first of --models", "svm, softmax, ridge"
    )
    mistake(run("advise", *ADVISE, "--size", 96), "Fine-tuning uses the transform of the weights", "--size")
    assert not forwards


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 200), (0.5, 108), (10.0, None)])
def test_as_many_images_are_learned_from_as_the_time_allows(seconds: float, expected: int | None) -> None:
    """10 minutes less 6 evaluations of 300 images, at a third of the time of a training step, and less two batches."""
    labels = np.arange(500) % 2

    class Images:
        classes, paths = ("a", "b"), tuple(map(str, range(500)))

    images = Images()
    images.labels = labels  # type: ignore[attr-defined]
    data = TrainValSplit(images, np.arange(200), np.arange(200, 500))  # type: ignore[arg-type]
    tried = trial.Trial(None, data, "svm", "l2", {}, 600.0, 0, RuntimeConfig())  # type: ignore[arg-type]
    if expected is None:
        with pytest.raises(trial.TrialImpossibleError, match="--try-minutes"):
            tried.affordable(seconds)
        return
    train = tried.affordable(seconds).train
    assert len(train) == expected
    assert abs(np.bincount(labels[train]) - len(train) / 2).max() <= 1, "the same share of each class"


def test_thinning_out_keeps_every_class() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    rows = trial.thin_out(np.arange(100), labels, 10, seed=0)
    assert np.bincount(labels[rows]).tolist() == [9, 1, 1]
    assert trial.thin_out(np.arange(100), labels, 200, seed=0).tolist() == list(range(100))
