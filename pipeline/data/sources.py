"""The kinds of sources: what `prepare` reads, and the images that each of them lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pipeline import errors, files
from pipeline.addresses import ROWS_SUFFIX, TABLE_SUFFIXES, is_table, without_secrets
from pipeline.data import digits, downloads, folders
from pipeline.data.hugging_face import Part, find_parts, list_dataset
from pipeline.data.hugging_face_columns import Columns
from pipeline.data.listing import Listing, join_listings
from pipeline.data.local import open_source
from pipeline.data.manifest import ListedImage
from pipeline.data.remote_rows import RowFetcher
from pipeline.data.tables import list_csv, list_unlabelled_csv

SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {"digits": digits.write_digits, **downloads.SOURCES}

KINDS = "neither a folder, a CSV file nor an archive"


@dataclass(frozen=True)
class Reading:
    """How a source is read, as far as the user says.

    layout: how images lie in a folder, one of `layouts.LAYOUTS`; tasks: columns of labels, as in `list_csv`; columns:
    those of a dataset of Hugging Face.
    """

    layout: str = "auto"
    tasks: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)


AS_IT_IS = Reading()


class Opened:
    """A source on this disk, and what it takes to bring more of it here.

    source: as the user names it; folder: of the prepared dataset; name: of the folder in there for its images; stack:
    what is opened. What is fetched lies where `dvc repro` does not delete it, to be there the next time.
    """

    def __init__(self, source: str, folder: Path, name: str, stack: ExitStack) -> None:
        cache = folder.parent / ".download" / folder.name
        self.source, self.folder, self.stack = source, folder, stack
        self.place = stack.enter_context(open_source(source, folder / name, cache))
        self.path = self.place.path
        self.fetch = RowFetcher(self.place, folder / f"{name}-fetched", cache, stack)
        self.images = folder / (f"{name}-rows" if self.place.hidden == str(folder / name) else name)

    def list_rows(self, parts: Sequence[Part], columns: Columns, labelled: bool) -> Listing:
        """Write the images of a dataset of Hugging Face to files, and list them."""
        self.stack.enter_context(files.replacing_folder(self.images))
        return list_dataset(self.path, parts, self.images, columns, labelled)

    def is_table(self) -> bool:
        """Return whether it is a CSV file."""
        return is_table(self.path.name) and self.path.exists()

    def explained(self, listing: Callable[[], Listing]) -> Listing:
        """Return the listing that a function gives, with what was skipped on the way here."""
        with self.place.explaining():
            listed = listing()
            for image in listed.images if self.place.hidden else ():
                self.place.refuse(str(image.path), not image.path.resolve().is_relative_to(self.folder.resolve()))
        return replace(listed, skipped=[*self.place.skipped, *listed.skipped])

    def no_images(self) -> errors.PipelineError:
        """Return the error for what is no source."""
        if self.path.exists():
            kinds = f"{KINDS} ({', '.join(TABLE_SUFFIXES)}, {ROWS_SUFFIX}, .zip, .tar.gz)"
            return errors.PipelineError(f"{without_secrets(self.source)} is {kinds}.")
        return errors.PipelineError(f"No folder, CSV or archive at {self.source}. Check the path.")


@contextmanager
def list_sources(labelled: str, unlabelled: str, folder: Path, reading: Reading = AS_IT_IS) -> Iterator[Listing]:
    """Yield the images of two sources, with labels and without, or of one of them; "" for none.

    folder: of the prepared dataset, into which images are written that lie in no folder on this disk. It is as it was
    before if an exception is raised.
    """
    with ExitStack() as stack:
        if not unlabelled:
            yield list_labelled(labelled, folder, reading, stack)
        elif not labelled:
            yield list_unlabelled(unlabelled, folder, reading.columns, stack)
        else:
            with_labels = list_labelled(labelled, folder, reading, stack)
            yield join_listings(with_labels, list_unlabelled(unlabelled, folder, Columns(), stack))


def list_labelled(source: str, folder: Path, reading: Reading, stack: ExitStack) -> Listing:
    """List the images of a named dataset, a folder, a CSV file, or of an archive or URL of either.

    folder, stack: as for `Opened`.
    """
    if source in SOURCES:
        _refuse_reading(reading, source)
        return Listing(SOURCES[source](folder))
    opened = Opened(source, folder, "images", stack)
    return opened.explained(partial(_list_opened, opened, reading))


def _list_opened(opened: Opened, reading: Reading) -> Listing:
    by_folders = reading.layout != "auto" and opened.path.is_dir()
    if not by_folders and opened.path.exists() and (parts := find_parts(opened.path)):
        _refuse_reading(replace(reading, columns=Columns()), opened.source)
        return opened.list_rows(parts, reading.columns, labelled=True)
    if opened.path.is_dir():
        _refuse_reading(replace(reading, layout="auto"), opened.source)
        return folders.list_folder(opened.path, reading.layout)
    _refuse_reading(replace(reading, tasks=()), opened.source)
    if opened.is_table():
        return list_csv(opened.path, opened.fetch, reading.tasks)
    if "/" in opened.source or opened.path.suffix or opened.path.exists():
        raise opened.no_images()
    raise errors.unknown("dataset", opened.source, SOURCES, where=KINDS)


def _refuse_reading(reading: Reading, source: str) -> None:
    """Refuse settings that are for other kinds of sources."""
    shown = without_secrets(source)
    if reading.layout != "auto":
        raise errors.PipelineError(
            f"--layout {reading.layout} is for folders of images, and {shown} is none. Leave it out."
        )
    if reading.tasks:
        raise errors.PipelineError(f"--labels names columns of a CSV file, and {shown} is none. Leave it out.")
    for flag, name in (("--image-column", reading.columns.image), ("--label-column", reading.columns.label)):
        if name:
            raise errors.PipelineError(
                f"{flag} {name} is for datasets of Hugging Face, and {shown} is none. Leave it out."
            )


def list_unlabelled(source: str, folder: Path, columns: Columns, stack: ExitStack) -> Listing:
    """List the images of a folder, a CSV file, an archive or a URL as images without labels; as `list_labelled`."""
    opened = Opened(source, folder, "unlabelled", stack)
    return opened.explained(partial(_list_unlabelled, opened, columns))


def _list_unlabelled(opened: Opened, columns: Columns) -> Listing:
    if opened.path.exists() and (parts := find_parts(opened.path)):
        return opened.list_rows(parts, columns, labelled=False)
    if opened.path.is_dir():
        return folders.list_unlabelled(opened.path)
    if opened.is_table():
        return list_unlabelled_csv(opened.path, opened.fetch)
    raise opened.no_images()
