"""Which layer to take, and whether to fine-tune: the measures of a dataset become a recommendation in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax
from scipy.stats import entropy

from pipeline.analysis import transferability
from pipeline.analysis.gain import Gain
from pipeline.analysis.layer_measures import LayerMeasures
from pipeline.analysis.source_distance import FAR_FROM_SOURCE
from pipeline.classifiers import scoring
from pipeline.data.manifest import Manifest
from pipeline.data.splits import find_units
from pipeline.errors import counted

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
class TrainingImages:
    """All training images with a label that a dataset has.

    n_images: their number; n_classes: number of their classes; smallest_class: number of images in the smallest of
    these, where copies count once.
    """

    n_images: int
    n_classes: int
    smallest_class: int


def count_training_images(manifest: Manifest) -> TrainingImages:
    """Return how many training images a single-label dataset has, of which some may be measured on."""
    rows = np.flatnonzero(manifest.splits.isin(["train"]))
    contents = manifest.contents.take(rows)
    pairs = np.unique(np.stack([manifest.labels[rows], find_units(contents)], 1), axis=0)
    sizes = np.unique(pairs[:, 0], return_counts=True)[1]
    return TrainingImages(len(rows), len(sizes), int(sizes.min(initial=len(rows))))


@dataclass(frozen=True)
class DatasetFacts:
    """Measures of a dataset, and of the network on it.

    n_images: number of training images that were measured on; n_units: number of independent units among these, as in
    `scoring.Interval`; training: all training images of the dataset.

    leep, nce: as in `transferability`; prediction_entropy: mean entropy of the network's predictions of its own
    classes; mean_prediction_entropy: entropy of their mean; both are shares of the highest possible entropy, in [0, 1].
    All four are None where the network predicts no classes.

    source_distance: as in `distance_to_source`, None where the source's codes are not known.
    """

    n_images: int
    n_units: int
    training: TrainingImages
    leep: float | None = None
    nce: float | None = None
    prediction_entropy: float | None = None
    mean_prediction_entropy: float | None = None
    source_distance: float | None = None

    @classmethod
    def of(cls, units: np.ndarray, training: TrainingImages, source_distance: float | None) -> DatasetFacts:
        """Return the facts of a dataset of which images were measured on; units: (n,) of `find_units`."""
        return cls(len(units), len(np.unique(units)), training, source_distance=source_distance)

    def with_predictions(self, logits: np.ndarray, y: np.ndarray) -> DatasetFacts:
        """Return the facts with measures of the network's predictions.

        logits: (n, n_source_classes) of its own head; y: (n,) labels.
        """
        probabilities = softmax(logits.astype(np.float64), axis=1)
        highest = np.log(probabilities.shape[1])
        return replace(
            self,
            leep=transferability.leep(probabilities, y),
            nce=transferability.nce(probabilities, y),
            prediction_entropy=float(entropy(probabilities, axis=1).mean() / highest),
            mean_prediction_entropy=float(entropy(probabilities.mean(0)) / highest),
        )


@dataclass(frozen=True)
class Tried:
    """A short run of fine-tuning that started from the frozen layer, on the same held-out images.

    n_train: number of images that both learned from; epochs: of the run, whose time was limited.
    """

    gain: Gain
    n_train: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Advice:
    """What to do: layer, model, whether to fine-tune; the case, one of `RULES`; and whether the data suffice.

    fine_tune: as was measured, where it was tried, or else by the rule of thumb for the case.

    sentences: the advice in plain words; measures: sentences about the measures behind it.
    """

    layer: str
    model: str
    fine_tune: bool
    case: str
    sufficient: bool
    sentences: tuple[str, ...]
    measures: tuple[str, ...]


def recommend(
    layers: Sequence[LayerMeasures],
    facts: DatasetFacts,
    models: Mapping[str, float],
    large: int,
    tried: Tried | str | None = None,
) -> Advice:
    """Choose a layer and a model, say whether to fine-tune, and why.

    layers: from the network's input to its output; models: {name: cross-validated accuracy} on the best layer; large:
    number of images in the smallest class from which a dataset counts as large; tried: what a short run of fine-tuning
    gave, or why it could not be tried.
    """
    best = max(layers, key=lambda layer: layer.accuracy)
    model = max(models, key=lambda name: models[name])
    near = facts.source_distance < FAR_FROM_SOURCE if facts.source_distance is not None else _is_late(layers, best)
    case, rule = RULES[facts.training.smallest_class >= large, near]
    close = [layer.layer for layer in layers if layer.accuracy >= best.low and layer is not best]
    sufficient = best.high - best.low <= 2 * WIDE_INTERVAL and len(close) < max(len(layers) - 1, 1)
    sentences = (
        _choice(best, model, models, facts),
        _close(best, close),
        *([] if sufficient else [_insufficient(best, layers, close, facts)]),
        *([_measured_action(tried, best.layer)] if isinstance(tried, Tried) else [_rule(facts, case, rule, large)]),
        *([f"Fine-tuning was not tried: {tried}."] if isinstance(tried, str) else []),
    )
    measures = (
        _source_distance(facts, near),
        _agreement(layers, best, near),
        *_disagreements(layers, best, close),
        *_predictions(facts),
    )
    fine_tune = tried.gain.sign == "higher" if isinstance(tried, Tried) else facts.training.smallest_class >= large
    return Advice(best.layer, model, fine_tune, case, sufficient, sentences, measures)


def _is_late(layers: Sequence[LayerMeasures], layer: LayerMeasures) -> bool:
    """Return whether the accuracy of the last layer is within the interval of this one, or above it."""
    return layers[-1].accuracy >= layer.low


def _choice(best: LayerMeasures, model: str, models: Mapping[str, float], facts: DatasetFacts) -> str:
    others = [f"{name} {accuracy:.4f}" for name, accuracy in models.items() if name != model]
    against = f"; {', '.join(others)}" if others else ""
    return (
        f"Take {best.layer} with {model}: cross-validated accuracy {models[model]:.4f} (95% interval of the layer "
        f"{best.low:.4f}–{best.high:.4f}, measured on {_images(facts)}{against})."
    )


def _images(facts: DatasetFacts) -> str:
    """Say on how many of the dataset's training images, and on how many independent ones, figures were measured."""
    measured = counted(facts.training.n_images, "training image")
    if facts.n_images < facts.training.n_images:
        measured = f"{facts.n_images:,} of {measured}"
    return measured if facts.n_units == facts.n_images else f"{measured} (n = {facts.n_units}; {scoring.ONCE})"


def _close(best: LayerMeasures, close: Sequence[str]) -> str:
    if not close:
        return f"No other layer is within the interval of {best.layer}."
    return f"Other layers within its interval: {', '.join(close)}."


def _measured_action(tried: Tried, layer: str) -> str:
    what = {
        "higher": "Fine-tune the network, as was measured",
        "lower": "Freeze the network, as was measured: fine-tuning it did worse",
        "not told apart": "Freeze the network: fine-tuning was tried, and no difference from chance was found",
    }
    return (
        f"{what[tried.gain.sign]}. With {counted(tried.epochs, 'epoch')} on "
        f"{counted(tried.n_train, 'training image')} ({tried.seconds:.0f} s), from the frozen codes of {layer}, the "
        f"accuracy on held-out images was {tried.gain}. More images and epochs would favour fine-tuning; the layer was "
        "chosen with these images among others, which favours the frozen codes."
    )


def _rule(facts: DatasetFacts, case: str, rule: str, large: int) -> str:
    classes, size = counted(facts.training.n_classes, "class"), facts.training.smallest_class
    verb = "Fine-tune the network" if size >= large else "Freeze the network"
    return (
        f"{verb}, by the rule of thumb, which was not measured here: the dataset is {case}, for which the rule is "
        f"{rule}. The smallest of its {classes} has {counted(size, 'training image')}; from {large:,} on it is large."
    )


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
