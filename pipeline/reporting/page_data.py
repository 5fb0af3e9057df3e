"""The types of the report's data, as the template and the script of the page read them.

Named tuples are arrays in the page's JSON, where there are many of them. An image is given by its number: its place in
`Summary.images`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, NotRequired, TypedDict

from pipeline.analysis.predictions import Calibration, ClassScores, PairedDifference
from pipeline.analysis.source_view import ClassView
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
    """An image near another image, and the distance between their codes, 1 - cosine, in [0, 2]."""

    image: int
    distance: float


class Card(TypedDict):
    """One image, or several that belong together, as an entry of a list.

    cluster: number of the cluster whose images these are; predicted: class predicted for the image, with this
    confidence; missed, wrong: of a multi-label image, its classes that are not predicted, and the predicted ones that
    it does not have; distance: between the two images of a pair; nearest: the nearest images, which are training
    images where there are any, but in a list of images without labels.
    """

    images: list[int]
    cluster: NotRequired[int]
    predicted: NotRequired[int]
    missed: NotRequired[list[int]]
    wrong: NotRequired[list[int]]
    confidence: NotRequired[float]
    distance: NotRequired[float]
    nearest: NotRequired[list[Neighbour]]


class ImageList(TypedDict):
    """A list that the page shows as cards and gives as a CSV file.

    cards: the first of `found`, which were found among `checked` of `total` images; limit: the largest distance of the
    pairs of a list of near-duplicates; silhouette, tried: of clusters, as in `clusters.Clusters`.
    """

    cards: list[Card]
    found: int
    checked: int
    total: int
    limit: NotRequired[float]
    silhouette: NotRequired[float]
    tried: NotRequired[int]


class ConfusionCell(NamedTuple):
    """The number n of test images with this label and predicted class, and a few of these images."""

    label: int
    predicted: int
    n: int
    images: list[int]


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
    """What one layer's codes say about a dataset's images.

    layer: backbone and layer; split_sizes: {split, or "unlabelled": number of images}.
    """

    layer: str
    split_sizes: dict[str, int]
    code_map: CodeMap | None


class NextStep(TypedDict):
    """What to do next: why, and the commands that do it, one after the other, each only if the one before succeeds."""

    reason: str
    commands: list[str]


class Verdict(TypedDict):
    """What to know first about a dataset; its first experiment is the best, its second comes next.

    compared: number of experiments from which the best was chosen; validated: whether validation accuracies chose it,
    not the test images; left_out: number of experiments without a validation accuracy, which could not be chosen;
    most_frequent: share of the test images that the most frequent class has; difference: of the best to the second on
    the test images, None where these differ or there is no second; comparable, apart: number of other experiments on
    the same test images, and how many of them differ significantly from the best.
    """

    compared: int
    validated: bool
    left_out: int
    most_frequent: float
    difference: PairedDifference | None
    comparable: int
    apart: int
    next_step: NextStep


class DatasetSummary(TypedDict):
    """A dataset.

    folder: the folder that its images share, if they lie outside the dataset's own; bad_files: "path: reason" of each
    file that was skipped; study: None where no experiment's codes can be read; lists: {name: images worth a look};
    verdict: of a dataset with experiments; next_step: of one without.
    """

    classes: tuple[str, ...]
    folder: str
    bad_files: list[str]
    study: ImageStudy | None
    lists: dict[str, ImageList]
    verdict: NotRequired[Verdict]
    next_step: NotRequired[NextStep]


class Comparison(TypedDict):
    """A paired test against the best experiment on the dataset.

    p: p-value of McNemar's test; differs: whether the difference is significant, all tests on the dataset taken
    together; both None for the best itself and for experiments on other test images.
    """

    best: bool
    p: float | None
    differs: bool | None


class MeasuredGain(TypedDict):
    """What further images brought to a classifier on held-out training images.

    together, alone: accuracy with the further images and without them; difference: between the two, with its paired 95%
    interval low…high.
    """

    together: float
    alone: float
    difference: float
    low: float
    high: float


class UnlabelledGain(MeasuredGain):
    """What images without a label brought; labels: the labelled images that were learned from, in words."""

    method: str
    labels: str


class ClassShare(TypedDict):
    """A class and its share in [0, 1] among a source's training images, and among a dataset's images as estimated."""

    name: str
    before: float
    now: float


class AdaptedClassifier(TypedDict):
    """How another dataset, the source, was used for a classifier.

    images: number of images of the source that were learned from, or of the dataset's own that told the shares;
    effective: as how many equally weighted images the source's count, None where all count once; gain: what the
    source's images brought, None where only the shares of its classes were corrected; shares: then these.
    """

    source: str
    method: str
    images: int
    effective: float | None
    gain: MeasuredGain | None
    shares: list[ClassShare]


class ExperimentDetails(Scores):
    """An experiment.

    note: what could not be read, and why; network: the
    settings of `extract` that give its codes, {} if they cannot be read; per_class: the scores of each class; lists:
    {name: images worth a look}; mistakes_on_map: {image number: predicted class}; facts: names and values of the
    classifier's metadata; unlabelled_gains: what `classify --unlabelled` measured; adapted: what
    `classify --adapt` did.
    """

    name: str
    note: str
    confidence_kind: ConfidenceKind
    network: dict[str, object]
    per_class: list[ClassScores]
    confusion_cells: list[ConfusionCell]
    lists: dict[str, ImageList]
    mistakes_on_map: dict[int, int]
    calibration: Calibration | None
    reliability_chart: Chart | None
    path_chart: Chart | None
    facts: list[tuple[str, str]]
    unlabelled_gains: list[UnlabelledGain]
    adapted: AdaptedClassifier | None


class IntervalBar(NamedTuple):
    """A score and its interval as places in a drawing, in percent of its width."""

    low: float
    score: float
    high: float


class ExperimentSummary(ExperimentDetails):
    """An experiment beside the others on its dataset; bar: its top-1, on one scale with the others'."""

    comparison: Comparison
    bar: IntervalBar


class AdviceSummary(TypedDict):
    """What `advise` recommends for a dataset and backbone.

    layer: the one to take; as_good: this one, and the layers within its interval; fine_tune: whether to train the
    network as well; tried: whether that was measured; sentences: the advice in plain words; measures: the sentences
    about the measures behind it. Where there is no advice, the only sentence says why, and all else is empty.

    source_classes: what the pretrained network sees in each class, empty where its own classes are not known.
    """

    dataset: str
    backbone: str
    layer: str
    as_good: list[str]
    fine_tune: bool
    tried: bool
    sentences: list[str]
    measures: list[str]
    charts: list[Chart]
    source_classes: list[ClassView]


class WeighedClass(TypedDict):
    """A class of a source dataset, its shares in the source and in the target, in [0, 1], and the weight, 0 or more.

    examples: some of its training images as JPEG files in base64, where the source is a dataset that is at hand.
    """

    name: str
    p_source: float
    p_target: float
    weight: float
    examples: list[str]


class WeighedSource(TypedDict):
    """What `weigh` found for a dataset and backbone.

    judge: what weighed, in words; n_images: number of images that it looked at; n_classes: of the source; effective: as
    how many equally weighted classes they count; heaviest, lightest: some of them; figure: PNG in base64, or "".
    """

    dataset: str
    backbone: str
    judge: str
    n_images: int
    n_classes: int
    effective: float
    heaviest: list[WeighedClass]
    lightest: list[WeighedClass]
    figure: str


class LabelScores(NamedTuple):
    """Scores of one label of multi-label images: average precision, precision, recall, and its number of images."""

    average_precision: float
    precision: float
    recall: float
    support: int


class MultiLabelExperiment(Scores):
    """An experiment on multi-label images.

    held_out: cross-validated mean average precision, None if the classifier's metadata cannot be read.
    """

    name: str
    held_out: float | None
    per_class: list[LabelScores]


class MultiLabelDataset(TypedDict):
    """A dataset of multi-label images; experiments: the best first; lists: of the best experiment's mistakes."""

    classes: list[str]
    folder: str
    experiments: list[MultiLabelExperiment]
    lists: dict[str, ImageList]


class Summary(TypedDict):
    """All that the page shows.

    thumbnails: {image number: JPEG file in base64}, at most `budget` characters in all; parameters: the settings, as
    YAML; versions: {package: version}.
    """

    datasets: Mapping[str, DatasetSummary]
    experiments: list[ExperimentSummary]
    multi_label: Mapping[str, MultiLabelDataset]
    layer_charts: list[Chart]
    few_shot_charts: list[Chart]
    training_charts: list[Chart]
    advice: list[AdviceSummary]
    source_weights: list[WeighedSource]
    images: list[ImageEntry]
    thumbnails: dict[int, str]
    budget: int
    parameters: str
    versions: dict[str, str]
