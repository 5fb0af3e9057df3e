"""The nearest class mean is that of distances, from one image per class on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.preprocessing import normalize

from pipeline.classifiers import scoring, search
from pipeline.classifiers.training_data import TrainingData


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("per_class", [1, 3])
def test_the_class_of_the_nearest_mean_of_centred_codes_is_predicted(n_classes: int, per_class: int) -> None:
    rng, y = np.random.default_rng(0), np.tile(np.arange(n_classes), per_class) * 10
    X, new = (rng.random((rows, 8), np.float32) + 3 for rows in (len(y), 40))
    pipeline, converged = search.refit(TrainingData.of_independent(X, y), "ncm", "centred", {})
    codes, new_codes = (normalize(rows - X.mean(0)) for rows in (X, new))
    means = np.stack([codes[y == label].mean(0) for label in np.unique(y)])
    distances = cdist(new_codes, means, "sqeuclidean")
    assert converged and pipeline.predict(new).tolist() == (10 * distances.argmin(1)).tolist()
    margins = scoring.margins_of(pipeline, new, len(new))
    np.testing.assert_allclose(margins - margins[:, :1], (distances[:, :1] - distances) / 2, atol=1e-5)
