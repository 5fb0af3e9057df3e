"""Which layer to take, and whether to fine-tune: the measures of a dataset become a recommendation in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.analysis import transferability
from pipeline.classifiers import scoring, search
from pipeline.codes import reader
from pipeline.data.splits import make_folds

FAR_FROM_SOURCE = 1.0
"""A likeness beyond which images count as different from the source's."""

WIDE_INTERVAL = 0.1
"""Half the width of an interval that tells little."""

RULES = {
    (False, True): ("small and like the source", "a linear classifier on the last layers; fine-tuning would overfit"),
    (True, True): ("large and like the source", "fine-tuning the whole network, which so many images allow"),
    (False, False): ("small and unlike the source", "a linear classifier on layers somewhere earlier"),
    (True, False): ("large and unlike the source", "fine-tuning the whole network, or even training it anew"),
}
"""{(large, similar): (the case, the rule of thumb for it)}, from the transfer learning notes of Stanford's CS231n."""


@dataclass(frozen=True)
class LayerMeasures:
    """What is known of a layer's codes on the training images.

    accuracy: cross-validated, with its 95% interval low…high, over n_images; setting: the normalisation and the
    parameters that reached it; log_me, h_score: as in `transferability`, the latter shrunk.
    """

    layer: str
    width: int
    accuracy: float
    low: float
    high: float
    log_me: float
    h_score: float
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a dataset and of the network as a whole.

    n_images, n_classes, fewest: training images, classes, images of the smallest class; leep, nce: as in
    `transferability`; certainty: mean entropy of the network's predictions, spread: entropy of their mean, both in nats
    and as shares of the highest there can be; likeness: of the codes to the source's, None where that is not known.
    Likeness is the Fréchet distance to the source's codes, less what a source sample as small would have, in units of
    the source's own variance: near 0 for source images, about 2 for handwritten digits.
    """

    n_images: int
    n_classes: int
    fewest: int
    leep: float | None = None
    nce: float | None = None
    certainty: float | None = None
    spread: float | None = None
    likeness: float | None = None


@dataclass(frozen=True)
class Advice:
    """What to do: layer, model, whether to fine-tune; the case as in `RULES`; whether the data suffice; and why."""

    layer: str
    model: str
    fine_tune: bool
    case: str
    sufficient: bool
    sentences: tuple[str, ...]


def measure(found: reader.Codes, model: str, grid: search.Grid, folds: int, seed: int) -> LayerMeasures:
    """Measure the codes of one layer."""
    X, y = found.values, found.labels
    setting, accuracy, low, high = cross_validate(X, y, model, grid, folds, seed)
    log_me, h_score = transferability.log_me(X, y), transferability.shrunk_h_score(X, y)
    return LayerMeasures(found.spec.layer, X.shape[1], accuracy, low, high, log_me, h_score, setting)


def cross_validate(
    X: np.ndarray, y: np.ndarray, model: str, grid: search.Grid, folds: int, seed: int
) -> tuple[dict[str, Any], float, float, float]:
    """Return the best setting of a grid, and its accuracy with the 95% interval over all held-out images."""
    splits = make_folds(y, folds, seed)
    table = search.cv_table(search.cross_validate(X, y, model, grid, splits))
    chosen = max(table, key=lambda row: row["accuracy"])
    held = [len(held) for _, held in splits]
    right = round(float(np.dot(chosen["folds"], held)))
    low, high = scoring.wilson_interval(right, len(y))
    return {name: chosen[name] for name in ("normalise", "parameters")}, right / len(y), low, high


def network_facts(y: np.ndarray, logits: np.ndarray | None, likeness: float | None) -> DatasetFacts:
    """Return the facts of a dataset; logits: (n, n_source_classes) of the network's own head, if it has one."""
    counts = np.bincount(y)[np.unique(y)]
    size = {"n_images": len(y), "n_classes": len(counts), "fewest": int(counts.min())}
    if logits is None:
        return DatasetFacts(**size, likeness=likeness)
    chances = softmax(logits)
    most = np.log(chances.shape[1])
    return DatasetFacts(
        **size,
        leep=transferability.leep(chances, y),
        nce=transferability.nce(chances, y),
        certainty=float(entropy(chances).mean() / most),
        spread=float(entropy(chances.mean(0)) / most),
        likeness=likeness,
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return (n, n_classes) probabilities."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def entropy(chances: np.ndarray) -> np.ndarray:
    """Return the entropy of distributions along the last axis, in nats."""
    return -(chances * np.log(np.maximum(chances, np.finfo(np.float64).tiny))).sum(-1)


def source_distance(values: np.ndarray, mean: np.ndarray, cov: np.ndarray, seed: int = 0) -> float:
    """Return how far codes lie from those of the source, as `Facts` tells.

    values: (n, d) codes; mean, cov: (d,), (d, d) of the source's codes.
    """
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    sample = np.random.default_rng(seed).multivariate_normal(mean, cov, len(values), method="eigh")
    of_images, of_sample = (
        transferability.frechet(some.mean(0), np.cov(some.T), mean, cov) for some in (values.astype(np.float64), sample)
    )
    return float((of_images - of_sample) / np.trace(cov))


def recommend(layers: Sequence[LayerMeasures], facts: DatasetFacts, models: Mapping[str, float], large: int) -> Advice:
    """Weigh the measures.

    layers: from the network's input to its output; models: {name: cross-validated accuracy} on the best layer; large:
    images of the smallest class from which a dataset counts as large.
    """
    best = max(layers, key=lambda layer: layer.accuracy)
    model = max(models, key=lambda name: models[name])
    similar = facts.likeness < FAR_FROM_SOURCE if facts.likeness is not None else _late(layers, best)
    case, rule = RULES[facts.fewest >= large, similar]
    close = [layer.layer for layer in layers if layer.accuracy >= best.low and layer is not best]
    sufficient = best.high - best.low <= 2 * WIDE_INTERVAL and len(close) < max(len(layers) - 1, 1)
    sentences = (
        _choice(best, model, models, facts),
        _close(best, close),
        _action(facts, case, rule, large),
        _source_distance(facts, similar),
        *_predictions(facts),
        _agreement(layers, best, similar),
        *_disagreements(layers, best, close),
        *([] if sufficient else [_insufficient(best, layers, close, facts)]),
    )
    return Advice(best.layer, model, facts.fewest >= large, case, sufficient, sentences)


def _late(layers: Sequence[LayerMeasures], layer: LayerMeasures) -> bool:
    """Say whether the last layer is within the interval of this one."""
    return layers[-1].accuracy >= layer.low


def _choice(best: LayerMeasures, model: str, models: Mapping[str, float], facts: DatasetFacts) -> str:
    others = [f"{name} {accuracy:.4f}" for name, accuracy in models.items() if name != model]
    against = f"; {', '.join(others)}" if others else ""
    return (
        f"Take {best.layer} with {model}: cross-validated accuracy {models[model]:.4f} (95% of the layer "
        f"{best.low:.4f}–{best.high:.4f}, {facts.n_images} training images{against})."
    )


def _close(best: LayerMeasures, close: Sequence[str]) -> str:
    if not close:
        return f"No other layer comes within the interval of {best.layer}."
    return f"Within its interval as well: {', '.join(close)}."


def _action(facts: DatasetFacts, case: str, rule: str, large: int) -> str:
    few = f"the smallest of the {facts.n_classes} classes has {facts.fewest} images, {large} count as many"
    verb = "Fine-tune the network, from" if facts.fewest >= large else "Freeze the network, and train on"
    return f"{verb} these codes: {few}. The dataset is {case}; the rule of thumb is {rule}."


def _source_distance(facts: DatasetFacts, similar: bool) -> str:
    if facts.likeness is None:
        return (
            f"No statistics of the source go with these codes: the images count as {'like' if similar else 'unlike'} "
            f"it because the last layer does {'' if similar else 'not do '}as well as any."
        )
    return (
        f"Distance to the source: {facts.likeness:.2f} (0 for its own images, from {FAR_FROM_SOURCE:g} on it is far), "
        "by the Fréchet distance of the codes."
    )


def _predictions(facts: DatasetFacts) -> list[str]:
    if facts.leep is None or facts.nce is None:
        return []
    return [
        f"The network's own predictions tell the classes with LEEP {facts.leep:.3f} and NCE {facts.nce:.3f}, 0 at "
        f"best, to compare networks; their entropy is {facts.certainty:.2f} an image and {facts.spread:.2f} over all, "
        "as shares of the highest."
    ]


def _agreement(layers: Sequence[LayerMeasures], best: LayerMeasures, similar: bool) -> str:
    agrees = _late(layers, best) == similar
    where = "the last layer does as well as any" if _late(layers, best) else "earlier layers do better than the last"
    verdict = "as the rule says" if agrees else "against the rule, and it is the measurement that counts"
    return f"By cross-validation {where}, {verdict}."


def _disagreements(layers: Sequence[LayerMeasures], best: LayerMeasures, close: Sequence[str]) -> list[str]:
    said = []
    for name, value in (("LogME", lambda layer: layer.log_me), ("H-score", lambda layer: layer.h_score)):
        favourite = max(layers, key=value)
        if favourite is not best:
            inside = "within the interval" if favourite.layer in close else f"at {favourite.accuracy:.4f} below it"
            said.append(f"{name} disagrees: it would take {favourite.layer}, {inside}.")
    return said


def _insufficient(
    best: LayerMeasures, layers: Sequence[LayerMeasures], close: Sequence[str], facts: DatasetFacts
) -> str:
    return (
        f"The data do not suffice to tell: {len(close) + 1} of {len(layers)} layers lie within the interval "
        f"{best.low:.3f}–{best.high:.3f} of {facts.n_images} images. Give more (--images), or take the cheapest."
    )


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of a layer learnt from a few images a class, on the training images left over; relu: post or pre."""

    layer: str
    relu: str
    images: int
    accuracy: float
    low: float
    high: float


def curve(
    found: reader.Codes, setting: Mapping[str, Any], model: str, counts: Sequence[int], seed: int
) -> list[CurvePoint]:
    """Learn from `counts` images a class, and score on the training images that none of the counts takes.

    As in "How transferable are features in deep neural networks?" (Yosinski et al., NIPS 2014), but for frozen layers
    and by the number of images.
    """
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(found.labels == label)) for label in np.unique(found.labels)]
    held = np.concatenate([rows[max(counts) :] for rows in order])
    points = []
    for count in counts:
        rows = np.sort(np.concatenate([some[:count] for some in order]))
        X, y = found.values[rows], found.labels[rows]
        fitted, _ = search.refit(X, y, model, setting["normalise"], setting["parameters"])
        right = int((fitted.predict(found.values[held]) == found.labels[held]).sum())
        low, high = scoring.wilson_interval(right, len(held))
        points.append(CurvePoint(found.spec.layer, found.spec.relu, count, right / len(held), low, high))
    return points
