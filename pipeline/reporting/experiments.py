"""Experiments as their files describe them: scores, predictions and their confidence, classifier, codes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import cast

import numpy as np

from pipeline import errors, hints
from pipeline.analysis.predictions import Predictions, read_predictions
from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.paths import MANIFEST, Experiment, split_layer
from pipeline.reporting.page_data import ConfidenceKind, Scores

METRICS = "*/**/*-*/metrics.json"
"""The files of scores under a folder of reports."""


@dataclass(frozen=True)
class ExperimentResult:
    """An experiment.

    metadata: of the classifier, None if it cannot be read; index: all that the file of codes holds except the codes,
    None if they cannot be read; test_rows: (n,) int64 rows of the test images in that file, empty without it;
    confidence: (n,) float of each prediction, of the kind `confidence_kind`; note: what could not be read, and why.
    """

    address: Experiment
    scores: Scores
    predictions: Predictions
    metadata: persistence.ClassifierMetadata | None
    index: reader.CodesIndex | None
    test_rows: np.ndarray
    confidence: np.ndarray
    confidence_kind: ConfidenceKind
    note: str

    @cached_property
    def data(self) -> Path:
        """The prepared dataset's folder."""
        return self.address.data

    @property
    def name(self) -> str:
        """Dataset, backbone, layer and model in one."""
        return f"{self.address.dataset}/{self.address.backbone}/{self.address.layer}-{self.address.model}"


def find_experiments(
    folder: Path,
    dataset: str | None = None,
    backbone: str | None = None,
    layer: str | None = None,
    *,
    may_be_none: bool = False,
) -> list[Scores]:
    """Return the scores of every experiment under a folder of reports, by dataset, the highest top-1 first.

    Experiments on multi-label images have no top-1 and are left out: see `find_multi_label`. PipelineError is raised if
    there are no experiments of either kind, unless there may be none.
    """
    rows = _read_metrics(folder, dataset, backbone, layer)
    if not rows and not may_be_none:
        raise _nothing_to_show(folder / (dataset or "") / (backbone or ""), Experiment(dataset or "", ""))
    return sorted((row for row in rows if "top1" in row), key=lambda row: (row["dataset"], -row["top1"]))


def _nothing_to_show(place: Path, address: Experiment) -> errors.PipelineError:
    """Return the error for a folder without scores; the address has the dataset that is asked for, if one is."""
    if address.dataset and (address.data / MANIFEST).exists() and not address.features.exists():
        message = f"There are no scores under {place}, and no codes of {address.name}. Extract them."
        return errors.PipelineError(message, fix=[errors.Fix("extract")])
    message = f"There are no scores under {place}.{errors.beside(place)} Evaluate a classifier, or run dvc repro."
    return errors.PipelineError(message, fix=[errors.Fix("evaluate")])


def find_multi_label(
    folder: Path, dataset: str | None = None, backbone: str | None = None, layer: str | None = None
) -> list[Scores]:
    """Return the scores of the experiments on multi-label images, by dataset."""
    rows = _read_metrics(folder, dataset, backbone, layer)
    return sorted((row for row in rows if "top1" not in row), key=itemgetter("dataset"))


def _read_metrics(folder: Path, dataset: str | None, backbone: str | None, layer: str | None) -> list[Scores]:
    rows: list[Scores] = []
    for path in sorted(folder.glob(METRICS)):
        name, *backbone_parts, last, _ = path.relative_to(folder).parts
        address = Experiment(name, "/".join(backbone_parts), *split_layer(last))
        if not _is_wanted(address, dataset, backbone, layer):
            continue
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if "images" not in metrics:
            fix = [errors.Fix("evaluate", {**vars(address), "out": path.parent})]
            raise errors.PipelineError(f"{path} was written by an earlier release. Evaluate again.", fix=fix)
        rows.append(cast(Scores, {"validation": None} | vars(address) | metrics))
    return rows


def _is_wanted(address: Experiment, dataset: str | None, backbone: str | None, layer: str | None) -> bool:
    """Return whether an address has these words; None for any."""
    wanted = {"dataset": Experiment(dataset, "").name if dataset else None, "backbone": backbone, "layer": layer}
    return all(value is None or getattr(address, word) == value for word, value in wanted.items())


def find_unscored(
    folder: Path, dataset: str | None = None, backbone: str | None = None, layer: str | None = None
) -> dict[str, list[Path]]:
    """Return {dataset: files of codes} of the datasets that have codes, and no scores under a folder of reports.

    The file that was written last comes first.
    """
    scored = {path.relative_to(folder).parts[0] for path in folder.glob(METRICS)}
    found: dict[str, list[Path]] = {}
    for path in sorted(Path("features").glob("*/**/*.h5"), key=lambda file: -file.stat().st_mtime_ns):
        address = Experiment.of_file(path)
        hidden = any(part.startswith(".") for part in path.parts)
        if address and not hidden and address.dataset not in scored and _is_wanted(address, dataset, backbone, layer):
            found.setdefault(address.dataset, []).append(path)
    return found


def read_unscored(name: str, path: Path) -> reader.CodesIndex:
    """Return all that a file of codes holds except the codes; name: of the dataset whose images they are.

    PipelineError is raised if they are not those of the images that the dataset has now, or if these have several
    labels each: of such images only scores are shown.
    """
    index = validate_dataset(path, Experiment(name, "").data)
    if index.labels.ndim == 2 and index.classes:
        raise errors.PipelineError(
            f"There are no scores of {name}, whose images have several labels each. Evaluate a classifier.",
            fix=[errors.Fix("evaluate", {"dataset": name})],
        )
    return index


def address_of(scores: Scores) -> Experiment:
    """Return the address of the experiment that has these scores."""
    return Experiment(scores["dataset"], scores["backbone"], scores["layer"], scores["model"])


def report_folder(folder: Path, address: Experiment) -> Path:
    """Return where the scores of an experiment lie in a folder of reports."""
    return folder / address.report.relative_to("reports")


def load_experiment(folder: Path, scores: Scores) -> ExperimentResult:
    """Read an experiment's files from a folder of reports, and its classifier and codes if they fit the predictions."""
    address = address_of(scores)
    outcomes = read_predictions(report_folder(folder, address))
    metadata, index, note = None, None, ""
    kind: ConfidenceKind = "score"
    rows, confidence = np.empty(0, np.int64), outcomes.margins
    try:
        metadata = persistence.read_metadata(address.classifier)
        found = read_codes(address)
        test = np.flatnonzero(found.splits.isin(["test"]))
        kind, confidence = _confidence(persistence.load(address.classifier), found, test, outcomes)
        index, rows = found, test
    except OtherClassifierError as error:
        metadata, note = None, in_one_line(hints.completed(error, vars(address)))
    except errors.PipelineError as error:
        note = in_one_line(hints.completed(error, vars(address)))
    return ExperimentResult(address, scores, outcomes, metadata, index, rows, confidence, kind, note)


def in_one_line(error: errors.PipelineError) -> str:
    """Return the message of an error and its fix as one line."""
    return str(error).replace("\n ", "")


def read_codes(address: Experiment) -> reader.CodesIndex:
    """Return all that the file of an experiment's codes holds except the codes.

    PipelineError is raised if they are not those of the classifier, or of the images that the dataset has now.
    """
    metadata = persistence.read_metadata(address.classifier)
    index = reader.read_index(address.codes, metadata.spec.to_dict())
    validate_dataset(address.codes, address.data, index)
    return index


def first_codes(experiments: Iterable[Scores]) -> reader.CodesIndex | None:
    """Return what `read_codes` gives of the first of these experiments whose codes can be read; None if none can."""
    for scores in experiments:
        try:
            return read_codes(address_of(scores))
        except errors.PipelineError:
            continue  # `load_experiment` says why
    return None


class OtherClassifierError(errors.PipelineError):
    """The classifier that is here is not the one that made the scores."""


def rank(experiments: Iterable[Scores]) -> list[Scores]:
    """Return the experiments on a dataset in the order of `rank_key`, the best first."""
    return sorted(experiments, key=rank_key)


def rank_key(scores: Scores) -> tuple[float | str, ...]:
    """Return what experiments on a dataset are sorted by: accuracy on held-out training images.

    The test images have no say, so that the first one's score on them is not too high by having been chosen. The lower
    end of the interval counts: a fine-tuned network that was validated on few images, with luck, is not preferred to a
    classifier that was cross-validated on all. Experiments without a validation accuracy come last, by the score.
    """
    validation = scores["validation"]
    if validation is None:
        return (1.0, -scores.get("top1", scores.get("map", 0.0)))
    return (-validation["low"], -validation["accuracy"], scores["backbone"], scores["layer"], scores["model"])


def _confidence(
    classifier: persistence.SavedClassifier, index: reader.CodesIndex, rows: np.ndarray, outcomes: Predictions
) -> tuple[ConfidenceKind, np.ndarray]:
    """Return the kind and the (n,) values of the predictions' confidence.

    PipelineError is raised if the classifier and the codes do not give the predictions that `evaluate` wrote.
    """
    kind: ConfidenceKind = "margin"
    highest, confidence = [np.empty(0)], [np.empty(0)]
    for _, values in reader.blocks(index.path, rows):
        margins, probabilities = persistence.margins(classifier, values), persistence.probabilities(classifier, values)
        highest.append(margins.max(1))
        if probabilities is None:
            confidence.append(highest[-1] - np.partition(margins, -2, axis=1)[:, -2])
        else:
            confidence.append(probabilities.max(1))
            kind = "probability"
    same_images = index.paths.take(rows) == outcomes.paths and index.classes == outcomes.classes
    if not same_images or not np.allclose(np.concatenate(highest), outcomes.margins, rtol=1e-3, atol=1e-4):
        raise OtherClassifierError(
            "These scores were not made with the classifier and the codes that are here now. Evaluate again.",
            fix=[errors.Fix("evaluate")],
        )
    return kind, np.concatenate(confidence)
