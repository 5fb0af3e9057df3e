"""One torch module from images to a classifier's margins and probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline import errors
from pipeline.classifiers.persistence import SavedClassifier
from pipeline.classifiers.preprocessing import Centred, SignedRoot
from pipeline.classifiers.source_map import OneHot, Probabilities
from pipeline.networks.frozen import FrozenNetwork
from pipeline.paths import LAYER_SEPARATOR

Transformation = Callable[[torch.Tensor], torch.Tensor]


def end_to_end(classifier: SavedClassifier, network: FrozenNetwork) -> torch.nn.Module:
    """Return one module from uint8 images, as the network takes them, to (n, classes) margins and probabilities.

    The classes, their order and the values are those of `persistence.margins` and `persistence.probabilities`; where
    the classifier has no probabilities, there are margins alone.
    """
    normalise, weights, bias = normalisation(classifier), *map(torch.from_numpy, linear(classifier))
    layers, n_views = classifier.spec.layer.split(LAYER_SEPARATOR), classifier.spec.n_views
    inverse_temperature = softmax_factor(classifier)

    class EndToEnd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            codes = self.network(images)
            parts = [codes[layer].float().unflatten(1, (n_views, -1)) for layer in layers]
            joined = parts[0] if len(parts) == 1 else torch.cat([to_length_one(part) for part in parts], -1)
            outputs = [torch.nn.functional.linear(normalise(joined), weights, bias)]
            if inverse_temperature is not None:
                outputs.append(torch.softmax(inverse_temperature * outputs[0], -1))
            return tuple(output.mean(1) for output in outputs)

    return EndToEnd().eval()


def softmax_factor(classifier: SavedClassifier) -> float | None:
    """Return the factor of the margins whose softmax the probabilities are, None if the classifier has none."""
    if not hasattr(classifier.pipeline, "predict_proba"):
        return None
    temperature = getattr(classifier.pipeline[-1], "temperature_", 1.0)  # of a calibrated SVM
    two_classes = len(classifier.pipeline.classes_) == 2  # their margins are w·x + b and its negative
    return (0.5 if two_classes else 1.0) / temperature


def normalisation(classifier: SavedClassifier) -> Transformation:
    """Return the classifier's normalisation of the codes in operations of torch."""
    if len(classifier.pipeline) == 1:  # the head of a fine-tuned network may have none
        return lambda codes: codes
    kind = type(classifier.pipeline[0])
    if kind not in NORMALISATIONS:
        raise errors.unknown("normalisation", kind.__name__, (choice.__name__ for choice in NORMALISATIONS))
    return NORMALISATIONS[kind](classifier.pipeline[0])


def to_length_one(codes: torch.Tensor) -> torch.Tensor:
    """Return codes (…, d) scaled to length 1; those of length 0 stay 0."""
    lengths = codes.norm(dim=-1, keepdim=True)
    return codes / lengths.where(lengths > 0, 1)


def standardise(scaler: StandardScaler) -> Transformation:
    """Return a fitted scaler in operations of torch."""
    mean, scale = (torch.from_numpy(values.astype(np.float32)) for values in (scaler.mean_, scaler.scale_))
    return lambda codes: (codes - mean) / scale


def centre(scaler: Centred) -> Transformation:
    """Return a fitted centring in operations of torch."""
    mean = torch.from_numpy(scaler.mean_.astype(np.float32))
    return lambda codes: to_length_one(codes - mean)


def highest(scores: torch.Tensor) -> torch.Tensor:
    """Return scores (…, d) as 1 for the highest and 0 for the others."""
    return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


NORMALISATIONS: dict[type[BaseEstimator], Callable[[Any], Transformation]] = {
    Normalizer: lambda scaler: to_length_one,
    SignedRoot: lambda scaler: lambda codes: to_length_one(codes.sign() * codes.abs().sqrt()),
    StandardScaler: standardise,
    Centred: centre,
    Probabilities: lambda scaler: lambda scores: scores.softmax(-1),
    OneHot: lambda scaler: highest,
}
"""The normalisations in operations of torch, from the fitted estimator."""


def linear(classifier: SavedClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (classes, d) and biases (classes,) float32 that give all margins.

    Two classes share one vector, and a class without training images has weights 0 and a bias of minus infinity.
    """
    model = classifier.pipeline[-1]
    if not hasattr(model, "coef_"):
        raise errors.PipelineError(
            f"{type(model).__name__} is no linear classifier, and cannot be exported. Train svm, softmax, ridge, ncm "
            "or source-map."
        )
    coefficients = np.atleast_2d(model.coef_)  # that of ridge is a vector for two classes
    intercepts = np.ravel(model.intercept_)
    if len(coefficients) == 1:
        coefficients, intercepts = (np.concatenate([-values, values]) for values in (coefficients, intercepts))
    weights = np.zeros((len(classifier.classes), coefficients.shape[1]), np.float32)
    biases = np.full(len(classifier.classes), -np.inf, np.float32)
    weights[model.classes_], biases[model.classes_] = coefficients, intercepts
    return weights, biases
