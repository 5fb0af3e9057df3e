"""A saved classifier: the skops file, and the description beside it that vouches for it."""

from __future__ import annotations

import hashlib
import json
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from pipeline import errors
from pipeline.classifiers import solvers
from pipeline.classifiers.preprocessing import SignedRoot
from pipeline.codes.spec import CodesSpec

TRUSTED = [f"{kind.__module__}.{kind.__qualname__}" for kind in (solvers.LinearSVM, solvers.Softmax, SignedRoot)]
"""Types beyond scikit-learn's, SciPy's and NumPy's own that a classifier's file may hold."""

PACKAGES = ("cnn-codes", "scikit-learn", "numpy", "skops")


@dataclass(frozen=True)
class SavedClassifier:
    """A classifier as it was trained: from codes of `spec` to indices into `classes`."""

    pipeline: Pipeline
    spec: CodesSpec
    classes: tuple[str, ...]


def metadata_path(path: Path) -> Path:
    """Return where the description of a classifier's file lies."""
    return path.with_suffix(".json")


def save(path: Path, classifier: SavedClassifier, facts: Mapping[str, Any]) -> None:
    """Write the classifier, and beside it the description: spec, classes, versions, the `facts`, the file's SHA-256."""
    import skops.io  # two seconds to import, and not needed for --help

    path.parent.mkdir(parents=True, exist_ok=True)
    data = skops.io.dumps(classifier.pipeline)
    description = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "spec": classifier.spec.to_dict(),
        "classes": classifier.classes,
        **facts,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    for target, content in ((path, data), (metadata_path(path), json.dumps(description, indent=1).encode())):
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(content)
        partial.replace(target)


def load(path: Path) -> SavedClassifier:
    """Read a classifier, and refuse a file that is not what was saved, or that holds types of others.

    Nothing in the file runs before both have been checked.
    """
    if not path.exists():
        raise errors.PipelineError(f"There is no classifier at {path}. Train it: python -m pipeline.classify.")
    description, data = read_metadata(path), path.read_bytes()
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise errors.PipelineError(
            f"{path} is not the file that its description vouches for: it was changed. Train it again."
        )
    import skops.io

    try:
        untrusted = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
        if untrusted:
            raise errors.PipelineError(
                f"{path} holds types that are not trusted ({', '.join(untrusted)}). Use only files of your own."
            )
        pipeline = skops.io.loads(data, trusted=TRUSTED)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise errors.PipelineError(f"{path} is damaged, or no classifier of ours ({error}). Train it again.") from error
    if not isinstance(pipeline, Pipeline):
        raise errors.PipelineError(f"{path} holds a {type(pipeline).__name__}, no classifier of ours. Train it again.")
    return SavedClassifier(pipeline, description["spec"], description["classes"])


def margins(classifier: SavedClassifier, values: np.ndarray) -> np.ndarray:
    """Return (n, classes) float margins of (n, d) codes; classes that were not trained get minus infinity.

    Of several views of an image, which stand side by side, it is the mean margin.
    """
    pipeline = classifier.pipeline
    scored = pipeline.decision_function if hasattr(pipeline, "decision_function") else pipeline.predict_proba
    raw = np.asarray(scored(_each_view(classifier, values)), dtype=np.float64)
    if raw.ndim == 1:
        raw = np.stack([-raw, raw], 1)
    return _for_all_classes(classifier, _mean_of_views(raw, len(values)), -np.inf)


def probabilities(classifier: SavedClassifier, values: np.ndarray) -> np.ndarray | None:
    """Return (n, classes) probabilities of (n, d) codes, or None where the model gives none; of views the mean."""
    if not hasattr(classifier.pipeline, "predict_proba"):
        return None
    raw = np.asarray(classifier.pipeline.predict_proba(_each_view(classifier, values)), dtype=np.float64)
    return _for_all_classes(classifier, _mean_of_views(raw, len(values)), 0.0)


def _each_view(classifier: SavedClassifier, values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values) * classifier.spec.n_views, -1) if len(values) else values


def _mean_of_views(scored: np.ndarray, n_images: int) -> np.ndarray:
    return scored.reshape(n_images, -1, scored.shape[1]).mean(1) if n_images else scored


def _for_all_classes(classifier: SavedClassifier, known: np.ndarray, otherwise: float) -> np.ndarray:
    every = np.full((len(known), len(classifier.classes)), otherwise)
    every[:, classifier.pipeline.classes_] = known
    return every


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what stands beside a classifier's file: its SHA-256, spec, classes, versions, and how it was trained."""
    beside = metadata_path(path)
    try:
        description = json.loads(beside.read_text(encoding="utf-8"))
        spec = CodesSpec.from_dict(description["spec"])
        return {**description, "spec": spec, "classes": tuple(description["classes"])}
    except FileNotFoundError:
        raise errors.PipelineError(
            f"{path} has no description {beside.name} beside it, so it is not trusted. Train it again."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise errors.PipelineError(f"{beside} is no description of a classifier ({error}). Train it again.") from error
