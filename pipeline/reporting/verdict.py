"""What to know first about a dataset: the best experiment, whether that may be chance, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import hints
from pipeline.analysis import predictions
from pipeline.codes.reader import CodesIndex
from pipeline.codes.spec import extract_settings
from pipeline.data.splits import find_units
from pipeline.errors import Fix
from pipeline.paths import FINETUNED, Experiment
from pipeline.reporting.experiments import address_of
from pipeline.reporting.page_data import AdviceSummary, Comparison, ExperimentSummary, NextStep, Verdict

SMALL_INPUT = "tinyvgg"
"""The backbone that sees 64 × 64 pixels and suits small images."""

STRONGER = ("efficientnet_lite0", "avgpool")
"""The backbone to try on photographs next, whose weights are installed with the program, and its layer."""

TRY_LAYER = ("extract", "classify", "evaluate", "report")
"""The commands that score a model on another layer."""

ENOUGH = 0.95
"""Top-1 accuracy from which no stronger backbone is suggested."""

TestedImages = tuple[int, np.ndarray, np.ndarray]
"""A hash of the paths of an experiment's test images; which of them are predicted correctly, (n,) bool; and their
units, (n,) int64, as in `scoring.interval`."""


def compare_with_first(tested: Sequence[TestedImages]) -> list[Comparison]:
    """Test every experiment on a dataset against the first, which is the best."""
    best, *others = tested
    comparable = [place for place, other in enumerate(others) if other[0] == best[0]]
    p_values = [
        predictions.mcnemar(best[1], others[place][1], _common_units(best, others[place])) for place in comparable
    ]
    comparisons: list[Comparison] = [{"best": False, "p": None, "differs": None} for _ in others]
    for place, p, differs in zip(comparable, p_values, predictions.significant(p_values), strict=True):
        comparisons[place] = {"best": False, "p": p, "differs": differs}
    return [{"best": True, "p": None, "differs": None}, *comparisons]


def _common_units(one: TestedImages, other: TestedImages) -> np.ndarray:
    """Return the units (n,) int64 of images that two experiments tested: what is one in either is one in both."""
    return find_units(one[2].tolist(), other[2].tolist())


def give_verdict(
    experiments: Sequence[ExperimentSummary], tested: Sequence[TestedImages], advice: Mapping[str, AdviceSummary]
) -> Verdict:
    """Return what to know first about a dataset.

    experiments, tested: in the same order, the best first; advice: {backbone: what `advise` recommends}.
    """
    validated = sum(experiment["validation"] is not None for experiment in experiments)
    others = [row["comparison"] for row in experiments if row["comparison"]["p"] is not None]
    best, second = experiments[0], tested[1] if len(tested) > 1 and tested[1][0] == tested[0][0] else None
    return {
        "compared": validated or len(experiments),
        "validated": validated > 0,
        "left_out": len(experiments) - validated if validated else 0,
        "most_frequent": max(scores.support for scores in best["per_class"]) / best["images"],
        "difference": _difference(tested[0], second) if second else None,
        "comparable": len(others),
        "apart": sum(bool(comparison["differs"]) for comparison in others),
        "next_step": choose_next_step(experiments, advice.get(best["backbone"])),
    }


def _difference(one: TestedImages, other: TestedImages) -> predictions.PairedDifference:
    return predictions.paired_difference(one[1], other[1], _common_units(one, other))


def choose_next_step(experiments: Sequence[ExperimentSummary], advice: AdviceSummary | None) -> NextStep:
    """Return what is worth doing next; advice: on the backbone of the best experiment, which is the first."""
    best, backbones = experiments[0], {row["backbone"] for row in experiments}
    layers = {row["layer"] for row in experiments if row["backbone"] == best["backbone"]}
    known = {"dataset": best["dataset"], "model": best["model"]}
    network = known | {**best["network"], "backbone": best["backbone"], "layer": best["layer"]}
    if backbones == {SMALL_INPUT} and best["top1"] < ENOUGH:
        reason = f"{SMALL_INPUT} sees 64×64 pixels. If these are photographs, try a network that sees more"
        return _step(reason, known | dict(zip(("backbone", "layer"), STRONGER, strict=True)), *TRY_LAYER)
    if advice is None:
        return _step(
            f"Measure every layer of {best['backbone']} on the training images", network | {"layer": ""}, "advise"
        )
    if advice["as_good"] and not layers & set(advice["as_good"]):
        reason = f"Try layer {advice['layer']}, which did best when every layer was measured"
        return _step(reason, network | {"layer": advice["layer"]}, *TRY_LAYER)
    if advice["fine_tune"] and not any(row["model"] == FINETUNED for row in experiments):
        tried = "A short run of fine-tuning did better than the frozen codes"
        reason = tried if advice["tried"] else "There are enough images to train the network further"
        return _step(reason, network, "finetune")
    reason = "Let the best classifier name the classes of new images, here those in the folder new-images"
    predict = Fix("predict", {"classifier": address_of(best).classifier})
    return {"reason": reason, "commands": [f"{predict} new-images > classes.csv"]}


def choose_first_step(name: str, index: CodesIndex) -> NextStep:
    """Return what is worth doing next with a dataset of which there are codes and no scores."""
    known = {"dataset": name, **extract_settings(index.spec.to_dict())}
    if {"train", "test"} <= set(index.splits.distinct()):
        return _step("Train a classifier and score it on the test images", known, *TRY_LAYER[1:])
    file = Experiment(name, "").data / index.paths[0]
    similar = hints.complete(Fix("similar"), known)
    reason = "Find the images that are most similar to one of these, or to a new one"
    return {"reason": reason, "commands": [f"{similar} {shlex.quote(str(file))}"]}


def _step(reason: str, known: Mapping[str, Any], *commands: str) -> NextStep:
    """Return the step of running commands on an experiment with some known settings, each command in full."""
    return {"reason": reason, "commands": [str(hints.complete(Fix(command), known)) for command in commands]}
