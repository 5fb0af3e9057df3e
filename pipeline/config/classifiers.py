"""The settings of the commands that train, score and use classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config.base import Address, OfBackbone
from pipeline.config.fields import (
    CLASSIFIER,
    CLASSIFIER_SHOWN,
    CODES,
    CODES_SHOWN,
    DEVICE,
    EXPERIMENT,
    FILES,
    GROUP_BY,
    MACHINE,
    NEAR,
    NEAR_DISTANCE,
    NETWORK,
    NEW_IMAGES,
    SPEC,
    STRICT,
    THREADS,
    WEIGHTS_NOW,
    WHITE_OF_NEW,
    BatchSize,
    Counts,
    Grid,
    Integer,
    Name,
    Names,
    PoolName,
    Seed,
    Texts,
    Threads,
    setting,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Classify(Address):
    """Settings of `classify`."""

    grid: Grid | None = setting(
        None,
        "Settings to search: {normalisation: {parameter: [values]}}.",
        shown="the model's section of params.yaml, or the program's grid",
        in_file=False,
    )
    folds: Integer = setting(5, "Number of folds of the cross-validation.", ge=2)
    seed: Seed = setting(0, "Seed of the folds and draws.")
    group_by: str = setting("", GROUP_BY.format("in the same fold"))
    near_distance: float = setting(NEAR_DISTANCE, NEAR, gt=0, lt=1)
    weight_by: str = setting(
        "",
        "Column of the manifest that says how often each training image counts: 2 counts twice, 0 leaves it out.",
        shown="all once",
    )
    drop_small_classes: bool = setting(
        False, "Leave out classes with fewer training images (or groups) than folds; their test images count as errors."
    )
    rule: Literal["best", "one-standard-error"] = setting(
        "best", "Which setting is taken: the best, or the most regularised one within one standard error of it."
    )
    extend_grid: Integer = setting(2, "How often a grid may be extended where its best value lies at an edge.", ge=0)
    search_images: Integer = setting(
        0,
        "Number of training images on which the setting is chosen, the same share of each class; the classifier then "
        "learns from all. 0 takes all.",
        ge=0,
    )
    nested: bool = setting(False, "Also estimate the accuracy of the whole procedure by nested cross-validation.")
    calibrate: bool = setting(False, "Give an SVM probabilities, fitted on held-out folds.")
    memory: str = setting(
        "", "Memory for codes and search, like 2GB; codes beyond it are read from disk in blocks.", shown="no limit"
    )
    shots: Counts = setting(
        (), "Train from so many images per class only, and show accuracy against their number.", in_file=False
    )
    draws: Integer = setting(5, "Number of draws of the images for --shots.", ge=2)
    unlabelled: Literal["self-training", "label-spreading"] | None = setting(
        None,
        "Learn from the images without a label as well, by this way to guess their labels, and say what that brings; "
        "with --shots, also from the training images that a draw does not take.",
        shown="labelled images only",
    )
    source: str = setting("", "Another dataset with this one's classes, to learn from with --adapt.", in_file=False)
    adapt: Literal["density-ratio", "easyadapt", "em", "bbse"] | None = setting(
        None,
        "How the source's images help: weighted by how like this dataset's they are (density-ratio), with features "
        "that both share and features of each (easyadapt), or by a classifier trained on them, corrected for the "
        "shares of classes among this dataset's images, whose labels it does not look at (em, bbse).",
        in_file=False,
    )
    source_map: Path | None = setting(
        None,
        "CSV file for --model source-map with the columns source and class: which class each of the network's own "
        "classes stands for.",
        shown="learned from the training images",
        group=FILES,
    )
    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(None, "File for the classifier.", shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    weights: str = setting("", SPEC.format("weights"), group=FILES)
    pool: PoolName = setting("", SPEC.format("pooling"), group=FILES)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate(Address):
    """Settings of `evaluate`."""

    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(
        None, "Folder for the scores.", shown="reports/DATASET/BACKBONE/LAYER-MODEL", in_file=False, group=FILES
    )
    near_distance: float | None = setting(None, NEAR, shown="as the classifier was trained", gt=0, lt=1)

    def address_settings(self) -> list[str]:
        """Return the four words, and the classifier where another file holds it."""
        return [*super().address_settings(), *(["classifier"] if self.classifier else [])]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Select(OfBackbone):
    """Settings of `select`."""

    layer: Names = setting(
        ("fc7",), "The layers whose classifiers to select from.", key="extract.layer", group=EXPERIMENT
    )
    model: Names = setting(("svm", "softmax"), "The classifiers to select from.", key="models", group=EXPERIMENT)
    out: Path = setting(Path("reports/best.json"), "File for the scores.", in_file=False, group=FILES)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Predict(Address):
    """Settings of `predict`."""

    images: Texts = setting((), NEW_IMAGES, kind="positional", in_file=False)
    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    top: Integer = setting(1, "Number of classes to name per image, the best first.", ge=1)
    range: float | None = setting(None, WHITE_OF_NEW, shown="as in the training images", gt=0)
    format: Literal["csv", "json"] = setting("csv", "Format of the output: CSV, or one JSON object per line.")
    source_classes: bool = setting(
        False,
        "Name the classes that the network itself was trained on, such as ImageNet's, instead of a classifier's; of "
        "the four words, --backbone alone counts then.",
        in_file=False,
        group=NETWORK,
    )
    weights: str = setting(
        "",
        "Where the backbone's weights are now, if they were moved; with --source-classes, its weights as for extract.",
        in_file=False,
        group=FILES,
    )
    device: Name = setting("auto", DEVICE, group=MACHINE)
    batch_size: BatchSize = setting(
        0, "Number of images per forward pass; 0 takes what suits the device.", group=MACHINE
    )
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)

    def address_settings(self) -> list[str]:
        """Return the backbone that is asked for its own classes, a classifier's file, or the four words."""
        return (
            ["backbone"] if self.source_classes else ["classifier"] if self.classifier else super().address_settings()
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Export(Address):
    """Settings of `export`."""

    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    codes: Literal["parquet", "npy", "csv", "zarr", "h5"] | None = setting(
        None,
        "Write the layer's codes in this format, for other tools, instead of network and classifier; of the four "
        "words, --model does not count then. h5 joins the shards of `extract --shards` in one file.",
        in_file=False,
    )
    weights: str = setting("", WEIGHTS_NOW, in_file=False, group=FILES)
    out: Path | None = setting(
        None,
        "The file.",
        shown="beside the classifier; of codes, exports/DATASET/BACKBONE/LAYER.FORMAT",
        in_file=False,
        group=FILES,
    )

    def address_settings(self) -> list[str]:
        """Return the words that address codes, a classifier's file, or the four words."""
        words = super().address_settings()
        return words[:-1] if self.codes else ["classifier"] if self.classifier else words


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Compare(OfBackbone):
    """Settings of `compare`."""

    layer: Names = setting(("fc7",), "The layers whose frozen codes compete.", key="extract.layer", group=EXPERIMENT)
    model: Names = setting(("svm", "softmax"), "The classifiers of frozen codes.", key="models", group=EXPERIMENT)
    tuned_layer: str = setting("", "The layer that fine-tuning reads.", shown="the last of --layer")
    tuned_model: str = setting("", "The classifier that fine-tuning starts from.", shown="the last of --model")
    seeds: Integer = setting(5, "Number of seeds, from 0 on.", ge=1)
    group_by: str = setting(
        "",
        GROUP_BY.format("on the same side of folds and of the validation share"),
        shown="as for classify and finetune",
    )
    near_distance: float = setting(NEAR_DISTANCE, NEAR, gt=0, lt=1)
    out: Path | None = setting(
        None, "Folder for comparison.csv.", shown="reports/DATASET/BACKBONE", in_file=False, group=FILES
    )
    flags: Texts = setting((), "Flags of pipeline.finetune, after --.", kind="positional", in_file=False)
