"""The settings that several commands have, and the keys at the top level of params.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from pipeline.config.fields import (
    BACKBONE,
    DATASET,
    EXPERIMENT,
    LAYER,
    MACHINE,
    MODEL,
    NETWORK,
    STRICT,
    TASK,
    Decoder,
    Integer,
    Name,
    Names,
    Pool,
    Precision,
    Size,
    extra_of,
    setting,
)
from pipeline.errors import PipelineError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Project:
    """The keys at the top level of params.yaml, which address an experiment."""

    source: str = setting(
        "digits",
        "What `prepare` reads: a name, a folder of images, a CSV file, an archive or a URL; empty where "
        "prepare.unlabelled is all.",
    )
    dataset: Name = setting("digits", "Name of the prepared dataset: data/NAME, features/NAME and so on.")
    backbone: Name = setting("tinyvgg", BACKBONE)
    models: Names = setting(("svm", "softmax"), "The classifiers that `dvc repro` trains.")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Command:
    """The settings that all commands have."""

    quiet: bool = setting(False, "Print results only: no notes, no progress bar.", in_file=False, group=MACHINE)
    verbose: bool = setting(False, "Print details as well.", in_file=False, group=MACHINE)
    debug: bool = setting(False, "Show the traceback of an error.", in_file=False, group=MACHINE)

    def address_settings(self) -> list[str]:
        """Return the names of the settings that say which experiment the command works on."""
        settings: Any = type(self)
        fields = settings.__pydantic_fields__.items()
        return [name for name, field in fields if extra_of(field)["group"] == EXPERIMENT]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfDataset(Command):
    """What a command works on is a prepared dataset, or one of its tasks, which is then part of the dataset's name."""

    task: str = setting("", TASK, in_file=False, group=EXPERIMENT)

    def __post_init__(self) -> None:
        """Write the task behind the dataset, so that no other place has to know of tasks."""
        dataset = getattr(self, "dataset", None)
        if self.task and not dataset:
            raise PipelineError(f"--task {self.task} is one of a dataset's. Name the dataset with --dataset as well.")
        if self.task:
            object.__setattr__(self, "dataset", f"{dataset}@{self.task}")
            object.__setattr__(self, "task", "")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfBackbone(OfDataset):
    """The two words that address what there is of a backbone."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfLayer(OfBackbone):
    """The three words that address the codes of one layer."""

    layer: Name = setting(
        "fc7", "The layer whose codes are compared.", key="extract.layer", pick="last", group=EXPERIMENT
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Address(OfBackbone):
    """The four words that address one classifier."""

    layer: Name = setting("fc7", LAYER, key="extract.layer", pick="last", group=EXPERIMENT)
    model: Name = setting("svm", MODEL, key="models", pick="first", group=EXPERIMENT)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfCodes(OfBackbone):
    """The settings that determine codes: which weights see what of an image, and what is kept of their outputs.

    They stand in the section of `extract` for every command that builds such a network itself.
    """

    weights: Name = setting(
        "default",
        "Weights of the network: default, a name of torchvision's, a .pth or .safetensors file, random or random:SEED.",
        key="extract.weights",
        group=NETWORK,
    )
    pool: Pool = setting(
        "auto",
        "How maps become vectors: avg, max, flatten, avgN or maxN for a grid of N×N cells; of a transformer's tokens: "
        "cls, mean or cls+mean; auto takes what suits the backbone (avg; avg4 for tinyvgg; cls, or mean without one).",
        key="extract.pool",
        group=NETWORK,
    )
    size: Size | None = setting(
        None,
        "Image size that the network sees, in pixels: 320, or 448x336 for height x width, or test for the size at "
        "which timm tests the weights.",
        shown="the network's own",
        key="extract.size",
        group=NETWORK,
    )
    resize: Integer | None = setting(
        None,
        "Shorter side before the crop, in pixels.",
        shown="in proportion to --size",
        ge=1,
        key="extract.resize",
        group=NETWORK,
    )
    crop: Literal["auto", "center", "none"] = setting(
        "auto",
        "Whether the network sees the centre of the image, or all of it, resized to --size (none); auto does what the "
        "weights were trained with.",
        key="extract.crop",
        group=NETWORK,
    )
    views: Name = setting(
        "one",
        "Views of each image: one, flips, five, ten, cnnaug (16), random:K or random:K:SEED.",
        key="extract.views",
        group=NETWORK,
    )
    range: float | None = setting(
        None,
        "Value that is white in images of more than 8 bits, like 4095, or 1 for floating-point images.",
        shown="as prepared",
        gt=0,
        key="extract.range",
        group=NETWORK,
    )
    relu: Literal["post", "pre"] = setting(
        "post",
        "Whether codes are taken after (post) or before (pre) the layer's ReLU.",
        key="extract.relu",
        group=NETWORK,
    )
    precision: Precision = setting(
        "auto",
        "Precision of the forward pass; auto takes bf16 (fp16 on old GPUs) where a trial shows it right and faster.",
        key="extract.precision",
        group=MACHINE,
    )
    decoder: Decoder = setting(
        "auto",
        "Decoder of JPEG files; pillow-scaled decodes large ones at a fraction of their size. auto takes it, or "
        "torchcodec on a GPU, where a trial shows it right and faster.",
        key="extract.decoder",
        group=MACHINE,
    )
    dtype: Literal["float32", "float16"] = setting(
        "float32", "Type in which codes are stored.", key="extract.dtype", group=MACHINE
    )

    @property
    def fixed_precision(self) -> str:
        """The precision; "" where it is left open."""
        return "" if self.precision == "auto" else self.precision

    @property
    def fixed_decoder(self) -> str:
        """The decoder; "" where it is left open."""
        return "" if self.decoder == "auto" else self.decoder

    def framing(self, max_value: float) -> dict[str, Any]:
        """Return the arguments of `Framing.sized`; max_value: the value that is white in the dataset's images."""
        fit = {"auto": "", "center": "crop", "none": "whole"}[self.crop]
        white = self.range or max_value
        return {"size": self.size, "resize": self.resize, "fit": fit, "views": self.views, "max_value": white}
