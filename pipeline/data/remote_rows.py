"""Fetch the images that a CSV file names by their URLs, as datasets of the web do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import files
from pipeline.addresses import child_of, is_on_this_disk, is_url, last_name
from pipeline.data.fetching import Fetcher
from pipeline.data.local import LocalSource
from pipeline.data.remote import Failure, RemoteFile


@dataclass(frozen=True)
class FetchedCell:
    """What the cell of a CSV file led to; reason: why the file at `path` is not there, "" where it is."""

    url: str
    path: Path
    reason: str


class RowFetcher:
    """Fetches the files that the cells of a CSV file name.

    place: where the CSV file is from; relative paths start at its base, or on this disk if that is ""; folder: for the
    images, which replaces what is there until `stack` is closed by an exception; cache: for what is fetched.
    """

    def __init__(self, place: LocalSource, folder: Path, cache: Path, stack: ExitStack) -> None:
        self.place, self.folder, self.cache, self.stack = place, folder, cache, stack

    def __call__(self, cells: Sequence[str]) -> Mapping[str, FetchedCell]:
        """Return what each cell led to that names a file elsewhere."""
        urls = {cell: url for cell in cells if (url := self._url_of(cell.strip()))}
        if not urls:
            return {}
        for url in urls.values():
            self.place.refuse(url, is_on_this_disk(url))
        remote = [RemoteFile(url) for url in dict.fromkeys(urls.values())]
        fetched = dict(zip(remote, Fetcher(self.cache).fetch(remote), strict=True))
        self.stack.enter_context(files.replacing_folder(self.folder))
        for file, result in fetched.items():
            if isinstance(result, Path):
                files.link_or_copy(result, self.folder / name_of(file.url))
        return {
            cell: FetchedCell(url, self.folder / name_of(url), _reason(fetched[RemoteFile(url)]))
            for cell, url in urls.items()
        }

    def _url_of(self, cell: str) -> str:
        if is_url(cell) or not self.place.base or not cell or cell.startswith(("/", "~")):
            return cell if is_url(cell) else ""
        return child_of(self.place.base, cell.replace("\\", "/"))


def _reason(result: Path | Failure) -> str:
    return result.reason if isinstance(result, Failure) else ""


def name_of(url: str) -> str:
    """Return the name of an image from a URL: its last part and a digest, so that no two URLs have the same one."""
    name = PurePosixPath(last_name(url).replace("\0", ""))
    return f"{name.stem[:60]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}{name.suffix[:10]}"
