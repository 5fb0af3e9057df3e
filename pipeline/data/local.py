"""Sources as they lie on this disk: what lies on servers is fetched first, and archives are unpacked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pipeline import files
from pipeline.addresses import folder_of, is_archive, is_table, is_url, split_archive, without_secrets
from pipeline.data.archives import Names, is_packed, unpack
from pipeline.data.fetching import Fetcher
from pipeline.data.folders import list_files
from pipeline.data.layouts import split_of
from pipeline.data.listing import UNLABELLED_NAMES, Skipped
from pipeline.data.remote import Failure, RemoteFile, UnreachableError, list_remote
from pipeline.data.tree import read_folder
from pipeline.errors import PipelineError
from pipeline.images.decoding import BadImage
from pipeline.paths import expand_home

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalSource:
    """A source on this disk.

    path: its folder or file; shown: what stands for the start `hidden` of paths where a person reads them; base: the
    URL of the folder that a file was fetched from; skipped: what was left out on the way here.
    """

    path: Path
    hidden: str = ""
    shown: str = ""
    base: str = ""
    skipped: Sequence[Skipped] = ()

    def show(self, text: str) -> str:
        """Return a text with the paths that a person knows."""
        return text.replace(self.hidden, self.shown) if self.hidden else text

    def refuse(self, name: str, is_on_this_disk: bool) -> None:
        """Refuse a file of this disk: whoever packed or serves a list may not choose it."""
        if self.hidden and is_on_this_disk:
            raise PipelineError(
                f"{self.shown} names {name!r}, which does not come with it but lies on this disk. If you trust it, "
                "copy it to this disk, unpacked, and name it there."
            )

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Let errors name the paths that a person knows."""
        try:
            yield
        except PipelineError as error:
            raise PipelineError(self.show(error.message), error.setting, error.fix) from error


@contextmanager
def open_source(source: str, images: Path, cache: Path) -> Iterator[LocalSource]:
    """Yield a source as it lies on this disk.

    images: a folder for what an archive or a folder elsewhere holds, which replaces what is there; the old one is put
    back if an exception is raised. cache: a folder for what is fetched.
    """
    archive, within = split_archive(source)
    if is_url(source):
        with _open_url(archive or source, within, images, cache) as place:
            yield place
    elif archive and expand_home(archive).is_file():
        with _open_archive(expand_home(archive), archive, within, images) as place:
            yield place
    else:
        yield LocalSource(expand_home(source))


@contextmanager
def _open_url(url: str, within: str, images: Path, cache: Path) -> Iterator[LocalSource]:
    shown, remote = without_secrets(url), list_remote(url)
    if remote[0].name:
        with files.replacing_folder(images):
            skipped = fetch_folder(shown, remote, images, cache)
            yield LocalSource(images, str(images), shown, skipped=skipped)
        return
    (fetched,) = Fetcher(cache).fetch(remote)
    if isinstance(fetched, Failure):
        raise UnreachableError(url, fetched.reason)
    if is_archive(url) or (not is_table(url) and is_packed(fetched)):
        with _open_archive(fetched, shown, within, images) as place:
            yield place
    else:
        yield LocalSource(fetched, str(fetched), shown, base=folder_of(url))


@contextmanager
def _open_archive(archive: Path, shown: str, within: str, images: Path) -> Iterator[LocalSource]:
    with files.replacing_folder(images):
        skipped = unpack(archive, images, shown)
        path = images / within if within else skip_wrapper(images)
        if not path.exists():
            raise PipelineError(f"{shown} holds no {within}. Check the name.")
        yield LocalSource(path, str(images), shown, skipped=skipped)


def fetch_folder(shown: str, remote: Sequence[RemoteFile], images: Path, cache: Path) -> list[Skipped]:
    """Fetch files into a folder, by their names; return those that cannot be fetched."""
    names = Names(shown)
    targets = [images.joinpath(*names.add(file.name)) for file in remote]
    skipped = []
    for file, target, fetched in zip(remote, targets, Fetcher(cache).fetch(remote), strict=True):
        if isinstance(fetched, Failure):
            skipped.append(Skipped(str(file), fetched.reason))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.link_or_copy(fetched, target)
    return skipped


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
    """A file that a command is given; name: that by which a person knows it; reason: why it cannot be had, or ""."""

    name: str
    path: Path
    reason: str = ""

    @property
    def file(self) -> Path | BadImage:
        """The file, or why there is none."""
        return BadImage(self.reason) if self.reason else self.path


@contextmanager
def open_images(names: Iterable[str], lines: Iterable[str]) -> Iterator[Iterator[NewImage]]:
    """Yield each file, the files below each folder and in each archive, and for the name `-` the paths in `lines`.

    Any of them may be a URL. What is fetched and unpacked is on this disk as long as the context lasts.
    """
    with ExitStack() as stack:
        yield (image for name in names for image in _images_of(name, lines, stack))


def _images_of(name: str, lines: Iterable[str], stack: ExitStack) -> Iterator[NewImage]:
    if name == "-":
        for line in lines:
            if text := line.rstrip("\r\n") if line.strip() else "":
                yield from _fetched_images(text, stack) if is_url(text) else [NewImage(text, Path(text))]
    elif is_url(name) or expand_home(split_archive(name)[0] or os.devnull).is_file():
        yield from _fetched_images(name, stack)
    else:
        path = Path(name)
        yield from (NewImage(str(path), path) for path in (list_files(path) if path.is_dir() else [path]))


def _fetched_images(name: str, stack: ExitStack) -> Iterator[NewImage]:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="cnn-codes-")))
    try:
        place = stack.enter_context(open_source(name, folder / "images", folder / "fetched"))
    except UnreachableError as error:
        yield NewImage(without_secrets(name), Path(), error.reason)
        return
    for entry in place.skipped:
        logger.warning("Skipped %r: %s", entry.path, entry.reason)
    paths = list_files(place.path, place.show) if place.path.is_dir() else [place.path]
    yield from (NewImage(place.show(str(path)), path) for path in paths)
