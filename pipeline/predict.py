"""Predict the classes of new images, by a saved classifier or by the network itself: CSV or JSON lines on stdout.

Example: python -m pipeline.predict --classifier models/digits/tinyvgg/fc7-svm.skops photos --top 3
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("predict")

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from scipy.special import softmax

from pipeline import errors, params
from pipeline.classifiers import persistence
from pipeline.codes.belonging import validate_classes
from pipeline.codes.spec import join_codes
from pipeline.config import Extract, Predict
from pipeline.data.local import NewImage, open_images
from pipeline.extraction import memory
from pipeline.extraction.engine import BatchCodes, Engine
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, depth, parallel
from pipeline.networks import source_classes
from pipeline.networks.frozen import FrozenNetwork, choose_device, rebuild_network
from pipeline.paths import LAYER_SEPARATOR, Experiment
from pipeline.progress import track

OF_SOURCES = depth.Depths(eight_bit=True)
"""The depths of the images that pretrained networks were trained on."""


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with the highest margins, best first, each with its probability or margin."""

    path: str
    classes: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Unread:
    """An image that cannot be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Predictor:
    """A network, and what makes classes of its codes.

    classes: their names, by column of the outputs; kind: what the classes are called in the output; measure:
    "probability" or "margin"; score: turns {layer: (n, width) codes} into (n, n_classes) margins, minus infinity for
    classes that are never predicted, and (n, n_classes) values of that measure; depths: of the images that it was
    trained on, None where nobody knows.
    """

    network: FrozenNetwork
    classes: tuple[str, ...]
    kind: str
    measure: str
    score: Callable[[BatchCodes], tuple[np.ndarray, np.ndarray]]
    depths: depth.Depths | None


def with_classifier(
    classifier: persistence.SavedClassifier, network: FrozenNetwork, depths: depth.Depths | None = None
) -> Predictor:
    """Return what predicts a classifier's classes; depths: as in `Predictor`."""
    spec = classifier.spec

    def score(parts: BatchCodes) -> tuple[np.ndarray, np.ndarray]:
        layers = [parts[layer].astype(np.float32, copy=False) for layer in spec.layer.split(LAYER_SEPARATOR)]
        codes = join_codes(layers, spec)
        margins = persistence.margins(classifier, codes)
        probabilities = persistence.probabilities(classifier, codes)
        return margins, margins if probabilities is None else probabilities

    measure = "probability" if hasattr(classifier.pipeline, "predict_proba") else "margin"
    return Predictor(network, classifier.classes, "class", measure, score, depths)


def with_source_classes(network: FrozenNetwork, names: tuple[str, ...]) -> Predictor:
    """Return what predicts the classes that a network was trained on; its only layer gives their scores."""
    (layer,) = network.nodes

    def score(parts: BatchCodes) -> tuple[np.ndarray, np.ndarray]:
        scores = parts[layer].astype(np.float64)
        return scores, softmax(scores, axis=1)

    return Predictor(network, names, "source_class", "probability", score, OF_SOURCES)


def predict(
    predictor: Predictor, engine: Engine, images: Iterable[NewImage], top: int, threads: int
) -> Iterator[Prediction | Unread]:
    """Yield the prediction of each image, and the bad images ahead of their batch; a few batches are in memory.

    engine: of the predictor's network. The classes are ordered by their margins, as in `evaluate`.
    """
    for result in compute_codes(engine, ((image.name, image.file) for image in images), threads):
        if isinstance(result, CodesBatch):
            yield from predict_batch(predictor, result, top)
        else:
            path, reason = result
            yield Unread(path, str(reason))


def predict_batch(predictor: Predictor, batch: CodesBatch[str], top: int) -> Iterator[Prediction]:
    """Yield the predictions of the images in a batch."""
    margins, values = predictor.score(batch.codes)
    best = np.argsort(-margins, axis=1, kind="stable")[:, :top]
    for path, order, row, margin in zip(batch.keys, best, values, margins, strict=True):
        trained = order[margin[order] > -np.inf]
        names = tuple(predictor.classes[label] for label in trained)
        yield Prediction(path, names, tuple(round(float(value), 6) for value in row[trained]))


def csv_writer(file: TextIO, kind: str, measure: str) -> Callable[[Prediction], None]:
    """Write the header path,rank,`kind`,`measure`; return a function that writes a prediction, one line per class."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path", "rank", kind, measure))

    def write(prediction: Prediction) -> None:
        rows = zip(prediction.classes, prediction.values, strict=True)
        writer.writerows((prediction.path, rank, *row) for rank, row in enumerate(rows, start=1))

    return write


def json_writer(file: TextIO, kind: str, measure: str) -> Callable[[Prediction], None]:
    """Return a function that writes a prediction as one line, {"path": …, "top": [{`kind`: …, `measure`: …}]}."""

    def write(prediction: Prediction) -> None:
        classes = zip(prediction.classes, prediction.values, strict=True)
        top = [{kind: name, measure: value} for name, value in classes]
        file.write(json.dumps({"path": prediction.path, "top": top}) + "\n")

    return write


Writer = Callable[[TextIO, str, str], Callable[[Prediction], None]]

WRITERS: dict[str, Writer] = {"csv": csv_writer, "json": json_writer}


def emit(results: Iterable[Prediction | Unread], write: Callable[[Prediction], None]) -> tuple[int, int]:
    """Write the predictions, name the bad images on stderr; return the numbers of predictions and of bad images."""
    counts = {Prediction: 0, Unread: 0}
    for result in results:
        counts[type(result)] += 1
        if isinstance(result, Unread):
            print(f"Skipped {result.path!r}: {result.reason}", file=sys.stderr)
        else:
            write(result)
    return counts[Prediction], counts[Unread]


def known_depths(path: Path) -> depth.Depths | None:
    """Return the depths of the images that a classifier was trained on; None where its metadata do not tell them."""
    depths = persistence.read_metadata(path).facts.get("depths")
    try:
        return None if depths is None else depth.Depths.from_dict(depths)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.PipelineError(f"The depths in the metadata of {path} are damaged. Train it again.") from error


def open_predictor(settings: Predict) -> Predictor:
    """Return what the settings name: a classifier with its network, or a network with the classes of its own."""
    device = choose_device(settings.device)
    if not settings.source_classes:
        address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
        path = settings.classifier or address.classifier
        classifier = persistence.load(path)
        if not settings.classifier:
            validate_classes(path, classifier.classes, address.data)
        network = rebuild_network(classifier.spec.with_white(settings.range), settings.weights)
        return with_classifier(classifier, network.to(device), known_depths(path))
    if settings.classifier:
        raise errors.PipelineError("--source-classes asks the network itself, without a classifier. Name only one.")
    origin = settings.weights or params.load(Extract)[0].weights
    network, names = source_classes.build_network(settings.backbone, origin, settings.range)
    print(
        f"{settings.backbone} ({origin} weights) predicts the {len(names)} classes that it was trained on: the "
        "probabilities are shares among these alone, also for an image of none of them",
        file=sys.stderr,
    )
    return with_source_classes(network.to(device), names)


def run(settings: Predict) -> None:
    """Predict what the settings name."""
    memory.keep_freed()
    predictor = open_predictor(settings)
    known, white = None if settings.range else predictor.depths, predictor.network.transform.max_value
    engine = Engine(predictor.network, settings.batch_size, validate=decoding.depth_validator(known, white))
    with open_images(settings.images, command_line.stdin_lines()) as images:
        results = predict(predictor, engine, images, settings.top, settings.threads or parallel.default_threads())
        done, bad = write_results(results, predictor, WRITERS[settings.format])
    for note in engine.notes:
        print(note, file=sys.stderr)
    if not done:
        raise errors.PipelineError(
            f"None of {errors.counted(bad, 'image')} can be read." if bad else "No images were named, or found."
        )
    print(f"{errors.counted(done, 'image')}, {bad} skipped", file=sys.stderr)


def write_results(results: Iterable[Prediction | Unread], predictor: Predictor, writer: Writer) -> tuple[int, int]:
    """Write the predictions on stdout; return the numbers of predictions and of bad images."""
    if not sys.stdout.isatty():  # where the predictions themselves show how far it has come
        results = track(results, "predicting", None)
    command_line.pass_any_text(sys.stdout)
    return emit(results, writer(sys.stdout, predictor.kind, predictor.measure))
