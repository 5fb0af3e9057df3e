"""Predict the classes of new images with a saved classifier: CSV or JSON lines on stdout, all else on stderr."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

if TYPE_CHECKING:
    from pipeline.extraction.engine import Engine

from pipeline import command_line, errors
from pipeline.classifiers import persistence
from pipeline.codes.spec import join_codes
from pipeline.config import Predict
from pipeline.data import folders
from pipeline.extraction import memory
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, depth, parallel
from pipeline.paths import LAYER_SEPARATOR, Experiment
from pipeline.progress import track

EXAMPLE = "python -m pipeline.predict --classifier models/digits/tinyvgg/fc7-svm.skops photos --top 3"


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with the highest margins, best first, each with its probability or margin."""

    path: Path
    classes: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Unread:
    """An image that cannot be read, and why."""

    path: Path
    reason: str


def predict(
    classifier: persistence.SavedClassifier, engine: Engine, paths: Iterable[Path], top: int, threads: int
) -> Iterator[Prediction | Unread]:
    """Yield the prediction of each image, and the bad images ahead of their batch; a few batches are in memory.

    The classes are ordered by their margins, as in `evaluate`.
    """
    for result in compute_codes(engine, ((path, path) for path in paths), threads):
        if isinstance(result, CodesBatch):
            yield from predict_batch(classifier, result, top)
        else:
            path, reason = result
            yield Unread(path, str(reason))


def predict_batch(classifier: persistence.SavedClassifier, batch: CodesBatch[Path], top: int) -> Iterator[Prediction]:
    """Yield the predictions of the images in a batch."""
    spec = classifier.spec
    layers = [batch.codes[layer].astype(np.float32, copy=False) for layer in spec.layer.split(LAYER_SEPARATOR)]
    codes = join_codes(layers, spec)
    margins = persistence.margins(classifier, codes)
    probabilities = persistence.probabilities(classifier, codes)
    values = margins if probabilities is None else probabilities
    best = np.argsort(-margins, axis=1, kind="stable")[:, : min(top, len(classifier.pipeline.classes_))]
    for path, order, row in zip(batch.keys, best, values, strict=True):
        names = tuple(classifier.classes[label] for label in order)
        yield Prediction(path, names, tuple(round(float(value), 6) for value in row[order]))


def csv_writer(file: TextIO, measure: str) -> Callable[[Prediction], None]:
    """Write the header path,rank,class,`measure`; return a function that writes a prediction, one line per class."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path", "rank", "class", measure))

    def write(prediction: Prediction) -> None:
        rows = zip(prediction.classes, prediction.values, strict=True)
        writer.writerows((prediction.path, rank, *row) for rank, row in enumerate(rows, start=1))

    return write


def json_writer(file: TextIO, measure: str) -> Callable[[Prediction], None]:
    """Return a function that writes a prediction as one line, {"path": …, "top": [{"class": …, `measure`: …}]}."""

    def write(prediction: Prediction) -> None:
        classes = zip(prediction.classes, prediction.values, strict=True)
        top = [{"class": name, measure: value} for name, value in classes]
        file.write(json.dumps({"path": str(prediction.path), "top": top}) + "\n")

    return write


WRITERS = {"csv": csv_writer, "json": json_writer}


def emit(results: Iterable[Prediction | Unread], write: Callable[[Prediction], None]) -> tuple[int, int]:
    """Write the predictions, name the bad images on stderr; return the numbers of predictions and of bad images."""
    counts = {Prediction: 0, Unread: 0}
    for result in results:
        counts[type(result)] += 1
        if isinstance(result, Unread):
            print(f"Skipped {str(result.path)!r}: {result.reason}", file=sys.stderr)
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


def run(settings: Predict) -> None:
    """Predict what the settings name."""
    memory.keep_freed()
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    path = settings.classifier or address.classifier
    classifier = persistence.load(path)
    from pipeline.extraction.engine import Engine
    from pipeline.networks.frozen import choose_device, rebuild_network

    spec = classifier.spec.with_white(settings.range)
    network = rebuild_network(spec, settings.weights).to(choose_device(settings.device))
    known = known_depths(path) if settings.range is None else None
    validate = partial(decoding.validate_depth, known=known, white=spec.transform.max_value) if known else None
    engine = Engine(network, settings.batch_size, validate=validate)
    paths = folders.list_paths(settings.images, command_line.stdin_lines())
    results = predict(classifier, engine, paths, settings.top, settings.threads or parallel.default_threads())
    if not sys.stdout.isatty():  # where the predictions themselves show how far it has come
        results = track(results, "predicting", None)
    command_line.pass_any_text(sys.stdout)
    measure = "probability" if hasattr(classifier.pipeline, "predict_proba") else "margin"
    try:
        done, bad = emit(results, WRITERS[settings.format](sys.stdout, measure))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` does; Python must not flush again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    for note in engine.notes:
        print(note, file=sys.stderr)
    if not done:
        raise errors.PipelineError(
            f"None of {errors.counted(bad, 'image')} can be read." if bad else "No images were named, or found."
        )
    print(f"{errors.counted(done, 'image')}, {bad} skipped", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("predict", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
