"""The types of the report's data, as the template and the script of the page read them.

Named tuples are arrays in the page's JSON, where there are many of them. An image is given by its number: its place in
`Summary.images`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, NotRequired, TypedDict

from pipeline.analysis.predictions import Calibration, ClassScores
from pipeline.classifiers.scoring import Metrics
from pipeline.reporting.charts import Chart

ConfidenceKind = Literal["probability", "margin", "score"]
"""What tells how confident a prediction is: the predicted class's probability; the margin of its score over the
runner-up's; or, without the codes, the score alone."""


class Scores(Metrics):
    """The metrics of an experiment on images with one label each, and the four words that address it."""

    dataset: str
    backbone: str
    layer: str
    model: str


class ImageEntry(NamedTuple):
    """An image: its path, its class number, and the split that it belongs to."""

    path: str
    label: int
    split: str


class Neighbour(NamedTuple):
    """A training image near another image, and the distance between their codes, 1 - cosine, in [0, 2]."""

    image: int
    distance: float


class ListedImage(TypedDict):
    """An image in a list, its nearest training images, and its predicted class and confidence if they matter there."""

    image: int
    predicted: NotRequired[int]
    confidence: NotRequired[float]
    nearest: list[Neighbour]


class ConfusionCell(NamedTuple):
    """The number n of test images with this label and predicted class, and a few of these images."""

    label: int
    predicted: int
    n: int
    images: list[int]


class DuplicatePair(NamedTuple):
    """Two images of different splits whose codes are nearly the same, and the distance between them."""

    image: int
    other: int
    distance: float


class SplitLeaks(TypedDict):
    """Images that occur in several splits.

    copies: groups of images with the same bytes; near_duplicates: the nearest first, at most at one of
    distance_limits; checked: number of the total images outside the training split that were compared.
    """

    copies: list[list[int]]
    copies_total: int
    near_duplicates: list[DuplicatePair]
    near_duplicates_total: int
    distance_limits: list[float]
    checked: int
    total: int


class LabelErrors(TypedDict):
    """Labels that may be wrong.

    conflicting_duplicates: groups of images with the same bytes and different labels; suspected: training images whose
    label a classifier contradicts that was trained on all the others.
    """

    conflicting_duplicates: list[list[int]]
    conflicting_duplicates_total: int
    suspected: list[ListedImage]
    suspected_total: int
    n_train: int


class Outliers(TypedDict):
    """Images unlike the training images; rare_types: files of a rare type; checked: number of images compared."""

    rare_types: list[int]
    images: list[ListedImage]
    checked: int
    total: int


class MapPoint(NamedTuple):
    """The place of an image on the map, x and y in 0…1000."""

    x: int
    y: int
    image: int


class CodeMap(TypedDict):
    """The codes of a sample of the images in two dimensions; total: number of all images."""

    points: list[MapPoint]
    total: int
    backbone: str
    layer: str


class ImageStudy(TypedDict):
    """What one layer's codes say about a dataset's images; split_sizes: {split: number of images}."""

    layer: str
    leaks: SplitLeaks
    label_errors: LabelErrors
    outliers: Outliers
    code_map: CodeMap | None
    split_sizes: dict[str, int]


class DatasetSummary(TypedDict):
    """A dataset.

    folder: the folder that its images share, if they lie outside the dataset's own; bad_files: "path: reason" of each
    file that was skipped; study: None where no experiment's codes can be read.
    """

    classes: tuple[str, ...]
    folder: str
    bad_files: list[str]
    study: ImageStudy | None


class Comparison(TypedDict):
    """A paired test against the best experiment on the dataset.

    p: p-value of McNemar's test; differs: whether the difference is significant, all tests on the dataset taken
    together; both None for the best itself and for experiments on other test images.
    """

    best: bool
    p: float | None
    differs: bool | None


class ExperimentDetails(Scores):
    """An experiment.

    note: what could not be read, and why; per_class: the scores of each class; mistakes: the
    most confident ones, mistakes_total in all; least_certain: the test predictions of least confidence;
    mistakes_on_map: {image number: predicted class}; facts: names and values of the classifier's metadata.
    """

    name: str
    note: str
    confidence_kind: ConfidenceKind
    per_class: list[ClassScores]
    confusion_cells: list[ConfusionCell]
    mistakes: list[ListedImage]
    mistakes_total: int
    mistakes_on_map: dict[int, int]
    least_certain: list[ListedImage]
    calibration: Calibration | None
    reliability_chart: Chart | None
    path_chart: Chart | None
    facts: list[tuple[str, str]]


class ExperimentSummary(ExperimentDetails):
    """An experiment, compared with the best one on its dataset."""

    comparison: Comparison


class AdviceSummary(TypedDict):
    """What `advise` recommends for a dataset and backbone."""

    name: str
    sentences: list[str]
    charts: list[Chart]


class Summary(TypedDict):
    """All that the page shows.

    thumbnails: {image number: JPEG file in base64}, at most `budget` characters in all; parameters: the settings, as
    YAML; versions: {package: version}.
    """

    datasets: Mapping[str, DatasetSummary]
    experiments: list[ExperimentSummary]
    layer_charts: list[Chart]
    few_shot_charts: list[Chart]
    training_charts: list[Chart]
    advice: list[AdviceSummary]
    images: list[ImageEntry]
    thumbnails: dict[int, str]
    budget: int
    parameters: str
    versions: dict[str, str]
