"""Experiments on multi-label images: mean average precision, the scores of each label, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pipeline import errors, files
from pipeline.reporting.experiments import address_of, report_folder
from pipeline.reporting.image_lists import LISTED, common_folder, priority_at
from pipeline.reporting.page_data import Card, ImageList, LabelScores, MultiLabelDataset, MultiLabelExperiment, Scores
from pipeline.reporting.thumbnails import Album

SEVERAL = -1
"""Label of the album's images that have several."""


def summarise_multi_label(folder: Path, experiments: Sequence[Scores], album: Album) -> dict[str, MultiLabelDataset]:
    """Return {dataset: its summary}; experiments: as `find_multi_label` returns them, from a folder of reports."""
    groups = groupby(experiments, key=itemgetter("dataset"))
    return {dataset: _summarise_dataset(folder, list(group), album) for dataset, group in groups}


def _summarise_dataset(folder: Path, experiments: Sequence[Scores], album: Album) -> MultiLabelDataset:
    summaries = sorted((_summarise(folder, scores) for scores in experiments), key=_rank_key)
    best = report_folder(folder, address_of(summaries[0]))
    classes = [row["class"] for row in read_table(best / "per_class.csv")]
    rows = read_table(best / "predictions.csv")
    return {
        "classes": classes,
        "folder": common_folder([row["path"] for row in rows]),
        "experiments": summaries,
        "lists": {"multi_label_mistakes": worst_mistakes(address_of(summaries[0]).data, rows, classes, album)},
    }


def _summarise(folder: Path, scores: Scores) -> MultiLabelExperiment:
    address = address_of(scores)
    validation = scores["validation"]
    table = read_table(report_folder(folder, address) / "per_class.csv")
    return {
        **scores,
        "name": f"{address.dataset}/{address.backbone}/{address.layer}-{address.model}",
        "held_out": validation["accuracy"] if validation else None,
        "per_class": [
            LabelScores(float(row["ap"]), float(row["precision"]), float(row["recall"]), int(row["support"]))
            for row in table
        ],
    }


def _rank_key(experiment: MultiLabelExperiment) -> tuple[float, ...]:
    """Return what experiments are sorted by, the best first; test images have no say where there is anything else."""
    held_out = experiment["held_out"]
    return (1.0, -experiment["map"]) if held_out is None else (-held_out,)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a table that `evaluate` wrote; raise PipelineError if it is not there."""
    if not path.exists():
        raise errors.PipelineError(f"{path} is missing. Evaluate again.", fix=[errors.Fix("evaluate")])
    return files.read_csv(path)


def worst_mistakes(root: Path, rows: Sequence[Mapping[str, str]], classes: Sequence[str], album: Album) -> ImageList:
    """Return the images with the most labels that are missed or wrongly predicted.

    root: folder of the dataset; rows: of predictions.csv.
    """
    wrong = sorted((row for row in rows if _mistakes(row)), key=lambda row: -len(_mistakes(row)))
    cards: list[Card] = []
    for place, row in enumerate(wrong[:LISTED]):
        labels, predicted = _names(row["labels"]), _names(row["predicted"])
        cards.append(
            {
                "images": [album.add(root, row["path"], SEVERAL, "test", priority_at(place))],
                "missed": [classes.index(name) for name in sorted(labels - predicted)],
                "wrong": [classes.index(name) for name in sorted(predicted - labels)],
            }
        )
    return {"cards": cards, "found": len(wrong), "checked": len(rows), "total": len(rows)}


def _mistakes(row: Mapping[str, str]) -> set[str]:
    return _names(row["labels"]) ^ _names(row["predicted"])


def _names(text: str) -> set[str]:
    return {name for name in text.split(";") if name}
