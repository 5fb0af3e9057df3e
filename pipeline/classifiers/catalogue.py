"""The classifiers of CNN codes and the normalisations before them: scikit-learn estimators by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import ParameterGrid
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.validation import has_fit_parameter

from pipeline import errors
from pipeline.classifiers import solvers
from pipeline.classifiers.nearest_mean import NearestClassMean
from pipeline.classifiers.preprocessing import Centred, SignedRoot
from pipeline.classifiers.source_map import OneHot, Probabilities, SourceMap

PATH_MODELS = {"svm": 2_000, "softmax": 2_000}
"""The models for which all values of C are solved together, and the iterations allowed for each."""

SOURCE_MAP = "source-map"

CLASSIFIERS: dict[str, Callable[..., BaseEstimator]] = {
    "svm": partial(solvers.LinearSVM, max_iter=PATH_MODELS["svm"]),
    "softmax": partial(solvers.Softmax, max_iter=PATH_MODELS["softmax"]),
    "knn": partial(KNeighborsClassifier, metric="cosine"),
    "ridge": RidgeClassifier,
    "ncm": NearestClassMean,
    SOURCE_MAP: SourceMap,
}
"""The classifiers by name; params.yaml has the grids of their hyper-parameters under the same names."""

NORMALISATIONS: dict[str, Callable[[], BaseEstimator]] = {
    "l2": Normalizer,
    "standard": StandardScaler,
    "sqrt": SignedRoot,
    "centred": Centred,
    "probabilities": Probabilities,
    "one-hot": OneHot,
}
"""What is done to the codes first: each row is scaled to length 1 (Razavian et al., "CNN features off-the-shelf",
2014), each column to mean 0 and variance 1, or the signed square root of each number, or the subtraction of the mean
row, precedes the scaling of rows. The last two are for the scores of a network's own classes alone."""

OF_SOURCES = ("probabilities", "one-hot")
"""What is done to the scores of a network's own classes, and to nothing else."""


def takes_weights(model: str) -> bool:
    """Whether the rows that a model learns from can have weights."""
    return has_fit_parameter(CLASSIFIERS[model](), "sample_weight")


def validate_grid(model: str, grid: object) -> None:
    """Refuse a model that is unknown, or a grid that is not {normalisation: {parameter: values that it takes}}."""
    if model not in CLASSIFIERS:
        raise errors.unknown("model", model, CLASSIFIERS)
    if not isinstance(grid, Mapping) or not grid:
        raise errors.PipelineError(
            "The grid must read {normalisation: {parameter: [values]}}, like {l2: {C: [0.1, 1, 10]}}."
        )
    for name, values in grid.items():
        if name not in NORMALISATIONS:
            raise errors.unknown("normalisation", str(name), NORMALISATIONS)
        _validate_normalisation(model, name)
        if not isinstance(values, Mapping) or not all(isinstance(v, list) and v for v in values.values()):
            raise errors.PipelineError(
                f"The grid of {name} must read {{parameter: [values]}}, like {{C: [0.1, 1, 10]}}."
            )
        _validate_values(model, values)


def _validate_values(model: str, values: Mapping[str, Sequence[Any]]) -> None:
    """Refuse parameters that the model does not have, and values that it does not take."""
    parameters = CLASSIFIERS[model]().get_params()
    for name in values:
        if name not in parameters:
            raise errors.unknown("parameter", str(name), parameters, where=model)
    for point in ParameterGrid(values):
        try:
            CLASSIFIERS[model](**point).fit([[0.0], [1.0]], [0, 1])  # scikit-learn checks values when it fits
        except ValueError as error:
            setting = ", ".join(f"{name}={value}" for name, value in point.items())
            raise errors.PipelineError(f"{model} does not take {setting} ({error}). Change the grid.") from error


def _validate_normalisation(model: str, name: str) -> None:
    """Refuse a normalisation that a model does not take."""
    choices = OF_SOURCES if model == SOURCE_MAP else ("l2", "standard", "sqrt")
    others = model != SOURCE_MAP and model not in PATH_MODELS and name not in OF_SOURCES
    if name not in choices and not others:
        raise errors.PipelineError(f"{model} does not take the normalisation {name}. Take {' or '.join(choices[:2])}.")
