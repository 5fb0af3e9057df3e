"""The settings of the commands that tell something of a dataset: advise, audit, suggest, report; and of run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config.base import Address, Command, OfCodes, OfDataset, OfLayer
from pipeline.config.fields import (
    DEVICE,
    EXPERIMENT,
    FILES,
    GROUP_BY,
    MACHINE,
    NEAR,
    NEAR_DISTANCE,
    NETWORK,
    STRICT,
    Counts,
    Decoder,
    Integer,
    Name,
    Names,
    Precision,
    Seed,
    Texts,
    setting,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Advise(OfCodes):
    """Settings of `advise`."""

    layer: Names | None = setting(
        None, "The layers to measure.", shown="all that have a friendly name", group=EXPERIMENT
    )
    images: Integer = setting(2000, "Number of training images to measure on, at most.", ge=1)
    large: Integer = setting(500, "Number of images per class from which a dataset counts as large.", ge=1)
    folds: Integer = setting(5, "Number of folds of the cross-validation.", ge=2)
    seed: Seed = setting(0, "Seed that draws the images and the folds.")
    group_by: str = setting("", GROUP_BY.format("in the same fold"))
    near_distance: float = setting(NEAR_DISTANCE, NEAR, gt=0, lt=1)
    models: Names = setting(
        ("svm", "softmax"),
        "The first model measures every layer, all of them the best layer.",
        key="models",
        group=EXPERIMENT,
    )
    curve: Counts = setting((), "Also measure accuracy from N images per class, layer by layer.", shown="no curve")
    relu: Literal["post", "pre", "both"] = setting(  # type: ignore[assignment]
        "post",
        "Whether codes are taken after (post) or before (pre) the layer's ReLU; with both, the curve shows either.",
        key="extract.relu",
        group=NETWORK,
    )
    precision: Precision = setting(
        "auto",
        "Precision of the forward pass; auto takes fp32, from which that of extract differs by rounding.",
        key="extract.precision",
        group=MACHINE,
    )
    decoder: Decoder = setting(
        "auto",
        "Decoder of JPEG files; auto takes pillow, from which that of extract differs little.",
        key="extract.decoder",
        group=MACHINE,
    )
    try_finetuning: bool = setting(
        False, "Also measure whether fine-tuning pays: a short run on some of the images, against the frozen layer."
    )
    try_minutes: float = setting(5.0, "Minutes that --try-finetuning may take, at most.", gt=0, le=10_000)
    drop_small_classes: bool = setting(
        False,
        "Leave out classes with fewer training images (or groups) than folds, as for classify.",
        key="classify.drop_small_classes",
    )
    device: Name = setting("auto", DEVICE, group=MACHINE)
    out: Path | None = setting(
        None, "Folder for the advice.", shown="reports/DATASET/BACKBONE/advice", in_file=False, group=FILES
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Audit(OfLayer):
    """Settings of `audit`."""

    folds: Integer = setting(5, "Number of folds; each image is judged by classifiers of the other folds.", ge=2)
    seed: Seed = setting(0, "Seed of the folds.")
    group_by: str = setting("", GROUP_BY.format("in the same fold"))
    near_distance: float = setting(NEAR_DISTANCE, NEAR, gt=0, lt=1)
    out: Path | None = setting(
        None,
        "The CSV file to be filled in.",
        shown="reports/DATASET/BACKBONE/LAYER-audit.csv",
        in_file=False,
        group=FILES,
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Suggest(Address):
    """Settings of `suggest`."""

    count: Integer = setting(50, "Number of images to label next.", ge=1)
    by: Literal["coverage", "margin", "entropy"] = setting(
        "coverage",
        "Those typical of images unlike the labelled ones (coverage), or those of which the classifier is least sure, "
        "by the margin between two classes or the entropy of all.",
    )
    out: Path | None = setting(
        None,
        "The CSV file to be filled in; a contact sheet, a PNG file, is written beside it.",
        shown="reports/DATASET/BACKBONE/LAYER-suggestions.csv",
        in_file=False,
        group=FILES,
    )

    def address_settings(self) -> list[str]:
        """Return the four words, or those that address codes where no classifier is asked."""
        return super().address_settings()[:-1] if self.by == "coverage" else super().address_settings()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report(OfDataset):
    """Settings of `report`."""

    dataset: Name | None = setting(None, "Show this dataset only.", shown="all", in_file=False, group=EXPERIMENT)
    backbone: Name | None = setting(
        None, "Show what was made with this backbone only.", shown="all", in_file=False, group=EXPERIMENT
    )
    layer: Name | None = setting(
        None, "Show what was made with this layer only.", shown="all", in_file=False, group=EXPERIMENT
    )
    reports: Path = setting(Path("reports"), "Folder of the scores.", in_file=False, group=FILES)
    out: Path | None = setting(
        None, "The page.", shown="index.html in the folder of the scores", in_file=False, group=FILES
    )
    thumbnails: float = setting(8.0, "Size of all thumbnails together, in megabytes, at most.", ge=0, le=1000)
    table: bool = setting(False, "Print the table only, and leave the page as it is.", in_file=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Run(Command):
    """Settings of `run`; those of its steps stand in their own sections of params.yaml."""

    source: str = setting(
        "", "The images: a folder, a CSV file or a dataset's name, as for prepare.", kind="positional", in_file=False
    )
    backbone: Texts = setting(
        ("efficientnet_lite0", "tinyvgg"),
        "The pretrained networks to choose from, by cross-validation on the training images.",
        group=EXPERIMENT,
    )
