"""List images whose labels or splits deserve a second look, in a CSV file to fill in for `prepare --corrections`.

Example: python -m pipeline.audit --dataset flowers --backbone efficientnet_lite0 --layer avgpool
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("audit")

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from pipeline import errors, files
from pipeline.analysis import duplicates, neighbors
from pipeline.analysis.grouping import CodesRows, Grouping, find_image_units
from pipeline.analysis.label_errors import confident_errors
from pipeline.classifiers.scoring import mean_of_views
from pipeline.classifiers.search import SearchPlan, held_out_probabilities
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.config import Audit
from pipeline.data import corrections
from pipeline.data.splits import validate_folds, validate_trainable
from pipeline.paths import Experiment, require_one_layer

GRID = {"l2": {"C": [1, 10, 100, 1000]}}
"""The grid of the classifiers that judge labels; with a small C they withstand many wrong ones."""

MOST_OUTLIERS = 24
"""Number of outliers that are listed."""


@dataclass(frozen=True)
class Finding:
    """A line of the CSV file: an image, and why it is listed.

    problem: "label error", "conflicting duplicate", "copy across splits", "near-duplicate across splits" or "outlier";
    score: the probability of the label, or the distance to the other image, 0 of copies; other: the path of the image
    that it is a copy of or nearest to, "" of label errors; action, to: what `data.corrections` reads; the action is
    left to a person, and `to` is what seems right if it is to be relabelled or moved.
    """

    path: str
    label: str
    split: str
    problem: str
    score: float
    other: str = ""
    action: str = ""
    to: str = ""


def find_label_errors(codes: reader.Codes[np.ndarray], data: TrainingData, plan: SearchPlan) -> Iterator[Finding]:
    """Yield the training images whose labels are suspected, the least probable label first.

    data: of the codes, with the units that stay in one fold.
    """
    present, labels = np.unique(codes.labels, return_inverse=True)
    probabilities = mean_of_views(held_out_probabilities(data, plan), len(labels))
    found = confident_errors(probabilities, labels)
    columns = (found.images.tolist(), present[found.classes].tolist(), found.probabilities.tolist())
    for row, label, probability in zip(*columns, strict=True):
        names = codes.classes[codes.labels[row]], codes.classes[label]
        yield Finding(codes.paths[row], names[0], "train", "label error", round(probability, 4), to=names[1])


def find_duplicates(index: reader.CodesIndex) -> Iterator[Finding]:
    """Yield copies with different labels, then copies and near-duplicates in different splits, with a row for each."""
    for group in duplicates.same_bytes(index, index.labels.tolist()):
        for row, other in zip(group, [*group[1:], group[0]], strict=True):
            yield _finding(index, row, "conflicting duplicate", 0, other)
    for group in duplicates.same_bytes(index, index.splits):
        for row in group[1:]:
            yield _finding(index, row, "copy across splits", 0, group[0], index.splits[group[0]])
    for distance, (row, other) in duplicates.pairs_of(duplicates.search_across_splits(index).searches):
        yield _finding(index, row, "near-duplicate across splits", distance, other, index.splits[other])


def find_outliers(index: reader.CodesIndex) -> Iterator[Finding]:
    """Yield the images that are farthest from all training images, the farthest first."""
    train = np.flatnonzero(index.splits.isin(["train"]))
    rows, _ = neighbors.find_outliers(index.path, np.arange(len(index.paths)), train, MOST_OUTLIERS)
    distances, nearest = neighbors.nearest(index.path, rows, train, 1)
    for place in np.argsort(-distances[:, 0], kind="stable"):
        yield _finding(index, rows[place], "outlier", distances[place, 0], nearest[place, 0])


def _finding(index: reader.CodesIndex, row: int, problem: str, score: float, other: int, to: str = "") -> Finding:
    label = index.labels[row]
    name = index.classes[label] if label >= 0 else ""
    other_path = index.paths[other]
    return Finding(index.paths[row], name, index.splits[row], problem, round(float(score), 4), other_path, to=to)


def summary(path: Path, findings: Sequence[Finding], n: int) -> str:
    """Return how many images of which problem were found; n: number of training images whose labels were judged."""
    counts = Counter(finding.problem for finding in findings)
    lines = [f"{path}: {errors.counted(len(findings), 'line')}; the labels of {n:,} training images were judged"]
    return "\n".join([*lines, *(f"{count:>9}  {problem}" for problem, count in counts.items())])


def run(settings: Audit) -> None:
    """Look at the dataset that the settings name."""
    require_one_layer(settings.layer)
    address = Experiment(settings.dataset, settings.backbone, settings.layer)
    path = settings.out or address.reports / f"{settings.layer}-audit.csv"
    corrections.validate_overwritable(path)
    codes = reader.read(address.codes, {"backbone": settings.backbone, "layer": settings.layer}, "train")
    index = validate_dataset(address.codes, address.data)
    if codes.labels.ndim == 2:
        raise errors.PipelineError("The images have several labels each, and `audit` judges one label per image.")
    grouping = Grouping(settings.group_by, settings.near_distance)
    train = CodesRows.of_splits(address.codes, "train", index=index)
    units = find_image_units(train, address.data, grouping)
    validate_trainable(codes.labels, codes.classes, settings.folds, units)
    plan = SearchPlan("softmax", GRID, settings.folds, settings.seed)
    data = TrainingData.of_codes(codes, units)
    validate_folds(data.folds(plan.folds, plan.seed), data.y, codes.classes)
    index = train.index
    findings = [*find_label_errors(codes, data, plan), *find_duplicates(index), *find_outliers(index)]
    files.write_csv(path, [field.name for field in fields(Finding)], [astuple(finding) for finding in findings])
    print(summary(path, findings, len(codes.labels)))
    print(corrections.next_step(address.data, path, "Write relabel, drop or move into the column action"))
