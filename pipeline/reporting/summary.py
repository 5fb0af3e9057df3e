"""Everything that the report shows, as one dict: from the experiments' files to numbers and names."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline import files, params, yaml_text
from pipeline.analysis import predictions
from pipeline.classifiers.persistence import ClassifierFacts, ClassifierMetadata
from pipeline.data.manifest import SPLITS
from pipeline.reporting import image_lists, prediction_lists
from pipeline.reporting.advice import read_advice
from pipeline.reporting.experiment_charts import (
    few_shot_charts,
    layer_charts,
    path_chart,
    reliability_chart,
    training_charts,
)
from pipeline.reporting.experiments import ExperimentResult, address_of, load_experiment
from pipeline.reporting.page_data import (
    CodeMap,
    Comparison,
    DatasetSummary,
    ExperimentDetails,
    ExperimentSummary,
    ImageEntry,
    ImageStudy,
    Scores,
    Summary,
)
from pipeline.reporting.thumbnails import Album

PACKAGES = ("cnn-codes", "scikit-learn", "numpy", "scipy", "h5py", "pillow")
"""Packages whose versions the page tells."""

NOT_LISTED = ("cv", "folds")
"""Long lists of a classifier's metadata, which are not shown among its facts."""


def summarise(folder: Path, experiments: Sequence[Scores], budget: int) -> Summary:
    """Return all that the page shows.

    folder: of the reports; experiments: as `find_experiments` returns them; budget: of the thumbnails, in bytes.
    """
    album = Album()
    datasets: dict[str, DatasetSummary] = {}
    summaries: list[ExperimentSummary] = []
    for dataset, group in groupby(experiments, key=lambda scores: scores["dataset"]):
        datasets[dataset], of_dataset = _summarise_dataset(folder, list(group), album)
        summaries += of_dataset
    return {
        "datasets": datasets,
        "experiments": summaries,
        "layer_charts": layer_charts(experiments),
        "few_shot_charts": few_shot_charts(experiments),
        "training_charts": [chart for scores in experiments for chart in training_charts(folder, scores)],
        "advice": read_advice(folder, experiments),
        "images": _image_entries(album, experiments, datasets),
        "thumbnails": album.thumbnails(budget),
        "budget": budget,
        "parameters": yaml_text.dump(params.effective()),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _summarise_dataset(
    folder: Path, experiments: Sequence[Scores], album: Album
) -> tuple[DatasetSummary, list[ExperimentSummary]]:
    """Summarise the experiments on one dataset; its images are studied by the codes of the first that has codes."""
    study: ImageStudy | None = None
    paths: tuple[str, ...] = ()
    bad_files = read_bad_files(address_of(experiments[0]).data / "bad.csv")
    details, correct = [], []
    for scores in experiments:
        experiment = load_experiment(folder, scores)
        outcomes = experiment.predictions
        if experiment.index is not None and study is None:
            study = _study_images(image_lists.Gallery(experiment.address.data, experiment.index, album))
            paths = experiment.index.paths
            bad_files += experiment.index.bad
        details.append(_summarise_experiment(experiment, album, study["code_map"] if study else None))
        correct.append((hash(outcomes.paths), outcomes.correct))
    dataset: DatasetSummary = {
        "classes": outcomes.classes,
        "folder": common_folder(paths or outcomes.paths),
        "bad_files": list(dict.fromkeys(bad_files)),
        "study": study,
    }
    comparisons = compare_with_first(correct)
    return dataset, [
        {**detail, "comparison": comparison} for detail, comparison in zip(details, comparisons, strict=True)
    ]


def _image_entries(
    album: Album, experiments: Sequence[Scores], datasets: Mapping[str, DatasetSummary]
) -> list[ImageEntry]:
    """Return the images of the album, their paths without the folder that the images of a dataset share."""
    folders = {address_of(scores).data: datasets[scores["dataset"]]["folder"] for scores in experiments}
    return [
        ImageEntry(image.path.removeprefix(folders[image.root]), image.label, image.split) for image in album.images
    ]


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder, with a slash at its end, that absolute paths share; "" if they are relative to the dataset."""
    if not paths or not all(path.startswith("/") for path in paths):
        return ""
    return os.path.commonpath(paths) + "/"


def _study_images(gallery: image_lists.Gallery) -> ImageStudy:
    return {
        "layer": f"{gallery.index.spec.backbone}, {gallery.index.spec.layer}",
        "leaks": image_lists.find_leaks_between_splits(gallery),
        "label_errors": image_lists.suspected_label_errors(gallery),
        "outliers": image_lists.outliers(gallery),
        "code_map": image_lists.code_map(gallery),
        "split_sizes": {split: len(gallery.rows(split)) for split in SPLITS},
    }


def _summarise_experiment(experiment: ExperimentResult, album: Album, code_map: CodeMap | None) -> ExperimentDetails:
    outcomes, metadata = experiment.predictions, experiment.metadata
    facts = metadata.facts if metadata else ClassifierFacts()
    calibration = None
    if experiment.confidence_kind == "probability":
        calibration = predictions.calibration(experiment.confidence, outcomes.correct)
    return {
        **experiment.scores,
        "name": experiment.name,
        "note": experiment.note,
        "confidence_kind": experiment.confidence_kind,
        "per_class": [_rounded(scores) for scores in outcomes.per_class],
        "confusion_cells": prediction_lists.confusion_cells(experiment, album),
        "mistakes": prediction_lists.most_confident_mistakes(experiment, album),
        "mistakes_total": int((~outcomes.correct).sum()),
        "mistakes_on_map": prediction_lists.mistakes_on_map(experiment, album, code_map),
        "least_certain": prediction_lists.least_certain(experiment, album),
        "calibration": calibration,
        "reliability_chart": reliability_chart(calibration) if calibration else None,
        "path_chart": path_chart(facts.get("cv", []), facts.get("measure", "accuracy")),
        "facts": metadata_texts(metadata) if metadata else [],
    }


def _rounded(scores: predictions.ClassScores) -> predictions.ClassScores:
    precision, recall, f1, support = scores
    return predictions.ClassScores(round(precision, 4), round(recall, 4), round(f1, 4), support)


def compare_with_first(correct: Sequence[tuple[int, np.ndarray]]) -> list[Comparison]:
    """Test every experiment on a dataset against the first, which is the best.

    correct: for each a hash of the paths of its test images, and which of them are predicted correctly, (n,) bool.
    """
    (images, best), *others = correct
    comparable = [place for place, (other_images, _) in enumerate(others) if other_images == images]
    p_values = [predictions.mcnemar(best, others[place][1]) for place in comparable]
    comparisons: list[Comparison] = [{"best": False, "p": None, "differs": None} for _ in others]
    for place, p, differs in zip(comparable, p_values, predictions.significant(p_values), strict=True):
        comparisons[place] = {"best": False, "p": p, "differs": differs}
    return [{"best": True, "p": None, "differs": None}, *comparisons]


def read_bad_files(path: Path) -> list[str]:
    """Return "path: reason" of each file that `prepare` skipped, as it is listed in bad.csv."""
    return [f"{row['path']}: {row['reason']}" for row in files.read_csv(path)] if path.exists() else []


def metadata_texts(metadata: ClassifierMetadata) -> list[tuple[str, str]]:
    """Return the names and values of a classifier's metadata, nested names joined by a dot."""
    spec, versions = metadata.spec.to_dict(), metadata.versions
    return _flat_texts({"sha256": metadata.sha256, "spec": spec, **metadata.facts, "versions": versions})


def _flat_texts(values: Mapping[str, object]) -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts += [(f"{name}.{inner}", text) for inner, text in _flat_texts(value)]
        elif name not in NOT_LISTED or isinstance(value, int):
            texts.append((name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return texts
