"""Datasets by name: download, check the hash, unpack safely, list the images with their official splits.

Archives wait in `.download/NAME` beside the prepared dataset, where DVC does not delete them before it runs the stage.
They are unpacked afresh each time, and only the images move on: nothing half unpacked can pass for complete.
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

from pipeline import errors
from pipeline.data.folders import list_folder
from pipeline.data.manifest import SPLITS, ListedImage

Splits = Mapping[str | None, dict[str, Any]]
Pictures = Callable[[Any, str | None], Iterator[tuple[Path, str]]]

TIMEOUT = 60.0
"""Seconds without a word from the server, after which a download has failed."""

MAX_UNPACKED = 1 << 28
"""Bytes that the zip file of hymenoptera may unpack to: five times what it does."""

HYMENOPTERA_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
HYMENOPTERA_SHA256 = "15d89271f257b89832a79a665d92fea577411e875ab6be14222a571af4b2b359"
"""What `content_sha256` gives for hymenoptera_data/: its publisher states no hash, so the 398 files vouch for it."""


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue.

    page: the web page that offers its files; place: where these belong below the download folder;
    files: their names; read: download, check and unpack them below a folder, and list the images.
    """

    page: str
    place: str
    files: tuple[str, ...]
    read: Callable[[Path], list[ListedImage]]


def fetch(name: str, folder: Path) -> list[ListedImage]:
    """Download a dataset unless its archive is there, check and unpack it, move its images to `folder`, list them."""
    entry, target = ENTRIES[name], folder.resolve()
    root = target.parent / ".download" / target.name
    place = root / entry.place
    place.mkdir(parents=True, exist_ok=True)
    _clear(place)
    with _explained(name, entry, place), _guarded():
        listed = entry.read(root)
    moved = [replace(image, path=_move(image.path, folder / image.path.relative_to(place))) for image in listed]
    _clear(place)
    return moved


def _clear(place: Path) -> None:
    """Remove what was unpacked beside the archives, by this run or by one that was interrupted."""
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _move(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
    return target


@contextmanager
def _explained(name: str, entry: Entry, place: Path) -> Iterator[None]:
    """Turn what may go wrong on the way from a server to files into one sentence."""
    files = ", ".join(entry.files)
    try:
        yield
    except (URLError, HTTPException, ConnectionError, TimeoutError, RecursionError) as error:
        raise errors.PipelineError(
            f"Cannot download {name} ({getattr(error, 'reason', error)}). "
            f"Put {files} from {entry.page} into {place} by hand, then run again."
        ) from error
    except (RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = str(error).split(". ")[0].rstrip(".")
        raise errors.PipelineError(
            f"The download of {name} is damaged or not the expected one ({reason}). "
            f"Delete {files} in {place}, then run again."
        ) from error


@contextmanager
def _guarded() -> Iterator[None]:
    """Have tarfile refuse members that leave the folder (torchvision 0.26 does not ask), and sockets time out."""
    if not hasattr(tarfile, "data_filter"):
        raise errors.PipelineError(
            f"Unpacking safely needs Python 3.11.4, this is {sys.version.split()[0]}. Update Python."
        )
    before = vars(tarfile.TarFile)["extraction_filter"], socket.getdefaulttimeout()
    try:
        _set_guards(staticmethod(tarfile.data_filter), TIMEOUT)
        yield
    finally:
        _set_guards(*before)


def _set_guards(extraction_filter: Any, timeout: float | None) -> None:
    tarfile.TarFile.extraction_filter = extraction_filter
    socket.setdefaulttimeout(timeout)


def _hymenoptera(root: Path) -> list[ListedImage]:
    archive, unpacked = root / "hymenoptera_data.zip", root / "hymenoptera_data"
    if not archive.exists():
        _download(HYMENOPTERA_URL, archive)
    unpack_zip(archive, root)
    if content_sha256(unpacked) != HYMENOPTERA_SHA256:
        raise RuntimeError("the files in it are not those of the tutorial")
    return list(list_folder(unpacked).images)


def _download(url: str, path: Path) -> None:
    """Download a file beside `path` and move it in, so that a file of that name is never half of it."""
    from torchvision.datasets.utils import download_url

    partial_file = path.with_name(f".{path.name}.partial")
    partial_file.unlink(missing_ok=True)  # torchvision takes any file that exists for complete
    download_url(url, path.parent, partial_file.name)
    partial_file.replace(path)


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a zip file, but not one with members that leave the folder or with more bytes than `MAX_UNPACKED`."""
    with zipfile.ZipFile(archive) as zipped:
        members = zipped.infolist()
        for member in members:
            if not (folder / member.filename).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"its member {member.filename!r} leaves the folder")
        # The stated sizes bind: zipfile reads no more than them, and then compares the checksum.
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise zipfile.BadZipFile(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        zipped.extractall(folder)  # noqa: S202 - every member was looked at above


def content_sha256(folder: Path) -> str:
    """Return the SHA-256 of the sorted lines "relative/path sha256" of all files below a folder but hidden ones."""
    lines = [
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _items(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    """Yield the items of a class that was given `loader=Path`, which makes them paths instead of pictures."""
    for number in range(len(data)):
        path, label = data[number]
        yield path, data.classes[label]


def _pets(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    return zip(data._images, (data.classes[label] for label in data._labels), strict=True)


def _caltech(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    for label, number in zip(data.y, data.index, strict=True):
        name = data.categories[label]
        yield Path(data.root, "101_ObjectCategories", name, f"image_{number:04}.jpg"), name


def _arrays(data: Any, split: str | None) -> Iterator[tuple[Path, str]]:
    """Write the pictures of a class that keeps them in an array as PNG files, numbered as in the array."""
    for number in range(len(data)):
        picture, label = data[number]
        path = Path(data.root, str(split), data.classes[label], f"{number:05}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        yield path, data.classes[label]


def _torchvision(kind: str, splits: Splits, pictures: Pictures = _items) -> Callable[[Path], list[ListedImage]]:
    """Return what lists the images of a torchvision class, built for each split with the options given for it."""

    def _list(root: Path) -> list[ListedImage]:
        from torchvision import datasets as kinds

        built = {split: getattr(kinds, kind)(root, download=True, **options) for split, options in splits.items()}
        return [
            ListedImage(path, label, split) for split, data in built.items() for path, label in pictures(data, split)
        ]

    return _list


ENTRIES = {
    "hymenoptera": Entry(
        "https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html",
        ".",
        ("hymenoptera_data.zip",),
        _hymenoptera,
    ),
    "flowers102": Entry(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "flowers-102",
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        _torchvision("Flowers102", {split: {"split": split, "loader": Path} for split in SPLITS}),
    ),
    "oxford_iiit_pet": Entry(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "oxford-iiit-pet",
        ("images.tar.gz", "annotations.tar.gz"),
        _torchvision("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}, _pets),
    ),
    "caltech101": Entry(
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "caltech101",
        ("caltech-101.zip",),
        _torchvision("Caltech101", {None: {}}, _caltech),
    ),
    "dtd": Entry(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "dtd",
        ("dtd-r1.0.1.tar.gz",),
        _torchvision("DTD", {split: {"split": split, "partition": 1, "loader": Path} for split in SPLITS}),
    ),
    "food101": Entry(
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        ".",
        ("food-101.tar.gz",),
        _torchvision("Food101", {split: {"split": split, "loader": Path} for split in ("train", "test")}),
    ),
    "cifar10": Entry(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ".",
        ("cifar-10-python.tar.gz",),
        _torchvision("CIFAR10", {"train": {"train": True}, "test": {"train": False}}, _arrays),
    ),
    "stl10": Entry(
        "https://cs.stanford.edu/~acoates/stl10/",
        ".",
        ("stl10_binary.tar.gz",),
        _torchvision("STL10", {split: {"split": split} for split in ("train", "test")}, _arrays),
    ),
    "eurosat": Entry(
        "https://huggingface.co/datasets/torchgeo/eurosat",
        "eurosat",
        ("EuroSAT.zip",),
        _torchvision("EuroSAT", {None: {"loader": Path}}),
    ),
}

SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {name: partial(fetch, name) for name in ENTRIES}
