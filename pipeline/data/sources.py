"""The kinds of sources: what `prepare` reads, and the images that each of them lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import errors
from pipeline.addresses import TABLE_SUFFIXES, is_table
from pipeline.data import digits, downloads, folders
from pipeline.data.listing import Listing, join_listings
from pipeline.data.local import LocalSource, open_source
from pipeline.data.manifest import ListedImage
from pipeline.data.tables import list_csv, list_unlabelled_csv

SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {"digits": digits.write_digits, **downloads.SOURCES}

KINDS = "neither a folder, a CSV file nor an archive"


@contextmanager
def list_sources(labelled: str, unlabelled: str, folder: Path, layout: str = "auto") -> Iterator[Listing]:
    """Yield the images of two sources, with labels and without, or of one of them; "" for none.

    folder: of the prepared dataset, into which images are written that lie in no folder. It is as it was before if an
    exception is raised.
    """
    if not unlabelled:
        with list_labelled(labelled, folder, layout) as listing:
            yield listing
    elif not labelled:
        with list_unlabelled(unlabelled, folder) as listing:
            yield listing
    else:
        with list_labelled(labelled, folder, layout) as listing, list_unlabelled(unlabelled, folder) as others:
            yield join_listings(listing, others)


@contextmanager
def list_labelled(source: str, folder: Path, layout: str = "auto") -> Iterator[Listing]:
    """Yield the images of a named dataset, a folder, a CSV file or an archive of either; folder: as above.

    layout: how images lie in a folder, one of `folders.LAYOUTS`.
    """
    if source in SOURCES:
        _validate_layout(layout, source)
        yield Listing(SOURCES[source](folder))
        return
    with open_source(source, folder / "images") as place:
        with place.explaining():
            listing = _list_place(place.path, source, layout)
        yield replace(listing, skipped=[*place.skipped, *listing.skipped])


def _list_place(path: Path, source: str, layout: str) -> Listing:
    if path.is_dir():
        return folders.list_folder(path, layout)
    _validate_layout(layout, source)
    if is_table(path.name) and path.exists():
        return list_csv(path)
    if "/" in source or path.suffix or path.exists():
        raise _no_images_at(source, path)
    raise errors.unknown("dataset", source, SOURCES, where=KINDS)


def _validate_layout(layout: str, source: str) -> None:
    if layout != "auto":
        raise errors.PipelineError(f"--layout {layout} is for folders of images, and {source} is none. Leave it out.")


@contextmanager
def list_unlabelled(source: str, folder: Path) -> Iterator[Listing]:
    """Yield the images of a folder, a CSV file or an archive as images without labels; folder: as above."""
    with open_source(source, folder / "unlabelled") as place:
        with place.explaining():
            listing = _list_unlabelled(place, source)
        yield replace(listing, skipped=[*place.skipped, *listing.skipped])


def _list_unlabelled(place: LocalSource, source: str) -> Listing:
    if place.path.is_dir():
        return folders.list_unlabelled(place.path)
    if is_table(place.path.name) and place.path.exists():
        return list_unlabelled_csv(place.path)
    raise _no_images_at(source, place.path)


def _no_images_at(source: str, path: Path) -> errors.PipelineError:
    if path.exists():
        return errors.PipelineError(f"{source} is {KINDS} ({', '.join(TABLE_SUFFIXES)}, .zip, .tar.gz).")
    return errors.PipelineError(f"No folder, CSV or archive at {source}. Check the path.")
