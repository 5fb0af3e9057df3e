"""The head of a network: a linear classifier of codes as a torch module, from scikit-learn's and back."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import nn

from pipeline import errors
from pipeline.classifiers import persistence, solvers


class Head(nn.Module):
    """Scores of the classes from codes: scaled to length 1 or not, then linear.

    A column-wise scaling is folded into the linear layer; length 1 is no linear map, and stays a step of its own.
    """

    def __init__(self, width: int, classes: int, unit: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.unit = unit
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    @classmethod
    def random(cls, width: int, classes: int, dropout: float, seed: int) -> Self:
        """Return a head with torch's usual weights for a new linear layer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(width, classes, dropout=dropout)

    @classmethod
    def of(cls, classifier: persistence.SavedClassifier, dropout: float) -> Self:
        """Return a head that gives the margins of a trained linear classifier of codes."""
        weight, bias = _linear(classifier)
        scaler = classifier.pipeline[0]
        if type(scaler) not in (Normalizer, StandardScaler):
            raise errors.PipelineError(
                f"Codes normalised by {type(scaler).__name__} have no head to go with. Take l2 or standard in the grid."
            )
        if isinstance(scaler, StandardScaler):
            weight = weight / scaler.scale_
            bias = bias - weight @ scaler.mean_
        head = cls(weight.shape[1], len(weight), isinstance(scaler, Normalizer), dropout)
        with torch.no_grad():
            head.linear.weight.copy_(torch.from_numpy(weight))
            head.linear.bias.copy_(torch.from_numpy(bias))
        return head

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return (n, classes) scores of (n, width) codes."""
        return self.linear(self.dropout(nn.functional.normalize(codes) if self.unit else codes))

    def classifier(self) -> Pipeline:
        """Return the head as a fitted scikit-learn pipeline of softmax, which gives the same probabilities."""
        weight, bias = (value.detach().cpu().numpy().copy() for value in (self.linear.weight, self.linear.bias))
        softmax = solvers.Softmax()
        softmax.classes_, softmax.n_features_in_ = np.arange(len(bias)), weight.shape[1]
        softmax.n_iter_ = np.zeros(1, np.int64)
        if len(bias) == 2:  # two classes share one row
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        softmax.coef_, softmax.intercept_ = weight, bias
        steps = [("normalise", Normalizer())] if self.unit else []
        return Pipeline([*steps, ("classify", softmax)])


def _linear(classifier: persistence.SavedClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Return the (classes, d) coefficients and (classes,) intercepts of a linear classifier, in float64."""
    model, classes = classifier.pipeline[-1], classifier.classes
    if not hasattr(model, "coef_"):
        raise errors.PipelineError(
            f"A {type(model).__name__} is not linear, and cannot become the head of a network. "
            "Take --model svm, softmax or ridge, or --head random."
        )
    if len(model.classes_) < len(classes):
        missing = next(name for number, name in enumerate(classes) if number not in model.classes_)
        raise errors.PipelineError(f"The classifier was trained without images of {missing!r}. Take --head random.")
    weight, bias = np.atleast_2d(np.asarray(model.coef_, float)), np.atleast_1d(np.asarray(model.intercept_, float))
    if len(weight) == 1:  # a margin of f for the second class is one of -f for the first; together they differ by f
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
