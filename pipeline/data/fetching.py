"""Fetch files from elsewhere: whole ones only, and each of them once."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.addresses import without_secrets
from pipeline.data.remote import TRIES, Failure, RemoteFile, open_place, with_retries
from pipeline.errors import PipelineError, counted
from pipeline.images.parallel import ordered_map
from pipeline.progress import ProgressBar, track

logger = logging.getLogger(__name__)

THREADS = 16
"""Number of files that are fetched at a time; nearly all of that time is spent on waiting for servers."""

WEB_PAGE = (
    "the server answers with a web page instead of a file (https has no folders: name an archive, an image, or a CSV "
    "file of URLs)"
)
HTML = (b"<!doctype html", b"<html")
FETCHED = "fetched.jsonl"


class Fetcher:
    """Fetches files into a folder, where they stay for the next time.

    A journal in the folder has a line for each of them with its digest; what does not fit it is fetched again. The
    name of a file appears once it is whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, folder / FETCHED
        self.known = _read_journal(self.journal)
        self.unreached, self.unasked, self.writing = set[str](), set[str](), threading.Lock()

    def fetch(self, remote: Sequence[RemoteFile]) -> list[Path | Failure]:
        """Return the copy of each file, or why there is none.

        Raises PipelineError if a server that gave some of them breaks off for good, or if none can be reached: what was
        fetched until then is kept.
        """
        busy = f"Another process is fetching into {self.folder}. Wait until that is done, or end it."
        with files.locked(self.folder / ".lock", busy):
            copies = ordered_map(self.fetch_one, remote, THREADS, 4 * THREADS)
            results = list(track(copies, "fetching", len(remote), "file") if len(remote) > 1 else copies)
        found: list[Path | Failure] = [result for result in results if isinstance(result, Path | Failure)]
        _refuse_breaks(remote, found)
        if self.unasked:
            kept = f"{counted(len(self.unasked), 'file')} fetched before, and not asked for again"
            logger.info("%s: to have new ones, delete %s", kept, self.folder)
        return found

    def fetch_one(self, remote: RemoteFile) -> Path | Failure:
        """Return the copy of a file, fetched now or before."""
        path = self.folder / remote.key
        known = self.known.get(remote.key, {})
        if path.is_file() and known.get("version") == remote.version and known.get("sha256") == files.sha256_of(path):
            if not remote.version:
                self.unasked.add(remote.key)
            return path
        outcome = with_retries(partial(self._download, remote), 1 if remote.host in self.unreached else TRIES)
        if isinstance(outcome, Failure):
            if not outcome.is_lasting:
                self.unreached.add(remote.host)
            return outcome
        if outcome:
            return Failure(outcome, True)
        self._note(remote, files.sha256_of(path))
        return path

    def _download(self, remote: RemoteFile) -> str:
        """Write a file; return why it is none that anybody wants, "" if it may be."""
        system, source = open_place(remote.url)
        path = self.folder / remote.key
        with files.replacing(path) as partial_file, ProgressBar("fetching", None, "byte") as bar:
            system.get_file(remote.path or source, str(partial_file), callback=_reporting(bar))
            if remote.size is not None and partial_file.stat().st_size != remote.size:
                raise ConnectionError(f"{partial_file.stat().st_size:,} of {remote.size:,} bytes came")
            with partial_file.open("rb") as file:
                is_page = file.read(512).lstrip().lower().startswith(HTML)
        if is_page:
            path.unlink()
        return WEB_PAGE if is_page else ""

    def _note(self, remote: RemoteFile, digest: str) -> None:
        entry = {"file": remote.key, "url": without_secrets(remote.url), "version": remote.version, "sha256": digest}
        with self.writing, self.journal.open("a", encoding="utf-8") as journal:
            journal.write("\n" + json.dumps(entry))  # a line that a killed process cut off ends here


def _reporting(bar: ProgressBar) -> Any:
    from fsspec.callbacks import Callback

    class Reporting(Callback):
        def relative_update(self, inc: int = 1) -> None:
            """Count bytes."""
            bar.update(inc)

    return Reporting()


def _read_journal(path: Path) -> dict[str, dict[str, str]]:
    """Return the entries of a journal by file; the last line may be cut off where a process was killed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = {}
    for line in lines:
        try:
            entry = json.loads(line)
            entries[entry["file"]] = entry
        except (ValueError, KeyError, TypeError):
            continue  # its file is fetched again
    return entries


def _refuse_breaks(remote: Sequence[RemoteFile], results: Sequence[Path | Failure]) -> None:
    """Refuse to go on without files of a server that gave others, or where no server can be reached.

    A server that cannot be reached at all may be gone for good, as some are of every list of the web's images.
    """
    pairs = list(zip(remote, results, strict=True))
    answered = {file.host for file, result in pairs if isinstance(result, Path) or result.is_lasting}
    for file, result in pairs:
        if isinstance(result, Failure) and not result.is_lasting and (file.host in answered or not answered):
            kept = sum(isinstance(result, Path) for result in results)
            more = f" {kept:,} files that were fetched are kept." if kept else ""
            tried = f"{file} cannot be fetched: {result.reason}, after {TRIES} tries"
            raise PipelineError(f"{tried}.{more} Run again to go on.")
