"""The settings of the commands that read images: prepare, extract, similar, and those that look after files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config.base import Command, OfCodes, OfLayer
from pipeline.config.fields import (
    CODES,
    CODES_SHOWN,
    DEVICE,
    EXPERIMENT,
    FILES,
    MACHINE,
    NEW_IMAGES,
    STRICT,
    THREADS,
    WEIGHTS_NOW,
    WHITE_OF_NEW,
    BatchSize,
    Integer,
    Name,
    Names,
    Seed,
    Texts,
    Threads,
    setting,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prepare(Command):
    """Settings of `prepare`."""

    dataset: str = setting(
        "digits",
        "The images: a dataset's name, a folder, or a CSV file with the columns path, label and, if you like, split "
        "(or the column labels, as in cat;dog, for several labels per image), a dataset of Hugging Face on "
        "disk, or a zip or tar file or a URL of these.",
        key="source",
        group=EXPERIMENT,
    )
    unlabelled: str = setting(
        "",
        "Images without labels: a folder, read at any depth, a CSV file with the column path, a zip or tar file, or a "
        "URL; beside --dataset, or alone.",
        replaces="dataset",
        group=EXPERIMENT,
    )
    labels: Texts = setting(
        (),
        "Columns of the CSV file that are labels, each of a task of its own: the first becomes the dataset NAME, any "
        "other one NAME@COLUMN, with the same images and splits.",
        shown="label",
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
    image_column: str = setting(
        "", "Column of the images in a dataset of Hugging Face.", shown="the only one that holds images"
    )
    label_column: str = setting(
        "", "Column of the labels in a dataset of Hugging Face.", shown="the only one declared as such, or label"
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
class Extract(OfCodes):
    """Settings of `extract`."""

    layer: Names = setting(("fc7",), "One layer or several, which one pass serves.", group=EXPERIMENT)
    device: Name = setting("auto", DEVICE, group=MACHINE)
    batch_size: BatchSize = setting(
        0,
        "Number of images per forward pass, of which the last are filled up, so that codes do not depend on how images "
        "are batched; 0 takes what suits the device.",
        group=MACHINE,
    )
    compile: Literal["auto", "torch", "onnxruntime", "no"] = setting(
        "auto",
        "Who makes the network faster: on long runs, auto tries ONNX Runtime on a CPU, and torch.",
        group=MACHINE,
    )
    compress: bool = setting(False, "Compress the finished files with LZF.", group=MACHINE)
    max_bad: float = setting(
        0.1, "Share of images that may be unreadable; with more the run fails.", ge=0, le=1, group=MACHINE
    )
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)
    shards: Integer = setting(
        0,
        "Number of files that the codes are cut into, each written by one worker; 0 for one file.",
        ge=0,
        group=MACHINE,
    )
    engine: Literal["local", "ray"] = setting(
        "local", "Where the workers of --shards run: as processes of this machine, or on a Ray cluster.", group=MACHINE
    )
    workers: Integer = setting(
        0,
        "Number of workers of --shards; 0 for one per GPU, without GPUs one, or with Ray one per machine.",
        ge=0,
        group=MACHINE,
    )
    address: str = setting(
        "", "Address of the Ray cluster, or auto for that of this machine.", shown="one started here", group=MACHINE
    )
    out: Path | None = setting(None, "Folder for LAYER.h5.", shown="features/DATASET/BACKBONE", group=FILES)
    list: str | None = setting(
        None, "Show the backbones, or one backbone's layers, and end.", kind="optional", in_file=False, group=FILES
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Similar(OfLayer):
    """Settings of `similar`."""

    images: Texts = setting((), NEW_IMAGES, kind="positional", in_file=False)
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
