"""Which layer to take, and whether to fine-tune: the measures of a dataset become a recommendation in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax
from scipy.stats import entropy

from pipeline.analysis import transferability
from pipeline.classifiers import cv_table, few_shot, scoring, search
from pipeline.classifiers.search import SearchPlan, TrainingData
from pipeline.codes.spec import CodesSpec

FAR_FROM_SOURCE = 1.0
"""Distance to the source from which images count as different from it."""

WIDE_INTERVAL = 0.1
"""Half width from which a 95% interval counts as too wide to choose by."""

RULES = {
    (False, True): (
        "small and similar to the source",
        "a linear classifier on the last layers; fine-tuning would overfit",
    ),
    (True, True): ("large and similar to the source", "fine-tuning the whole network, which so many images allow"),
    (False, False): ("small and different from the source", "a linear classifier on earlier layers"),
    (True, False): (
        "large and different from the source",
        "fine-tuning the whole network, or even training it from scratch",
    ),
}
"""{(large, similar): (the case, the rule of thumb for it)}, from the transfer learning notes of Stanford's CS231n."""


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
class DatasetFacts:
    """Measures of a dataset, and of the network on it.

    n_images, n_classes: of the training images; n_units: number of independent units among these, as in
    `scoring.Interval`; smallest_class: number of images in the smallest class.

    leep, nce: as in `transferability`; prediction_entropy: mean entropy of the network's predictions of its own
    classes; mean_prediction_entropy: entropy of their mean; both are shares of the highest possible entropy, in [0, 1].
    All four are None where the network predicts no classes.

    source_distance: as in `distance_to_source`, None where the source's codes are not known.
    """

    n_images: int
    n_units: int
    n_classes: int
    smallest_class: int
    leep: float | None = None
    nce: float | None = None
    prediction_entropy: float | None = None
    mean_prediction_entropy: float | None = None
    source_distance: float | None = None


@dataclass(frozen=True)
class Advice:
    """What to do: layer, model, whether to fine-tune; the case, one of `RULES`; and whether the data suffice.

    sentences: the advice in plain words; measures: sentences about the measures behind it.
    """

    layer: str
    model: str
    fine_tune: bool
    case: str
    sufficient: bool
    sentences: tuple[str, ...]
    measures: tuple[str, ...]


def measure_layer(layer: str, data: TrainingData, plan: SearchPlan) -> LayerMeasures:
    """Measure the codes of one layer."""
    X, y = data.X[:], data.y
    setting, accuracy, (low, high, _) = cross_validate(data, plan)
    log_me, h_score = transferability.log_me(X, y), transferability.shrunk_h_score(X, y)
    return LayerMeasures(layer, X.shape[1], accuracy, low, high, log_me, h_score, setting)


def cross_validate(data: TrainingData, plan: SearchPlan) -> tuple[cv_table.Setting, float, scoring.Interval]:
    """Return the best setting of a grid, and its accuracy with the 95% interval over all held-out images."""
    splits = data.folds(plan.folds, plan.seed)
    table = cv_table.tabulate(search.cross_validate(data.X, data.y, plan.model, plan.grid, splits))
    chosen = cv_table.best_row(table)
    held_out = [len(rows) for _, rows in splits]
    accuracy = round(float(np.dot(chosen["folds"], held_out))) / len(data.y)
    return cv_table.setting_of(chosen), accuracy, scoring.interval(accuracy, data.units)


def describe_dataset(
    y: np.ndarray, units: np.ndarray, logits: np.ndarray | None, source_distance: float | None
) -> DatasetFacts:
    """Return the facts of a dataset.

    y: (n,) labels; units: (n,) of `find_units`; logits: (n, n_source_classes) of the network's own head, if it has one.
    """
    counts = np.bincount(y)[np.unique(y)]
    facts = DatasetFacts(len(y), len(np.unique(units)), len(counts), int(counts.min()), source_distance=source_distance)
    if logits is None:
        return facts
    probabilities = softmax(logits.astype(np.float64), axis=1)
    highest = np.log(probabilities.shape[1])
    return replace(
        facts,
        leep=transferability.leep(probabilities, y),
        nce=transferability.nce(probabilities, y),
        prediction_entropy=float(entropy(probabilities, axis=1).mean() / highest),
        mean_prediction_entropy=float(entropy(probabilities.mean(0)) / highest),
    )


def distance_to_source(values: np.ndarray, mean: np.ndarray, cov: np.ndarray, seed: int = 0) -> float:
    """Return the distance of codes to those of the source: near 0 for source images, about 2 for handwritten digits.

    It is the Fréchet distance, minus that of an equally small sample of the source, in units of the source's variance.

    values: (n, d) codes; mean, cov: (d,), (d, d) of the source's codes.
    """
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    sample = np.random.default_rng(seed).multivariate_normal(mean, cov, len(values), method="eigh")
    of_images, of_sample = (
        transferability.frechet(codes.mean(0), np.cov(codes.T), mean, cov)
        for codes in (values.astype(np.float64), sample)
    )
    return float((of_images - of_sample) / np.trace(cov))


def recommend(layers: Sequence[LayerMeasures], facts: DatasetFacts, models: Mapping[str, float], large: int) -> Advice:
    """Choose a layer and a model, say whether to fine-tune, and why.

    layers: from the network's input to its output; models: {name: cross-validated accuracy} on the best layer; large:
    number of images in the smallest class from which a dataset counts as large.
    """
    best = max(layers, key=lambda layer: layer.accuracy)
    model = max(models, key=lambda name: models[name])
    near = facts.source_distance < FAR_FROM_SOURCE if facts.source_distance is not None else _is_late(layers, best)
    case, rule = RULES[facts.smallest_class >= large, near]
    close = [layer.layer for layer in layers if layer.accuracy >= best.low and layer is not best]
    sufficient = best.high - best.low <= 2 * WIDE_INTERVAL and len(close) < max(len(layers) - 1, 1)
    sentences = (
        _choice(best, model, models, facts),
        _close(best, close),
        *([] if sufficient else [_insufficient(best, layers, close, facts)]),
        _action(facts, case, rule, large),
    )
    measures = (
        _source_distance(facts, near),
        _agreement(layers, best, near),
        *_disagreements(layers, best, close),
        *_predictions(facts),
    )
    return Advice(best.layer, model, facts.smallest_class >= large, case, sufficient, sentences, measures)


def _is_late(layers: Sequence[LayerMeasures], layer: LayerMeasures) -> bool:
    """Return whether the accuracy of the last layer is within the interval of this one, or above it."""
    return layers[-1].accuracy >= layer.low


def _choice(best: LayerMeasures, model: str, models: Mapping[str, float], facts: DatasetFacts) -> str:
    others = [f"{name} {accuracy:.4f}" for name, accuracy in models.items() if name != model]
    against = f"; {', '.join(others)}" if others else ""
    return (
        f"Take {best.layer} with {model}: cross-validated accuracy {models[model]:.4f} (95% interval of the layer "
        f"{best.low:.4f}–{best.high:.4f}, {_images(facts)}{against})."
    )


def _images(facts: DatasetFacts) -> str:
    return scoring.images_text(facts.n_units, facts.n_images, "training image")


def _close(best: LayerMeasures, close: Sequence[str]) -> str:
    if not close:
        return f"No other layer is within the interval of {best.layer}."
    return f"Other layers within its interval: {', '.join(close)}."


def _action(facts: DatasetFacts, case: str, rule: str, large: int) -> str:
    size = f"the smallest of the {facts.n_classes} classes has {facts.smallest_class} images, large means {large}"
    verb = "Fine-tune the network from" if facts.smallest_class >= large else "Freeze the network and train on"
    return f"{verb} these codes: {size}. The dataset is {case}; the rule of thumb is {rule}."


def _source_distance(facts: DatasetFacts, similar: bool) -> str:
    if facts.source_distance is None:
        relation = "similar to" if similar else "different from"
        return (
            f"The distance to the source is not known for these codes: the images count as {relation} it, because the "
            f"last layer is {'' if similar else 'not '}as accurate as the best."
        )
    return (
        f"Distance to the source: {facts.source_distance:.2f} (0 for its own images, {FAR_FROM_SOURCE:g} or more is "
        "far), by the Fréchet distance of the codes."
    )


def _predictions(facts: DatasetFacts) -> list[str]:
    if facts.leep is None or facts.nce is None:
        return []
    return [
        f"The network's predictions have LEEP {facts.leep:.3f} and NCE {facts.nce:.3f} on these classes (0 is best, "
        f"to compare networks). The entropy of a prediction is {facts.prediction_entropy:.2f}, that of the "
        f"mean prediction is {facts.mean_prediction_entropy:.2f}, as shares of the highest possible."
    ]


def _agreement(layers: Sequence[LayerMeasures], best: LayerMeasures, similar: bool) -> str:
    late = _is_late(layers, best)
    which = "the last layer is as accurate as the best" if late else "earlier layers are more accurate than the last"
    relation = "as the rule says" if late == similar else "against the rule; the measurement counts"
    return f"By cross-validation {which}, {relation}."


def _disagreements(layers: Sequence[LayerMeasures], best: LayerMeasures, close: Sequence[str]) -> list[str]:
    sentences = []
    for name, value in (("LogME", lambda layer: layer.log_me), ("H-score", lambda layer: layer.h_score)):
        favourite = max(layers, key=value)
        if favourite is not best:
            where = "within the interval" if favourite.layer in close else f"at {favourite.accuracy:.4f} below it"
            sentences.append(f"{name} disagrees: it would take {favourite.layer}, {where}.")
    return sentences


def _insufficient(
    best: LayerMeasures, layers: Sequence[LayerMeasures], close: Sequence[str], facts: DatasetFacts
) -> str:
    return (
        f"The data do not suffice to choose a layer: {len(close) + 1} of {len(layers)} layers are within the interval "
        f"{best.low:.3f}–{best.high:.3f} of {_images(facts)}. Use more (--images), or take the cheapest layer."
    )


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
