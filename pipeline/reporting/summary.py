"""Everything that the report shows, as one dict: from the experiments' files to numbers and names."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

from pipeline import params, yaml_text
from pipeline.analysis import predictions
from pipeline.classifiers.persistence import ClassifierFacts, ClassifierMetadata
from pipeline.codes.reader import CodesIndex
from pipeline.codes.spec import extract_settings
from pipeline.paths import Experiment
from pipeline.reporting import image_lists, prediction_lists
from pipeline.reporting.adapted import adaptation_of
from pipeline.reporting.advice import read_advice
from pipeline.reporting.experiment_charts import (
    few_shot_charts,
    interval_bars,
    layer_charts,
    path_chart,
    reliability_chart,
    training_charts,
)
from pipeline.reporting.experiments import (
    ExperimentResult,
    address_of,
    first_codes,
    load_experiment,
    rank,
)
from pipeline.reporting.multi_label import summarise_multi_label
from pipeline.reporting.page_data import (
    AdviceSummary,
    CodeMap,
    DatasetSummary,
    ExperimentDetails,
    ExperimentSummary,
    ImageEntry,
    MultiLabelDataset,
    Scores,
    Summary,
)
from pipeline.reporting.source_charts import source_charts
from pipeline.reporting.study import describe_dataset, study_dataset
from pipeline.reporting.thumbnails import Album
from pipeline.reporting.unlabelled_gains import gains_of
from pipeline.reporting.verdict import TestedImages, choose_first_step, compare_with_first, give_verdict
from pipeline.reporting.weighed_classes import read_weighed

PACKAGES = ("cnn-codes", "scikit-learn", "numpy", "scipy", "h5py", "pillow")
"""Packages whose versions the page tells."""

NOT_LISTED = ("cv", "folds")
"""Long lists of a classifier's metadata, which are not shown among its facts."""


def summarise(
    folder: Path,
    experiments: Sequence[Scores],
    budget: int,
    multi_label: Sequence[Scores] = (),
    unscored: Mapping[str, CodesIndex] = MappingProxyType({}),
) -> Summary:
    """Return all that the page shows.

    folder: of the reports; experiments, multi_label: as `find_experiments` and `find_multi_label` return them; budget:
    of the thumbnails, in bytes; unscored: as `find_unscored` returns them.
    """
    album, advice = Album(), read_advice(folder, experiments)
    of_several_labels = summarise_multi_label(folder, multi_label, album)
    datasets: dict[str, DatasetSummary] = {}
    summaries: list[ExperimentSummary] = []
    for dataset, group in groupby(experiments, key=itemgetter("dataset")):
        of_backbone = {item["backbone"]: item for item in advice if item["dataset"] == dataset}
        datasets[dataset], of_dataset = _summarise_dataset(folder, rank(group), of_backbone, album)
        summaries += of_dataset
    for name, index in unscored.items():
        datasets[name] = study_dataset(Experiment(name, "").data, index, album)
        datasets[name]["next_step"] = choose_first_step(name, index)
    return {
        "datasets": datasets,
        "experiments": summaries,
        "multi_label": of_several_labels,
        "layer_charts": layer_charts(experiments),
        "few_shot_charts": few_shot_charts(experiments),
        "training_charts": [
            chart
            for scores in experiments
            for chart in (*training_charts(folder, scores), *source_charts(folder, scores))
        ],
        "advice": advice,
        "source_weights": read_weighed(folder, datasets, budget),
        "images": _image_entries(album, datasets, of_several_labels),
        "thumbnails": album.thumbnails(budget),
        "budget": budget,
        "parameters": yaml_text.dump(params.effective()),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _summarise_dataset(
    folder: Path, experiments: Sequence[Scores], advice: Mapping[str, AdviceSummary], album: Album
) -> tuple[DatasetSummary, list[ExperimentSummary]]:
    """Summarise the experiments on one dataset, which come ranked, and the images of the dataset."""
    data, index = address_of(experiments[0]).data, first_codes(experiments)
    dataset = study_dataset(data, index, album) if index else describe_dataset(data)
    results: list[tuple[ExperimentDetails, TestedImages]] = []
    for scores in experiments:
        result = load_experiment(folder, scores)
        outcomes = result.predictions
        details = _summarise_experiment(result, album, dataset["study"]["code_map"] if dataset["study"] else None)
        results.append((details, (hash(outcomes.paths), outcomes.correct, outcomes.units)))
    tested = [images for _, images in results]
    summaries: list[ExperimentSummary] = [
        {**details, "comparison": comparison, "bar": bar}
        for (details, _), comparison, bar in zip(
            results, compare_with_first(tested), interval_bars([details for details, _ in results]), strict=True
        )
    ]
    dataset["classes"] = outcomes.classes
    dataset["folder"] = dataset["folder"] or image_lists.common_folder(outcomes.paths)
    dataset["verdict"] = give_verdict(summaries, tested, advice)
    return dataset, summaries


def _image_entries(
    album: Album, *groups: Mapping[str, DatasetSummary] | Mapping[str, MultiLabelDataset]
) -> list[ImageEntry]:
    """Return the images of the album, their paths without the folder that the images of a dataset share."""
    folders = {Experiment(name, "").data: dataset["folder"] for group in groups for name, dataset in group.items()}
    return [
        ImageEntry(image.path.removeprefix(folders[image.root]), image.label, image.split) for image in album.images
    ]


def _summarise_experiment(experiment: ExperimentResult, album: Album, code_map: CodeMap | None) -> ExperimentDetails:
    outcomes, metadata = experiment.predictions, experiment.metadata
    facts = metadata.facts if metadata else ClassifierFacts()
    calibration = None
    if experiment.confidence_kind == "probability":
        calibration = predictions.calibration(experiment.confidence, outcomes.correct, outcomes.units)
    return {
        **experiment.scores,
        "name": experiment.name,
        "note": experiment.note,
        "confidence_kind": experiment.confidence_kind,
        "network": extract_settings(metadata.spec.to_dict()) if metadata else {},
        "per_class": [_rounded(scores) for scores in outcomes.per_class],
        "confusion_cells": prediction_lists.confusion_cells(experiment, album),
        "lists": {
            "mistakes": prediction_lists.most_confident_mistakes(experiment, album),
            "least_certain": prediction_lists.least_certain(experiment, album),
        },
        "mistakes_on_map": prediction_lists.mistakes_on_map(experiment, album, code_map),
        "calibration": calibration,
        "reliability_chart": reliability_chart(calibration) if calibration else None,
        "path_chart": path_chart(facts.get("cv", []), facts.get("measure", "accuracy")),
        "facts": metadata_texts(metadata) if metadata else [],
        "unlabelled_gains": gains_of(experiment.address, facts),
        "adapted": adaptation_of(facts),
    }


def _rounded(scores: predictions.ClassScores) -> predictions.ClassScores:
    precision, recall, f1, support = scores
    return predictions.ClassScores(round(precision, 4), round(recall, 4), round(f1, 4), support)


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
