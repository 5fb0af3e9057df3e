"""The head gives the margins of the classifier it was made from, and turns back into one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_spec
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline.classifiers import persistence, solvers
from pipeline.finetuning.head import Head


@pytest.mark.parametrize("scaler", [Normalizer(), StandardScaler()])
@pytest.mark.parametrize("model", [solvers.LinearSVM(C=1), solvers.Softmax(C=10), RidgeClassifier()])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_head_gives_the_margins_of_the_classifier(scaler: object, model: object, classes: int) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % classes
    X = np.maximum(rng.normal(size=(60, 40)) + 0.3 * rng.normal(size=(classes, 40))[y], 0).astype(np.float32)
    pipeline = Pipeline([("normalise", scaler), ("classify", model)]).fit(X, y)
    classifier = persistence.SavedClassifier(pipeline, make_spec(), tuple("abcde"[:classes]))
    head = Head.from_classifier(classifier, dropout=0.0)
    logits = head(torch.from_numpy(X)).detach().numpy()
    expected = pipeline.decision_function(X)
    margins = logits if classes > 2 else logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(margins, expected, rtol=1e-3, atol=1e-4)
    back = head.to_classifier()
    np.testing.assert_array_equal(back.predict(X), pipeline.predict(X))
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    np.testing.assert_allclose(back.predict_proba(X), probabilities, rtol=1e-3, atol=1e-5)
