"""How well the codes of each layer suit a dataset: accuracy in cross-validation, transferability, few-shot curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.analysis import transferability
from pipeline.classifiers import cv_table, few_shot, scoring, search
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes.spec import CodesSpec


@dataclass(frozen=True)
class LayerMeasures:
    """Measures of a layer's codes on the training images.

    width: numbers per code; accuracy, low, high: cross-validated, with its 95% interval, in [0, 1]; log_me, h_score: as
    in `transferability`, the latter shrunk; setting: the normalisation and the parameters that reached the accuracy.
    """

    layer: str
    width: int
    accuracy: float
    low: float
    high: float
    log_me: float
    h_score: float
    setting: cv_table.Setting


@dataclass(frozen=True)
class Method:
    """How layers are measured.

    grids: {model: its grid}; the first model measures every layer, and all models measure the best layer; folds, seed:
    of the cross-validation; large: number of images in the smallest class from which a dataset counts as large.
    """

    grids: Mapping[str, cv_table.Grid]
    folds: int
    seed: int
    large: int

    @property
    def model(self) -> str:
        """The model that measures every layer."""
        return next(iter(self.grids))

    def plan(self, model: str) -> SearchPlan:
        """Return how the setting of a model is chosen."""
        return SearchPlan(model, self.grids[model], self.folds, self.seed)

    def measure(self, layer: str, data: TrainingData) -> LayerMeasures:
        """Measure a layer with the first normalisation of the grid, which is enough to rank layers."""
        normalise, values = next(iter(self.grids[self.model].items()))
        return measure_layer(layer, data, replace(self.plan(self.model), grid={normalise: values}))

    def accuracies(self, data: TrainingData) -> dict[str, float]:
        """Return the cross-validated accuracy of every model on a layer's codes."""
        return {name: cross_validate(data, self.plan(name))[1] for name in self.grids}


def measure_layer(layer: str, data: TrainingData, plan: SearchPlan) -> LayerMeasures:
    """Measure the codes of one layer."""
    X, y = data.X[:], data.y
    setting, accuracy, (low, high, _) = cross_validate(data, plan)
    log_me, h_score = transferability.log_me(X, y), transferability.shrunk_h_score(X, y)
    return LayerMeasures(layer, X.shape[1], accuracy, low, high, log_me, h_score, setting)


def cross_validate(data: TrainingData, plan: SearchPlan) -> tuple[cv_table.Setting, float, scoring.Interval]:
    """Return the best setting of a grid, and its accuracy with the 95% interval over all held-out images."""
    splits = data.folds(plan.folds, plan.seed)
    table = cv_table.tabulate(search.cross_validate(data, plan.model, plan.grid, splits))
    chosen = cv_table.best_row(table)
    held_out = [len(rows) for _, rows in splits]
    accuracy = round(float(np.dot(chosen["folds"], held_out))) / len(data.y)
    return cv_table.setting_of(chosen), accuracy, scoring.interval(accuracy, data.units)


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of a classifier that was trained on a few images per class, on the training images that are left.

    relu: "post" or "pre", whether the codes are from after or before the layer's ReLU; shots: images per class; low,
    high: the 95% interval of the accuracy.
    """

    layer: str
    relu: str
    shots: int
    accuracy: float
    low: float
    high: float


def trace_curve(
    spec: CodesSpec, data: TrainingData, setting: cv_table.Setting, plan: SearchPlan, counts: Sequence[int]
) -> list[CurvePoint]:
    """Return the few-shot curve of a layer with one setting, scored on the training images that no count takes.

    The curves of all layers extend those of "How transferable are features in deep neural networks?" (Yosinski et al.,
    NIPS 2014), which show accuracy by layer, to several numbers of images.
    """
    grid = {setting["normalisation"]: {name: [value] for name, value in setting["parameters"].items()}}
    draws = few_shot.hold_out_rest(data, max(counts), plan.seed)
    return [
        CurvePoint(spec.layer, spec.relu, draw.shots, draw.accuracy, draw.low, draw.high)
        for draw in few_shot.learning_curve(data, replace(plan, grid=grid, folds=1), counts, draws)
    ]
