"""The settings of every command: one frozen dataclass each, whose fields are its flags and its keys in params.yaml.

pydantic checks them, because it reads strings from the command line and values from YAML by the same types, and its
errors name the place, the value and the choices. argparse (`command_line`) stays in charge of the command line itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from pipeline import yaml_text

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def setting(
    default: Any,
    help: str,
    *,
    key: str = "",
    pick: Literal["", "first", "last"] = "",
    group: str = "",
    shown: str = "",
    kind: Literal["flag", "positional", "optional"] = "flag",
    replaces: str = "",
    in_file: bool = True,
    **bounds: float,
) -> Any:
    """Describe a setting.

    key: where its default stands in params.yaml, if not under its own name in the command's section; `pick` then takes
    the first or last item of a list. shown: what `--help` says of the default, where that depends on other settings.
    kind: "positional" for arguments without a flag, "optional" for a flag whose value may be left out. replaces: a
    setting whose default does not hold where this flag is given. in_file: whether params.yaml may hold it. bounds: ge,
    gt, le, lt.
    """
    extra = {
        "key": key,
        "pick": pick,
        "group": group,
        "shown": shown,
        "kind": kind,
        "replaces": replaces,
        "in_file": in_file,
    }
    return Field(default=default, description=help, json_schema_extra=extra, **bounds)  # type: ignore[call-overload]


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """Return what `setting` was told about a field."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _as_list(value: Any) -> Any:
    """Take a single value for a list of one."""
    return [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _as_text(value: Any) -> Any:
    """Take a whole number for its digits."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _from_yaml(value: Any) -> Any:
    """Parse a grid that stands on the command line."""
    if not isinstance(value, str):
        return value
    try:
        return yaml_text.load(value)
    except ValueError as error:
        raise ValueError(f"it is not valid YAML ({error}). Write it like {{l2: {{C: [0.1, 1, 10]}}}}") from error


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_as_list)]
Integer = Annotated[int, Field(le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
BatchSize = Annotated[int, Field(ge=0, le=65536)]
Counts = Annotated[tuple[Annotated[Integer, Field(ge=1)], ...], BeforeValidator(_as_list)]
Normalisation = Literal["l2", "standard", "sqrt", "centred"]
Values = Annotated[list[Any], Field(min_length=1)]
Grid = Annotated[dict[Normalisation, dict[str, Values]], Field(min_length=1), BeforeValidator(_from_yaml)]
"""{normalisation of the codes: {parameter: values to try}}."""


def _as_in_spec(value: Any) -> Any:
    """Write cls+mean as in the spec of codes, where + separates layers."""
    return value.replace("cls+mean", "cls_mean") if isinstance(value, str) else value


Pool = Annotated[
    str, BeforeValidator(_as_in_spec), Field(pattern=r"^(|auto|(avg|max)([1-9]\d?)?|flatten|cls|mean|cls_mean)$")
]
Size = Annotated[str, BeforeValidator(_as_text)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Decoder = Literal["auto", "pillow", "pillow-scaled", "torchcodec"]

GRIDS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "svm": {"l2": {"C": [1, 10, 100, 1000, 10000]}, "standard": {"C": [0.0001, 0.001, 0.01]}},
    "softmax": {"l2": {"C": [10, 100, 1000, 10000]}, "standard": {"C": [0.001, 0.01, 0.1, 1]}},
    "knn": {"l2": {"n_neighbors": [1, 3, 5, 10, 20]}},
    "ridge": {"l2": {"alpha": [0.001, 0.01, 0.1, 1]}, "standard": {"alpha": [10, 100, 1000, 10000]}},
    "ncm": {"centred": {}},
}
"""The grid that each model is searched over, unless params.yaml has a section of the model's name."""

GROUPS = EXPERIMENT, SETTINGS, RECIPE, NETWORK, MACHINE, FILES = (
    "Which experiment",
    "Settings of this command",
    "Settings of the recipe, where its own are not to be taken",
    "The network, and what it sees",
    "How the work is done",
    "Files",
)
"""The titles under which `--help` lists the flags, in that order."""

DATASET = "The prepared dataset: its name under data/, or its folder."
BACKBONE = "The pretrained network."
LAYER = "The layer whose codes are used; fc6+fc7 joins the codes of both."
MODEL = "The classifier."
DEVICE = "Where the network runs: auto, cpu, cuda, cuda:1 or mps."
THREADS = "Number of threads that read and decode images."
CODES = "HDF5 file of the codes."
CODES_SHOWN = "features/DATASET/BACKBONE/LAYER.h5"
CLASSIFIER = "File of the trained classifier."
CLASSIFIER_SHOWN = "models/DATASET/BACKBONE/LAYER-MODEL.skops"
SPEC = "Refuse codes that were made with other {}."
NEW_IMAGES = "Image files, folders with all files below them, or - for paths on standard input."
WEIGHTS_NOW = "Where the backbone's weights are now, if they were moved."

NEAR_DUPLICATES = "near-duplicates"
"""What --group-by takes instead of a column, to group images by the distance of their codes."""

NEAR_DISTANCE = 0.05
"""How close near-duplicates are: most crops by 5% and most JPEG files that were saved again, few other photos."""

WHITE_OF_NEW = (
    "Value that is white in the new images, like 255 or 4095, where their depth is not that of the dataset's images."
)

GROUP_BY = (
    f"Column of the dataset's CSV file, or {NEAR_DUPLICATES}: images with the same value there, or nearly the same "
    "codes, stay {}."
)
NEAR = (
    "How close near-duplicates are: the distance of their codes (1 - cosine), as a share of the median distance "
    "between two training images."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Project:
    """The keys at the top level of params.yaml, which address an experiment."""

    source: str = setting(
        "digits",
        "What `prepare` reads: a name, a folder of images, or a CSV file; empty where prepare.unlabelled is all.",
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

    def address(self) -> list[str]:
        """Return the names of the settings that say which experiment the command works on."""
        settings: Any = type(self)
        fields = settings.__pydantic_fields__.items()
        return [name for name, field in fields if extra_of(field)["group"] == EXPERIMENT]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prepare(Command):
    """Settings of `prepare`."""

    dataset: str = setting(
        "digits",
        "The images: a dataset's name, a folder, or a CSV file with the columns path, label and, if you like, split "
        "(or the column labels, as in cat;dog, for several labels per image).",
        key="source",
        group=EXPERIMENT,
    )
    unlabelled: str = setting(
        "",
        "Images without labels: a folder, read at any depth, or a CSV file with the column path; beside --dataset, or "
        "alone.",
        replaces="dataset",
        group=EXPERIMENT,
    )
    out: Path | None = setting(None, "Folder of the prepared dataset.", shown="data/NAME", group=FILES)
    test: float = setting(
        0.25, "Share of each class that becomes the test split, where the source has no splits.", ge=0, lt=1
    )
    val: float = setting(
        0.0, "Share of each class that becomes the validation split, where the source has no splits.", ge=0, lt=1
    )
    seed: Seed = setting(0, "Seed of the drawn splits.")
    group_by: str = setting("", "Column of the CSV file: images with the same value there stay in the same split.")
    corrections: Texts = setting(
        (),
        "CSV files with the columns path, action (relabel, drop or move) and to (a class or split), such as `audit` "
        "and `suggest` write and a person fills in; several are applied one after the other.",
        shown="none",
    )
    layout: Literal["auto", "classes", "splits", "class-splits"] = setting(
        "auto",
        "How a folder is read: its folders are classes, or splits with folders of classes within, or classes with "
        "folders of splits within; auto tells by the names, and asks where there are two ways.",
    )
    range: float | None = setting(
        None,
        "Value that is white in images of more than 8 bits, like 4095, or 1 for floating-point images.",
        shown="the smallest usual one that holds all values",
        gt=0,
    )
    overwrite: bool = setting(False, "Replace a dataset of the same name that holds another source.", in_file=False)
    on_bad: Literal["skip", "error"] = setting("skip", "Whether files that cannot be read are skipped, or end the run.")
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfCodes(Command):
    """The settings that determine codes: which weights see what of an image, and what is kept of their outputs.

    They stand in the section of `extract` for every command that builds the network anew.
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Extract(OfCodes):
    """Settings of `extract`."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
    layer: Names = setting(("fc7",), "One layer or several, which one pass serves.", group=EXPERIMENT)
    device: Name = setting("auto", DEVICE, group=MACHINE)
    batch_size: BatchSize = setting(
        0, "Number of images per forward pass; 0 takes what suits the device.", group=MACHINE
    )
    compile: Literal["auto", "yes", "no"] = setting(
        "auto", "Whether to compile the network; auto does where the run is long enough to repay it.", group=MACHINE
    )
    compress: bool = setting(False, "Compress the finished files with LZF.", group=MACHINE)
    max_bad: float = setting(
        0.1, "Share of images that may be unreadable; with more the run fails.", ge=0, le=1, group=MACHINE
    )
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)
    out: Path | None = setting(None, "Folder for LAYER.h5.", shown="features/DATASET/BACKBONE", group=FILES)
    list: str | None = setting(
        None, "Show the backbones, or one backbone's layers, and end.", kind="optional", in_file=False, group=FILES
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Address(Command):
    """The four words that address one classifier."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
    layer: Name = setting("fc7", LAYER, key="extract.layer", pick="last", group=EXPERIMENT)
    model: Name = setting("svm", MODEL, key="models", pick="first", group=EXPERIMENT)


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
    drop_small_classes: bool = setting(
        False, "Leave out classes with fewer training images (or groups) than folds; their test images count as errors."
    )
    rule: Literal["best", "one-standard-error"] = setting(
        "best", "Which setting is taken: the best, or the most regularised one within one standard error of it."
    )
    extend_grid: Integer = setting(2, "How often a grid may be extended where its best value lies at an edge.", ge=0)
    nested: bool = setting(False, "Also estimate the accuracy of the whole procedure by nested cross-validation.")
    calibrate: bool = setting(False, "Give an SVM probabilities, fitted on held-out folds.")
    memory: str = setting(
        "", "Memory for codes and search, like 2GB; codes beyond it are read from disk in blocks.", shown="no limit"
    )
    shots: Counts = setting(
        (), "Train from so many images per class only, and show accuracy against their number.", in_file=False
    )
    draws: Integer = setting(5, "Number of draws of the images for --shots.", ge=2)
    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(None, "File for the classifier.", shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    weights: str = setting("", SPEC.format("weights"), group=FILES)
    pool: Annotated[str, BeforeValidator(_as_in_spec)] = setting("", SPEC.format("pooling"), group=FILES)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate(Address):
    """Settings of `evaluate`."""

    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(
        None, "Folder for the scores.", shown="reports/DATASET/BACKBONE/LAYER-MODEL", in_file=False, group=FILES
    )
    near_distance: float | None = setting(None, NEAR, shown="as the classifier was trained", gt=0, lt=1)

    def address(self) -> list[str]:
        """Return the four words, and the classifier where another file holds it."""
        return [*super().address(), *(["classifier"] if self.classifier else [])]


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

    def address(self) -> list[str]:
        """Return the backbone that is asked for its own classes, a classifier's file, or the four words."""
        return ["backbone"] if self.source_classes else ["classifier"] if self.classifier else super().address()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Similar(Command):
    """Settings of `similar`."""

    images: Texts = setting((), NEW_IMAGES, kind="positional", in_file=False)
    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
    layer: Name = setting(
        "fc7", "The layer whose codes are compared.", key="extract.layer", pick="last", group=EXPERIMENT
    )
    count: Integer = setting(10, "Number of similar images to name per image, the most similar first.", ge=1)
    range: float | None = setting(None, WHITE_OF_NEW, shown="as in the dataset's images", gt=0)
    weights: str = setting("", WEIGHTS_NOW, in_file=False, group=FILES)
    device: Name = setting("auto", DEVICE, group=MACHINE)
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)
    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(
        None,
        "The contact sheet, a PNG file.",
        shown="reports/DATASET/BACKBONE/LAYER-similar.png",
        in_file=False,
        group=FILES,
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Export(Address):
    """Settings of `export`."""

    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    codes: Literal["parquet", "npy", "csv"] | None = setting(
        None,
        "Write the layer's codes in this format, for other tools, instead of network and classifier; of the four "
        "words, --model does not count then.",
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

    def address(self) -> list[str]:
        """Return the words that address codes, a classifier's file, or the four words."""
        words = super().address()
        return words[:-1] if self.codes else ["classifier"] if self.classifier else words


def of_recipe(help: str, **bounds: Any) -> Any:
    """Describe a setting that a recipe has as well; it is None where the recipe's own holds."""
    return setting(None, help, group=RECIPE, **bounds)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune(Address):
    """Settings of `finetune`; those of a recipe are None where the preset's value holds."""

    unfreeze: str = setting("all", "Train the backbone from this layer on: a layer, all, or none.")
    head: Literal["classifier", "random"] = setting(
        "classifier", "What the head starts from: the trained classifier of the codes, or random weights."
    )
    recipe: Literal["tutorial", "modern", "scratch"] = setting("modern", "Preset of the settings that are listed next.")
    val: float = setting(
        0.15, "Share of training images that decides which weights are best, without a val split.", ge=0, lt=1
    )
    seed: Seed = setting(0, "Seed of order, augmentation, dropout, validation share and random head.")
    group_by: str = setting("", GROUP_BY.format("on the same side of that share"))
    near_distance: float = setting(NEAR_DISTANCE, NEAR, gt=0, lt=1)
    sample_by: Path | None = setting(
        None,
        "CSV file with the weight of each class, as weigh writes it, by which training images are drawn.",
        shown="none",
    )
    sampling: Literal["repeat", "exhaust", "loss"] = setting(
        "repeat",
        "How these weights count: images are drawn in proportion and may come again (repeat), or may not (exhaust), or "
        "all are drawn and their losses are weighted (loss).",
    )
    draws: Integer = setting(0, "Number of training images per epoch; 0 for as many as there are.", ge=0)
    deterministic: bool = setting(False, "Compute the same bits in every run, on a GPU too.", group=MACHINE)
    restart: bool = setting(False, "Discard what an earlier run left unfinished.", in_file=False, group=MACHINE)
    checkpoint_every: float = setting(
        300.0, "Seconds between checkpoints within an epoch; each epoch ends with one as well.", ge=0, group=MACHINE
    )
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "Precision of the training steps.", group=MACHINE)
    compile: bool = setting(False, "Compile the steps, which pays on a GPU over many epochs.", group=MACHINE)
    device: Name = setting("auto", DEVICE, group=MACHINE)
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)
    weights: str = setting(
        "", "Weights of the backbone, or where they are now.", shown="those of the classifier", group=NETWORK
    )
    pool: Pool = setting("", "How maps become vectors, with --head random.", shown="as for extract", group=NETWORK)
    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(
        None,
        "File for the weights.",
        shown="models/DATASET/BACKBONE/LAYER-finetuned.safetensors",
        in_file=False,
        group=FILES,
    )
    report: Path | None = setting(
        None, "Folder for epochs.csv.", shown="reports/DATASET/BACKBONE/LAYER-finetuned", in_file=False, group=FILES
    )
    optimiser: Literal["sgd", "nesterov", "adamw"] | None = of_recipe("Optimiser of the steps.")
    schedule: Literal["constant", "step", "cosine", "one-cycle"] | None = of_recipe(
        "Schedule of all learning rates over the epochs."
    )
    epochs: Integer | None = of_recipe("Epochs of the network, or of the head alone with --unfreeze none.", ge=0)
    head_epochs: Integer | None = of_recipe("Epochs of the head alone, before those of the network.", ge=0)
    batch_size: BatchSize | None = of_recipe("Number of images per step.", ge=1)
    lr_head: float | None = of_recipe("Learning rate of the head.", ge=0)
    lr_backbone: float | None = of_recipe("Learning rate of the last layer before the head.", ge=0)
    lr_decay: float | None = of_recipe("Factor of the learning rate from each layer to the layer before it.", ge=0)
    weight_decay: float | None = of_recipe("Weight decay.", ge=0)
    decay_all: bool | None = of_recipe("Whether weight decay reaches biases and normalisation layers as well.")
    label_smoothing: float | None = of_recipe("Share of each label that is spread over all classes.", ge=0, le=1)
    dropout: float | None = of_recipe("Share of the codes that the head does not see in a step.", ge=0, le=1)
    batch_norm: Literal["frozen", "trained"] | None = of_recipe(
        "Statistics of batch norm in the trained layers: as they are (frozen), or those of each batch (trained)."
    )
    augment: Literal["none", "crop", "gentle", "shift"] | None = of_recipe("Augmentation of training images.")
    flip: float | None = of_recipe("Share of training images that are mirrored.", ge=0, le=1)
    patience: Integer | None = of_recipe(
        "Number of epochs without a better one after which training stops; 0 never stops.", ge=0
    )
    small_epochs: Integer | None = of_recipe("Number of first epochs of the network that see smaller images.", ge=0)
    small_side: Integer | None = of_recipe("Side of these smaller images, in pixels.", ge=0)

    def address(self) -> list[str]:
        """Return the four words, and the classifier where another file holds it."""
        return [*super().address(), *(["classifier"] if self.classifier else [])]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weigh(Address):
    """Settings of `weigh`."""

    source: str = setting(
        "",
        "Source dataset whose classes are weighed, by its classifier of the same layer. Without it, the network weighs "
        "the classes that it was trained on by its own head.",
        in_file=False,
    )
    temperature: float = setting(
        1.0, "The network's scores are divided by it: above 1, weights become more alike.", gt=0, le=1000
    )
    weights: Name = setting(
        "default", "Weights of the backbone, whose own head weighs.", key="extract.weights", group=NETWORK
    )
    device: Name = setting("auto", DEVICE, group=MACHINE)
    out: Path | None = setting(
        None, "Folder for the results.", shown="reports/DATASET/BACKBONE/source_weights", in_file=False, group=FILES
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Advise(OfCodes):
    """Settings of `advise`."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
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
class Compare(Command):
    """Settings of `compare`."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Select(Command):
    """Settings of `select`."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
    layer: Names = setting(
        ("fc7",), "The layers whose classifiers to select from.", key="extract.layer", group=EXPERIMENT
    )
    model: Names = setting(("svm", "softmax"), "The classifiers to select from.", key="models", group=EXPERIMENT)
    out: Path = setting(Path("reports/best.json"), "File for the scores.", in_file=False, group=FILES)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report(Command):
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
class Audit(Command):
    """Settings of `audit`."""

    dataset: Name = setting("digits", DATASET, key="dataset", group=EXPERIMENT)
    backbone: Name = setting("tinyvgg", BACKBONE, key="backbone", group=EXPERIMENT)
    layer: Name = setting(
        "fc7", "The layer whose codes are compared.", key="extract.layer", pick="last", group=EXPERIMENT
    )
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

    def address(self) -> list[str]:
        """Return the four words, or those that address codes where no classifier is asked."""
        return super().address()[:-1] if self.by == "coverage" else super().address()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Cache(Command):
    """Settings of `cache`."""

    features: Path = setting(Path("features"), "Folder of all codes.", in_file=False, group=FILES)
    models: Path = setting(Path("models"), "Folder of all classifiers.", in_file=False, group=FILES)
    prune: bool = setting(False, "Remove what is cached; codes and classifiers stay.", in_file=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Verify(Command):
    """Settings of `verify`."""

    file: Path = setting(Path(), "HDF5 file of codes.", kind="positional", in_file=False)
    dataset: str | None = setting(
        None, "Also compare the rows with this dataset.", shown="the dataset in the file's path", in_file=False
    )
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)


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


COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "prepare": Prepare,
    "extract": Extract,
    "advise": Advise,
    "classify": Classify,
    "evaluate": Evaluate,
    "select": Select,
    "report": Report,
    "audit": Audit,
    "suggest": Suggest,
    "predict": Predict,
    "similar": Similar,
    "export": Export,
    "weigh": Weigh,
    "finetune": Finetune,
    "compare": Compare,
    "cache": Cache,
    "verify": Verify,
}
"""The settings of each command, in the order in which people meet them; also the sections of params.yaml."""


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the choices of a Literal, or of a union with one; () for any other type."""
    found = [annotation, *get_args(annotation)]
    literals = [part for part in found if getattr(part, "__origin__", None) is Literal]
    return tuple(str(choice) for literal in literals for choice in get_args(literal) if choice)
