"""Saved classifiers: the skops file, and the metadata file that says what it is and must fit it."""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TypedDict, cast

import numpy as np
from sklearn.pipeline import Pipeline

from pipeline import errors, files
from pipeline.classifiers import scoring, solvers
from pipeline.classifiers.cv_table import CVRow, Grid, NestedResult
from pipeline.classifiers.nearest_mean import NearestClassMean
from pipeline.classifiers.preprocessing import Centred, SignedRoot
from pipeline.classifiers.source_map import OneHot, Probabilities, SourceMap
from pipeline.codes.spec import CodesSpec

FORMAT = "cnn-codes-classifier 2"
"""Name and version of the two files; the skops file names our classes by their modules, so a move raises it."""

TRUSTED = [
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in (
        *(solvers.LinearSVM, solvers.Softmax, NearestClassMean, SourceMap),
        *(SignedRoot, Centred, Probabilities, OneHot),
    )
]
"""Types beyond those of scikit-learn, SciPy and NumPy that a classifier's file may hold."""

PACKAGES = ("cnn-codes", "scikit-learn", "numpy", "skops")
"""Packages whose versions the metadata records."""


@dataclass(frozen=True)
class SavedClassifier:
    """A trained classifier: from codes of `spec` to indices into `classes`."""

    pipeline: Pipeline
    spec: CodesSpec
    classes: tuple[str, ...]


class UnlabelledFacts(TypedDict):
    """What images without a label brought to a classifier.

    method: a name of `semi_supervised.METHODS`; images: number of these images; accuracy, standard_deviation: of the
    classifier that learned from them too, over the folds; gain: an `analysis.gain.Gain` over the labels alone.
    """

    method: str
    images: int
    accuracy: float
    standard_deviation: float
    gain: Mapping[str, float]


class AdaptationFacts(TypedDict):
    """What images of another dataset brought to a classifier.

    source: name of the dataset; method: a name of `adaptation.METHODS`; images: number of its images; effective: as how
    many equally weighted rows they count, None where all count once; separation: how well source and target are told
    apart, as an AUC, None where nobody asked; gain: an `analysis.gain.Gain` over the target's images alone.
    """

    source: str
    method: str
    images: int
    effective: float | None
    separation: float | None
    gain: Mapping[str, float]


class ShiftFacts(TypedDict):
    """How a classifier was corrected for other shares of its classes.

    dataset: whose images told the shares; method: a name of `label_shift.METHODS`; images: number of these images;
    shares: {class: [share in the source, share in the target]}.
    """

    dataset: str
    method: str
    images: int
    shares: Mapping[str, Sequence[float]]


class ClassifierFacts(TypedDict, total=False):
    """How `classify` trained a classifier; of what `finetune` records, only `best` and `n_val…` are listed here.

    dataset, model: names; dataset_digest: of the training images and labels, as `belonging.training_digest` gives it;
    n_train, n_units: number of training images, and of independent units among them; n_searched: number of units that
    the setting was chosen on, where these are fewer; seed, folds: of the cross-validation; rule: how the setting was
    chosen; extended_grid: the grids that were added because the best setting lay at an edge; group_by, near_distance:
    which images stayed together, as in `grouping.Grouping`; measure: what the accuracies of the table are;
    constant_features: number of features with one value in all rows; chosen: a row of cv; converged: whether the final
    fit did; temperature: of the probabilities, if calibrated; nested: estimate of the accuracy, if asked for; best:
    figures of the epoch after which a fine-tuned network was best; depths: of the dataset's images, as
    `depth.Depths.to_dict` gives them; unlabelled: if it learned from images without a label; weight_by: column with the
    weights of the training images; adapted: if it learned from another dataset as well; label_shift: if it was
    corrected for other shares of the classes.
    """

    dataset: str
    dataset_digest: str
    model: str
    n_train: int
    n_units: int
    n_searched: int
    seed: int
    folds: int
    rule: str
    group_by: str
    near_distance: float
    measure: str
    constant_features: int
    extended_grid: Sequence[Grid]
    chosen: CVRow
    converged: bool
    cv: list[CVRow]
    temperature: float
    nested: NestedResult
    best: Mapping[str, float]
    n_val: int
    n_val_units: int
    depths: Mapping[str, object]
    unlabelled: UnlabelledFacts
    weight_by: str
    adapted: AdaptationFacts
    label_shift: ShiftFacts


@dataclass(frozen=True)
class ClassifierMetadata:
    """The metadata of a saved classifier.

    sha256: digest of the skops file, in hex; spec: the codes it was trained on; versions: {package: version} at
    training.
    """

    sha256: str
    spec: CodesSpec
    classes: tuple[str, ...]
    facts: ClassifierFacts
    versions: Mapping[str, str]


def validation_of(facts: ClassifierFacts) -> scoring.Validation | None:
    """Return the cross-validated accuracy of a classifier, or that of a fine-tuned network on its validation images."""
    if chosen := facts.get("unlabelled") or facts.get("chosen"):
        n = facts.get("n_searched") or facts.get("n_units", facts["n_train"])
        return _validation(chosen["accuracy"], chosen["standard_deviation"], n)
    if best := facts.get("best"):
        return _validation(best["val_accuracy"], None, facts.get("n_val_units", facts["n_val"]))
    return None


def _validation(accuracy: float, deviation: float | None, n: int) -> scoring.Validation:
    low, _ = scoring.wilson_interval(round(accuracy * n), n)
    return {"accuracy": accuracy, "low": low, "deviation": deviation, "n": n}


def metadata_path(path: Path) -> Path:
    """Return the path of the metadata of a classifier's file."""
    return path.with_suffix(".json")


def import_skops() -> ModuleType:
    """Return skops.io, imported only when a classifier is saved or loaded, since that takes a second or more.

    skops lists all estimators of scikit-learn, which on the way would import torch, for three seconds more and for
    nothing: a name that is None in `sys.modules` counts as not installed.
    """
    loaded = "torch" in sys.modules
    if not loaded:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("skops.io")
    finally:
        if not loaded:
            del sys.modules["torch"]


def save(path: Path, classifier: SavedClassifier, facts: Mapping[str, object]) -> None:
    """Write the classifier, then its metadata: format, SHA-256, spec, classes, `facts`, versions of packages."""
    data = import_skops().dumps(classifier.pipeline)
    metadata = {
        "format": FORMAT,
        "sha256": hashlib.sha256(data).hexdigest(),
        "spec": classifier.spec.to_dict(),
        "classes": classifier.classes,
        **facts,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    files.write_bytes(path, data)
    files.write_json(metadata_path(path), metadata)


def load(path: Path) -> SavedClassifier:
    """Read a classifier; raise PipelineError for a file that was changed, or that holds types of others.

    Nothing in the file runs before both have been checked.
    """
    if not path.exists():
        raise errors.PipelineError(
            f"There is no classifier at {path}.{errors.beside(path)} Train it.", fix=_train(path)
        )
    metadata, data = read_metadata(path), path.read_bytes()
    if hashlib.sha256(data).hexdigest() != metadata.sha256:
        raise errors.PipelineError(
            f"{path} is not the file that {metadata_path(path).name} describes: it was changed. Train it again.",
            fix=_train(path),
        )
    return SavedClassifier(_load_pipeline(path, data), metadata.spec, metadata.classes)


def _load_pipeline(path: Path, data: bytes) -> Pipeline:
    """Return the pipeline in a skops file, after its types have been checked."""
    skops = import_skops()
    try:
        untrusted = sorted(set(skops.get_untrusted_types(data=data)) - set(TRUSTED))
        if untrusted:
            raise errors.PipelineError(
                f"{path} holds types that are not trusted ({', '.join(untrusted)}). Use only files of your own."
            )
        pipeline = skops.loads(data, trusted=TRUSTED)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise errors.PipelineError(
            f"{path} is damaged, or no classifier of ours ({error}). Train it again.", fix=_train(path)
        ) from error
    if not isinstance(pipeline, Pipeline):
        kind = type(pipeline).__name__
        raise errors.PipelineError(f"{path} holds a {kind}, no classifier of ours. Train it again.", fix=_train(path))
    return pipeline


def read_metadata(path: Path) -> ClassifierMetadata:
    """Read the metadata of a classifier's file; raise PipelineError if it is missing, damaged or of another format."""
    source = metadata_path(path)
    try:
        content = dict(json.loads(source.read_text(encoding="utf-8")))
        _validate_format(path, content.pop("format", None))
        spec = CodesSpec.from_dict(content.pop("spec"))
        sha256, classes, versions = (content.pop(name) for name in ("sha256", "classes", "versions"))
        facts = cast(ClassifierFacts, content)  # the SHA-256 above guards the classifier; these are for display
        return ClassifierMetadata(sha256, spec, tuple(classes), facts, versions)
    except FileNotFoundError:
        raise errors.PipelineError(
            f"{path} has no metadata file {source.name} beside it, so it is not trusted. Train it again.",
            fix=_train(path),
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise errors.PipelineError(
            f"{source} is no metadata of a classifier ({error}). Train it again.", fix=_train(path)
        ) from error


def _train(path: Path) -> list[errors.Fix]:
    """Return the command that writes a classifier."""
    return [errors.Fix("classify", {"out": path})]


def _validate_format(path: Path, found: object) -> None:
    """Refuse the files of other releases."""
    if found != FORMAT:
        raise errors.PipelineError(f"{path} was saved by an earlier release. Train it again.", fix=_train(path))


def margins(classifier: SavedClassifier, values: np.ndarray) -> np.ndarray:
    """Return (n, classes) float64 margins of (n, d) codes; classes without training images get minus infinity.

    Where the codes of several views of an image lie side by side, (n, n_views × d), it is the mean over the views.
    """
    margins = scoring.margins_of(classifier.pipeline, _row_per_view(classifier, values), len(values))
    return _for_all_classes(classifier, margins, -np.inf)


def probabilities(classifier: SavedClassifier, values: np.ndarray) -> np.ndarray | None:
    """Return (n, classes) float64 probabilities of (n, d) codes, the mean over views; None if the model gives none."""
    if not hasattr(classifier.pipeline, "predict_proba"):
        return None
    raw = np.asarray(classifier.pipeline.predict_proba(_row_per_view(classifier, values)), dtype=np.float64)
    return _for_all_classes(classifier, scoring.mean_of_views(raw, len(values)), 0.0)


def _row_per_view(classifier: SavedClassifier, values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values) * classifier.spec.n_views, -1) if len(values) else values


def _for_all_classes(classifier: SavedClassifier, trained: np.ndarray, otherwise: float) -> np.ndarray:
    """Return outputs (n, classes) from those of the trained classes; the other classes get `otherwise`."""
    if trained.shape[1] == len(classifier.classes):
        return trained
    outputs = np.full((len(trained), len(classifier.classes)), otherwise)
    outputs[:, classifier.pipeline.classes_] = trained
    return outputs
