"""Sources as they lie on this disk: archives are unpacked first."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pipeline import files
from pipeline.addresses import is_table, split_archive
from pipeline.data.archives import unpack
from pipeline.data.folders import list_files
from pipeline.data.layouts import split_of
from pipeline.data.listing import UNLABELLED_NAMES, Skipped
from pipeline.data.tree import read_folder
from pipeline.errors import PipelineError
from pipeline.paths import expand_home

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalSource:
    """A source on this disk.

    path: its folder or file; shown: what stands for the start `hidden` of paths where a person reads them; skipped:
    what was left out on the way here.
    """

    path: Path
    hidden: str = ""
    shown: str = ""
    skipped: Sequence[Skipped] = ()

    def show(self, text: str) -> str:
        """Return a text with the paths that a person knows."""
        return text.replace(self.hidden, self.shown) if self.hidden else text

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Let errors name the paths that a person knows."""
        try:
            yield
        except PipelineError as error:
            raise PipelineError(self.show(error.message), error.setting, error.fix) from error


@contextmanager
def open_source(source: str, images: Path) -> Iterator[LocalSource]:
    """Yield a source as it lies on this disk.

    images: a folder for what an archive holds, which replaces what is there; the old one is put back if an exception
    is raised.
    """
    if not is_elsewhere(source):
        yield LocalSource(expand_home(source))
        return
    archive, within = split_archive(source)
    path = expand_home(archive)
    with files.replacing_folder(images):
        skipped = unpack(path, images)
        place = LocalSource(images / within, str(images), archive, skipped)
        if not place.path.exists():
            raise PipelineError(f"{archive} holds no {within}. Check the name.")
        yield LocalSource(place.path if within else skip_wrapper(images), str(images), archive, skipped)


def skip_wrapper(folder: Path) -> Path:
    """Return the folder that the images of an archive start in: the only one that was packed, where that is so."""
    content = read_folder(folder)
    if content.files or len(content.folders) != 1:
        return folder
    (inner,) = content.folders
    below = read_folder(inner)
    is_word = split_of(inner.name) or inner.name.lower() in UNLABELLED_NAMES
    holds_more = below.folders or any(is_table(file.name) for file in below.files)
    return folder if is_word or not holds_more else skip_wrapper(inner)


class NewImage(NamedTuple):
    """A file that a command is given; name: that by which a person knows it."""

    name: str
    path: Path


@contextmanager
def open_images(names: Iterable[str], lines: Iterable[str]) -> Iterator[Iterator[NewImage]]:
    """Yield each file, the files below each folder and in each archive, and for the name `-` the paths in `lines`.

    What lies in archives is on this disk as long as the context lasts.
    """
    with ExitStack() as stack:
        yield (image for name in names for image in _images_of(name, lines, stack))


def _images_of(name: str, lines: Iterable[str], stack: ExitStack) -> Iterator[NewImage]:
    if name == "-":
        yield from (_new_image(Path(line.rstrip("\r\n"))) for line in lines if line.strip())
    elif is_elsewhere(name):
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="cnn-codes-")))
        place = stack.enter_context(open_source(name, folder / "images"))
        for entry in place.skipped:
            logger.warning("Skipped %r: %s", entry.path, entry.reason)
        paths = list_files(place.path, place.show) if place.path.is_dir() else [place.path]
        yield from (NewImage(place.show(str(path)), path) for path in paths)
    else:
        path = Path(name)
        yield from map(_new_image, list_files(path) if path.is_dir() else [path])


def _new_image(path: Path) -> NewImage:
    return NewImage(str(path), path)


def is_elsewhere(source: str) -> bool:
    """Return whether a source must be brought to a folder first."""
    archive, _ = split_archive(source)
    return bool(archive) and expand_home(archive).is_file()
