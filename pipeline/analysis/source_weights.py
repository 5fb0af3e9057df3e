"""The weight of each class of a source dataset, by how much a target's images look like that class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.special import softmax

from pipeline import errors, files

Item = TypeVar("Item")

HEADER = ("class", "n", "p_source", "p_target", "weight")


@dataclass(frozen=True)
class SourceWeights:
    """How much each of k classes of a source counts for a target (Ngiam et al., "Domain Adaptive Transfer Learning").

    classes: their names; counts: (k,) int64, number of source images of each, None where nobody knows, and all classes
    are taken to be equally common; p_target: (k,), the mean over the target's images of the probabilities that a
    network trained on the source gives them, of sum 1.
    """

    classes: tuple[str, ...]
    counts: np.ndarray | None
    p_target: np.ndarray

    @property
    def p_source(self) -> np.ndarray:
        """(k,), the share of each class in the source, of sum 1."""
        counts = np.ones(len(self.classes)) if self.counts is None else self.counts
        shares: np.ndarray = counts / counts.sum()
        return shares

    @property
    def values(self) -> np.ndarray:
        """(k,), the weight P_t / P_s of each class; 0 for a class without a source image, which cannot be drawn."""
        return np.divide(self.p_target, self.p_source, out=np.zeros(len(self.classes)), where=self.p_source > 0)

    @property
    def effective_classes(self) -> float:
        """The number of equally weighted classes that would be as many as these, (Σw)² / Σw², in [1, k]."""
        return float(self.values.sum() ** 2 / (self.values**2).sum())

    def heaviest(self, count: int) -> list[int]:
        """Return the indices of the classes with the highest weights, ties by their order."""
        order: list[int] = np.argsort(-self.values, kind="stable")[:count].tolist()
        return order


def extremes(ordered: Sequence[Item], count: int) -> list[Item]:
    """Return the first `count` and the last `count` of what is ordered by weight; all, where they would overlap."""
    return list(ordered) if len(ordered) <= 2 * count else [*ordered[:count], *ordered[-count:]]


def mean_probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return P_t (k,): the mean over n images of softmax(scores / temperature); scores: (n, k) logits."""
    mean: np.ndarray = softmax(scores.astype(np.float64) / temperature, axis=1).mean(0)
    return mean


def describe(weights: SourceWeights) -> str:
    """Say in a sentence which classes weigh most, and as how many equally weighted ones all of them count."""
    heaviest = ", ".join(f"{weights.classes[number]} {weights.p_target[number]:.2f}" for number in weights.heaviest(3))
    return (
        f"Of {errors.counted(len(weights.classes), 'class')} of the source, these images look most like {heaviest} "
        f"(mean probabilities); weighted so (pipeline.weigh), they count as {weights.effective_classes:.1f} alike."
    )


def write(path: Path, weights: SourceWeights) -> None:
    """Write a line per class, the heaviest first."""
    counts = [""] * len(weights.classes) if weights.counts is None else weights.counts.tolist()
    columns = (weights.classes, counts, weights.p_source.tolist(), weights.p_target.tolist(), weights.values.tolist())
    rows = list(zip(*columns, strict=True))
    files.write_csv(path, HEADER, [rows[number] for number in weights.heaviest(len(rows))])


def read_for(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Return the (k,) weights that a CSV file with the columns class and weight gives the classes of a dataset.

    Raises PipelineError for a file without these columns, without a class of the dataset or with two lines of one, and
    for weights that are negative, infinite or all zero.
    """
    if not path.is_file():
        raise errors.PipelineError(
            f"There is no file {path} of class weights. Write one with python -m pipeline.weigh."
        )
    found: dict[str, float] = {}
    for number, row in enumerate(files.read_csv(path), start=2):
        if not {"class", "weight"} <= row.keys():
            raise errors.PipelineError(
                f"{path} needs the columns class and weight, as python -m pipeline.weigh writes."
            )
        name = row["class"]
        if name in found:
            raise errors.PipelineError(f"{path}, line {number}: {name!r} has a weight already. Leave one line of it.")
        found[name] = _parse_weight(row["weight"], f"{path}, line {number}")
    if missing := [name for name in classes if name not in found]:
        raise errors.PipelineError(
            f"{path} has no weight for {errors.counted(len(missing), 'class')} of the dataset, the first is "
            f"{missing[0]!r}. Take weights of this dataset's classes."
        )
    weights = np.array([found[name] for name in classes])
    if not weights.any():
        raise errors.PipelineError(f"{path} gives all classes of the dataset the weight 0. Give one of them more.")
    return weights


def _parse_weight(text: str, where: str) -> float:
    value = files.number_of(text)
    if not 0 <= value < math.inf:
        raise errors.PipelineError(f"{where}: {text!r} is no weight. Write a number of 0 or more.")
    return value
