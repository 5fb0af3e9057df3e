"""Learn from another dataset of the same classes as well: rows weighted by a density ratio, or features per domain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits

from pipeline import errors
from pipeline.classifiers import search
from pipeline.classifiers.catalogue import takes_weights
from pipeline.classifiers.cv_table import Grid, Setting
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData

WIDTH = 50
"""Width to which PCA reduces codes of length 1, in which source and target are told apart."""

FOLDS = 5
"""Folds that tell source from target: no row's ratio is by a classifier that saw it."""

POWER = 0.5
"""Power of the density ratio: 0 is no weighting, and 1 the whole ratio, whose variance is high (Shimodaira, 2000)."""

CLIP = 10.0
"""The largest weight of a row, as a multiple of the mean weight."""

APART = 0.99
"""Area under the ROC curve from which on source and target have nothing in common, so that no ratio is known."""

DOMAIN_ROWS = ("l2", "sqrt")
"""The normalisations that scale rows of `augment` alike in both domains."""


class Weighing(NamedTuple):
    """Weights (n,) of source rows, of mean 1, and how well held-out rows are told from the target's, as an AUC."""

    weights: np.ndarray
    separation: float

    @property
    def effective(self) -> float:
        """The number of equally weighted rows that would be as many as these, (Σw)² / Σw², in [1, n]."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())


@dataclass(frozen=True)
class Adapted:
    """A target's rows and then a source's, which every fit sees; weighing: of the source's rows, where they have one.

    finish: turns a fitted pipeline into one for codes of the target.
    """

    data: TrainingData
    weighing: Weighing | None
    finish: Callable[[Pipeline], Pipeline]


def density_ratio(source: np.ndarray, target: np.ndarray, images: np.ndarray | None = None) -> Weighing:
    """Weigh source codes (n, d) by p_target / p_source, as a logistic regression estimates it; target: (m, d).

    images: (n + m,) int64, the image of each row, where images have several views, which stay in one fold. Labels play
    no part. "Improving predictive inference under covariate shift" (Shimodaira, 2000); "Covariate shift
    adaptation by importance weighted cross validation" (Sugiyama et al., 2007).
    """
    rows = Normalizer().transform(np.concatenate([source, target]))
    of_target = np.arange(len(rows)) >= len(source)
    folds_of = StratifiedKFold if images is None else StratifiedGroupKFold
    folds = folds_of(min(FOLDS, len(source), len(target)), shuffle=True, random_state=0)
    with threadpool_limits(1):  # for the same sums, and so the same weights, on any machine
        vectors = PCA(min(WIDTH, *rows.shape), random_state=0).fit_transform(rows)
        judge = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        scores = cross_val_predict(judge, vectors, of_target, groups=images, cv=folds, method="decision_function")
    weights = np.exp(POWER * (scores[~of_target] - scores[~of_target].max()))
    weights = np.minimum(weights / weights.mean(), CLIP)
    return Weighing(weights / weights.mean(), float(roc_auc_score(of_target, scores)))


def weigh_source(target: TrainingData, source: TrainingData) -> Adapted:
    """Return both domains' rows, the source's weighted by their density ratio."""
    images = None
    if source.images is not None and target.images is not None:
        images = np.concatenate([source.images, target.images + source.images.max() + 1])
    weighing = density_ratio(source.X[:], target.X[:], images)
    if weighing.separation >= APART:
        raise errors.PipelineError(
            f"The source's codes and the target's have nothing in common (AUC {weighing.separation:.4f}), so no "
            "density ratio is known. Take --adapt easyadapt, or a source that is more like the target."
        )
    return Adapted(_beside(target, replace(source, weights=weighing.weights)), weighing, lambda pipeline: pipeline)


def augment_features(target: TrainingData, source: TrainingData) -> Adapted:
    """Return both domains' rows with features that they share, and features of each domain alone.

    "Frustratingly easy domain adaptation" (Daumé, ACL 2007).
    """
    target, source = replace(target, X=augment(target.X[:], 2)), replace(source, X=augment(source.X[:], 1))
    return Adapted(_beside(target, source), None, fold_features)


def augment(X: np.ndarray, place: int) -> np.ndarray:
    """Return (n, 3 d) of codes (n, d): the codes, and the codes again at one of two places, zeros at the other."""
    parts = [X, np.zeros_like(X), np.zeros_like(X)]
    parts[place] = X
    return np.concatenate(parts, 1)


def fold_features(pipeline: Pipeline) -> Pipeline:
    """Return a classifier of codes (n, d) that predicts of the target what one of augmented codes predicts of them.

    A row with its copy is √2 times as long as the row alone.
    """
    normalise, classifier = copy.deepcopy(pipeline[0]), copy.deepcopy(pipeline[-1])
    shared, _, own = np.split(classifier.coef_, 3, axis=1)
    classifier.coef_ = np.ascontiguousarray((shared + own) / np.sqrt(2).astype(shared.dtype))
    normalise.n_features_in_ = classifier.n_features_in_ = classifier.coef_.shape[1]
    return Pipeline([("normalise", normalise), ("classify", classifier)])


def _beside(target: TrainingData, source: TrainingData) -> TrainingData:
    """Return the target's rows and then the source's, which are never held out, with units of their own."""
    apart = replace(source, units=source.units + target.units.max() + 1)
    auxiliary = np.arange(len(target.y) + len(source.y)) >= len(target.y)
    return replace(target.joined(apart), auxiliary=auxiliary)


METHODS: dict[str, Callable[[TrainingData, TrainingData], Adapted]] = {
    "density-ratio": weigh_source,
    "easyadapt": augment_features,
}
"""The ways to learn from a source as well, by name."""


def grid_for(method: str, model: str, grid: Grid) -> Grid:
    """Return the part of a grid that a method takes; refuse a model that it cannot adapt."""
    if method != "easyadapt":
        if not takes_weights(model):
            raise errors.PipelineError(f"--adapt {method} weighs rows, and {model} knows no weights. Take --model svm.")
        return grid
    if model not in ("svm", "softmax", "ridge"):
        raise errors.PipelineError(f"--adapt easyadapt is for linear models, not {model}. Take --model svm.")
    rows = {name: values for name, values in grid.items() if name in DOMAIN_ROWS}
    if not rows:
        raise errors.PipelineError(
            f"--adapt easyadapt takes rows of one length: add {' or '.join(DOMAIN_ROWS)} to the grid of {model}."
        )
    return rows


def correct_of_folds(data: TrainingData, plan: SearchPlan, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Return which held-out images a setting predicts correctly, (n,) bool over all folds, and their units."""
    correct, units = [], []
    for fitted, held in data.folds(plan.folds, plan.seed):
        pipeline, _ = search.refit(data.subset(fitted), plan.model, **setting)
        predicted, labels, of_images = data.subset(held).predict_images(pipeline)
        correct.append(predicted == labels)
        units.append(of_images)
    return np.concatenate(correct), np.concatenate(units)
