"""The head of a network: a linear classifier of codes as a torch module, made from scikit-learn's and turned back."""

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
    """A linear classifier of codes; `unit` scales the codes to length 1 first.

    Standardisation is folded into the linear layer. Scaling to length 1 is not linear, so it stays a separate step.
    """

    def __init__(self, width: int, classes: int, unit: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.unit = unit
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    @classmethod
    def random(cls, width: int, classes: int, dropout: float, seed: int) -> Self:
        """Return a head with torch's usual random weights of a linear layer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(width, classes, dropout=dropout)

    @classmethod
    def from_classifier(cls, classifier: persistence.SavedClassifier, dropout: float) -> Self:
        """Return a head whose outputs are the margins of a trained linear classifier of codes.

        Raise PipelineError if the classifier is not linear, lacks a class, or normalises codes in another way.
        """
        weight, bias = _linear(classifier)
        scaler = classifier.pipeline[0]
        if type(scaler) not in (Normalizer, StandardScaler):
            raise errors.PipelineError(
                f"A classifier of codes that {type(scaler).__name__} normalises cannot become a head. "
                "Train it with l2 or standard in the grid."
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
        """Return (n, classes) logits of (n, width) codes."""
        return self.linear(self.dropout(nn.functional.normalize(codes) if self.unit else codes))

    def to_classifier(self) -> Pipeline:
        """Return the head as a fitted scikit-learn pipeline with a Softmax, which gives the same probabilities."""
        weight, bias = (value.detach().cpu().numpy().copy() for value in (self.linear.weight, self.linear.bias))
        softmax = solvers.Softmax()
        softmax.classes_, softmax.n_features_in_ = np.arange(len(bias)), weight.shape[1]
        softmax.n_iter_ = np.zeros(1, np.int64)
        if len(bias) == 2:  # scikit-learn keeps one row for two classes
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
    if len(weight) == 1:  # a margin f of the second class becomes logits -f / 2 and f / 2
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
