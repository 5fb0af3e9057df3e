"""Datasets by name: download, check the hash, unpack safely, list the images with their official splits.

Archives are kept in `.download/NAME` beside the prepared dataset, where DVC does not delete them before it runs the
stage. They are unpacked again in every run, and only the images are moved from there, so that images of an interrupted
run are never taken for a complete dataset.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

from pipeline import errors, files
from pipeline.data.archives import unpack
from pipeline.data.folders import list_folder
from pipeline.data.manifest import SPLITS, ListedImage

SplitOptions = Mapping[str | None, dict[str, Any]]
"""For each split the options of a torchvision dataset that select it; None is the key of datasets without splits."""

ListImages = Callable[[Any, str | None], Iterator[tuple[Path, str]]]
"""A function from a torchvision dataset and a split to the file and the class of each image."""

TIMEOUT = 60.0
"""Seconds without data from the server after which a download has failed."""

HYMENOPTERA_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
HYMENOPTERA_SHA256 = "15d89271f257b89832a79a665d92fea577411e875ab6be14222a571af4b2b359"
"""The `content_sha256` of hymenoptera_data/: its publisher states no hash, so the content of its files is checked."""


@dataclass(frozen=True)
class DownloadableDataset:
    """A dataset that can be downloaded.

    page: the web page that offers its archives; subfolder: where these lie in the download folder; files: their names;
    read: a function that downloads, checks and unpacks them in a folder, and lists the images.
    """

    page: str
    subfolder: str
    files: tuple[str, ...]
    read: Callable[[Path], list[ListedImage]]


def fetch(name: str, folder: Path) -> list[ListedImage]:
    """Download a dataset unless its archives are there, unpack it, move its images to `folder`, and list them."""
    dataset, target = DATASETS[name], folder.resolve()
    root = target.parent / ".download" / target.name
    archives = root / dataset.subfolder
    archives.mkdir(parents=True, exist_ok=True)
    _remove_unpacked(archives)
    with _explain_failure(name, dataset, archives), guard_unpacking():
        images = dataset.read(root)
    moved = [replace(image, path=_move(image.path, folder / image.path.relative_to(archives))) for image in images]
    _remove_unpacked(archives)
    return moved


def _remove_unpacked(archives: Path) -> None:
    """Remove the folders that this run, or an interrupted one, unpacked beside the archives."""
    for path in archives.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _move(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
    return target


@contextmanager
def _explain_failure(name: str, dataset: DownloadableDataset, archives: Path) -> Iterator[None]:
    """Turn errors of downloading and unpacking into PipelineError."""
    files = ", ".join(dataset.files)
    try:
        yield
    except (URLError, HTTPException, ConnectionError, TimeoutError, RecursionError) as error:
        raise errors.PipelineError(
            f"Cannot download {name} ({getattr(error, 'reason', error)}). "
            f"Put {files} from {dataset.page} into {archives} by hand, then run again."
        ) from error
    except (RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = str(error).split(". ")[0].rstrip(".")
        raise errors.PipelineError(
            f"The download of {name} is damaged or not the expected one ({reason}). "
            f"Delete {files} in {archives}, then run again."
        ) from error


@contextmanager
def guard_unpacking() -> Iterator[None]:
    """Make tarfile refuse members outside the folder, which torchvision 0.26 does not ask for, and set a timeout."""
    if not hasattr(tarfile, "data_filter"):
        raise errors.PipelineError(
            f"Unpacking safely needs Python 3.11.4, this is {sys.version.split()[0]}. Update Python."
        )
    original = vars(tarfile.TarFile)["extraction_filter"], socket.getdefaulttimeout()
    try:
        _set_guards(staticmethod(tarfile.data_filter), TIMEOUT)
        yield
    finally:
        _set_guards(*original)


def _set_guards(extraction_filter: Any, timeout: float | None) -> None:
    tarfile.TarFile.extraction_filter = extraction_filter
    socket.setdefaulttimeout(timeout)


def _hymenoptera(root: Path) -> list[ListedImage]:
    archive, unpacked = root / "hymenoptera_data.zip", root / "hymenoptera_data"
    if not archive.exists():
        _download(HYMENOPTERA_URL, archive)
    try:
        unpack(archive, root, archive.name)
    except errors.PipelineError as error:
        raise RuntimeError(error.message) from error
    if content_sha256(unpacked) != HYMENOPTERA_SHA256:
        raise RuntimeError("the files in it are not those of the tutorial")
    return list(list_folder(unpacked).images)


def _download(url: str, path: Path) -> None:
    """Download a file to a temporary name and rename it to `path` at the end, so that `path` is always complete."""
    from torchvision.datasets.utils import download_url

    partial_file = path.with_name(f".{path.name}.partial")
    partial_file.unlink(missing_ok=True)  # torchvision takes any existing file for complete
    download_url(url, path.parent, partial_file.name)
    partial_file.replace(path)


def content_sha256(folder: Path) -> str:
    """Return the SHA-256, in hex, of the sorted lines "relative/path sha256" of all files that are not hidden."""
    lines = [
        f"{path.relative_to(folder).as_posix()} {files.sha256_of(path)}\n"
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _list_items(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    """List a dataset with the option `loader=Path`, whose items are paths instead of images."""
    for number in range(len(data)):
        path, label = data[number]
        yield path, data.classes[label]


def _list_pets(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    """List a dataset that keeps the paths of its images in a private attribute."""
    return zip(data._images, (data.classes[label] for label in data._labels), strict=True)


def _list_caltech(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    """List a dataset that numbers the images of each class."""
    for label, number in zip(data.y, data.index, strict=True):
        name = data.categories[label]
        yield Path(data.root, "101_ObjectCategories", name, f"image_{number:04}.jpg"), name


def _write_arrays(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    """Write the images of a dataset that keeps them in an array as PNG files, with their numbers in the array."""
    for number in range(len(data)):
        image, label = data[number]
        path = Path(data.root, str(split), data.classes[label], f"{number:05}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        yield path, data.classes[label]


def _torchvision(
    class_name: str, splits: SplitOptions, list_images: ListImages = _list_items
) -> Callable[[Path], list[ListedImage]]:
    """Return a function that downloads a dataset of torchvision to a folder and lists its images."""

    def _read(root: Path) -> list[ListedImage]:
        from torchvision import datasets

        build = getattr(datasets, class_name)
        parts = {split: build(root, download=True, **options) for split, options in splits.items()}
        return [
            ListedImage(path, label, split) for split, data in parts.items() for path, label in list_images(data, split)
        ]

    return _read


DATASETS = {
    "hymenoptera": DownloadableDataset(
        "https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html",
        ".",
        ("hymenoptera_data.zip",),
        _hymenoptera,
    ),
    "flowers102": DownloadableDataset(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "flowers-102",
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        _torchvision("Flowers102", {split: {"split": split, "loader": Path} for split in SPLITS}),
    ),
    "oxford_iiit_pet": DownloadableDataset(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "oxford-iiit-pet",
        ("images.tar.gz", "annotations.tar.gz"),
        _torchvision("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}, _list_pets),
    ),
    "caltech101": DownloadableDataset(
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "caltech101",
        ("caltech-101.zip",),
        _torchvision("Caltech101", {None: {}}, _list_caltech),
    ),
    "dtd": DownloadableDataset(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "dtd",
        ("dtd-r1.0.1.tar.gz",),
        _torchvision("DTD", {split: {"split": split, "partition": 1, "loader": Path} for split in SPLITS}),
    ),
    "food101": DownloadableDataset(
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        ".",
        ("food-101.tar.gz",),
        _torchvision("Food101", {split: {"split": split, "loader": Path} for split in ("train", "test")}),
    ),
    "cifar10": DownloadableDataset(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ".",
        ("cifar-10-python.tar.gz",),
        _torchvision("CIFAR10", {"train": {"train": True}, "test": {"train": False}}, _write_arrays),
    ),
    "stl10": DownloadableDataset(
        "https://cs.stanford.edu/~acoates/stl10/",
        ".",
        ("stl10_binary.tar.gz",),
        _torchvision("STL10", {split: {"split": split} for split in ("train", "test")}, _write_arrays),
    ),
    "eurosat": DownloadableDataset(
        "https://huggingface.co/datasets/torchgeo/eurosat",
        "eurosat",
        ("EuroSAT.zip",),
        _torchvision("EuroSAT", {None: {"loader": Path}}),
    ),
}

SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {name: partial(fetch, name) for name in DATASETS}
