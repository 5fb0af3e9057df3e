"""The kinds of sources: what `prepare` reads, and the images that each of them lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline import errors
from pipeline.data import digits, downloads, folders
from pipeline.data.listing import Listing, join_listings
from pipeline.data.manifest import ListedImage
from pipeline.data.tables import list_csv, list_unlabelled_csv
from pipeline.paths import TABLE_SUFFIXES, expand_home

SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {"digits": digits.write_digits, **downloads.SOURCES}


def list_source(source: str, folder: Path, layout: str = "auto") -> Listing:
    """List the images of a named dataset, which is written or downloaded to `folder`, of a folder, or of a CSV file.

    layout: how images lie in a folder, one of `folders.LAYOUTS`.
    """
    path = expand_home(source)
    if source not in SOURCES and path.is_dir():
        return folders.list_folder(path, layout)
    if layout != "auto":
        raise errors.PipelineError(f"--layout {layout} is for folders of images, and {source} is none. Leave it out.")
    if source in SOURCES:
        return Listing(SOURCES[source](folder))
    if path.suffix.lower() in TABLE_SUFFIXES and path.exists():
        return list_csv(path)
    if "/" in source or path.suffix or path.exists():
        raise _no_images_at(source)
    raise errors.unknown("dataset", source, SOURCES, where="neither a folder nor a CSV")


def list_unlabelled(source: str) -> Listing:
    """List the images of a folder or a CSV file as images without labels."""
    path = expand_home(source)
    if path.is_dir():
        return folders.list_unlabelled(path)
    if path.suffix.lower() in TABLE_SUFFIXES and path.exists():
        return list_unlabelled_csv(path)
    raise _no_images_at(source)


def _no_images_at(source: str) -> errors.PipelineError:
    if expand_home(source).exists():
        return errors.PipelineError(f"{source} is neither a folder nor a CSV file ({' or '.join(TABLE_SUFFIXES)}).")
    return errors.PipelineError(f"No folder or CSV at {source}. Check the path.")


def list_sources(labelled: str, unlabelled: str, folder: Path, layout: str = "auto") -> Listing:
    """List the images of two sources, with labels and without, or of one of them; "" for none."""
    if not unlabelled:
        return list_source(labelled, folder, layout)
    if not labelled:
        return list_unlabelled(unlabelled)
    return join_listings(list_source(labelled, folder, layout), list_unlabelled(unlabelled))
