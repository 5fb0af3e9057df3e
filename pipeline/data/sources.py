"""The kinds of sources: what `prepare` reads, and the images that each of them lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import errors
from pipeline.addresses import TABLE_SUFFIXES, is_table, without_secrets
from pipeline.data import digits, downloads, folders
from pipeline.data.listing import Listing, join_listings
from pipeline.data.local import LocalSource, open_source
from pipeline.data.manifest import ListedImage
from pipeline.data.remote_rows import RowFetcher
from pipeline.data.tables import list_csv, list_unlabelled_csv

SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {"digits": digits.write_digits, **downloads.SOURCES}

KINDS = "neither a folder, a CSV file nor an archive"


@contextmanager
def list_sources(
    labelled: str, unlabelled: str, folder: Path, layout: str = "auto", tasks: Sequence[str] = ()
) -> Iterator[Listing]:
    """Yield the images of two sources, with labels and without, or of one of them; "" for none.

    folder: of the prepared dataset, into which images are written that lie in no folder on this disk. It is as it was
    before if an exception is raised.
    """
    with ExitStack() as stack:
        if not unlabelled:
            yield list_labelled(labelled, folder, layout, stack, tasks)
        elif not labelled:
            yield list_unlabelled(unlabelled, folder, stack)
        else:
            listing = list_labelled(labelled, folder, layout, stack, tasks)
            yield join_listings(listing, list_unlabelled(unlabelled, folder, stack))


def list_labelled(source: str, folder: Path, layout: str, stack: ExitStack, tasks: Sequence[str] = ()) -> Listing:
    """List the images of a named dataset, a folder, a CSV file, or of an archive or URL of either; folder: as above.

    layout: how images lie in a folder, one of `folders.LAYOUTS`; stack: what it opens; tasks: as in `list_csv`.
    """
    if source in SOURCES:
        _validate_layout(layout, source)
        _validate_no_tasks(tasks, source)
        return Listing(SOURCES[source](folder))
    place, fetch = _open(source, folder, "images", stack)
    with place.explaining():
        listing = _list_place(place.path, source, layout, fetch, tasks)
    return replace(listing, skipped=[*place.skipped, *listing.skipped])


def _open(source: str, folder: Path, name: str, stack: ExitStack) -> tuple[LocalSource, RowFetcher]:
    """Return a source on this disk, and what fetches the files that it names elsewhere; name: of the folder for both.

    What is fetched lies where `dvc repro` does not delete it, to be there when the images are prepared again.
    """
    cache = folder.parent / ".download" / folder.name
    place = stack.enter_context(open_source(source, folder / name, cache))
    return place, RowFetcher(place.base, folder / f"{name}-fetched", cache, stack)


def _list_place(path: Path, source: str, layout: str, fetch: RowFetcher, tasks: Sequence[str]) -> Listing:
    if path.is_dir():
        _validate_no_tasks(tasks, source)
        return folders.list_folder(path, layout)
    _validate_layout(layout, source)
    if is_table(path.name) and path.exists():
        return list_csv(path, fetch, tasks)
    if "/" in source or path.suffix or path.exists():
        raise _no_images_at(source, path)
    raise errors.unknown("dataset", source, SOURCES, where=KINDS)


def _validate_layout(layout: str, source: str) -> None:
    if layout != "auto":
        raise errors.PipelineError(f"--layout {layout} is for folders of images, and {source} is none. Leave it out.")


def _validate_no_tasks(tasks: Sequence[str], source: str) -> None:
    if tasks:
        raise errors.PipelineError(
            f"--labels names columns of a CSV file, and {without_secrets(source)} is none. Leave it out."
        )


def list_unlabelled(source: str, folder: Path, stack: ExitStack) -> Listing:
    """List the images of a folder, a CSV file, an archive or a URL as images without labels; as `list_labelled`."""
    place, fetch = _open(source, folder, "unlabelled", stack)
    with place.explaining():
        listing = _list_unlabelled(place.path, source, fetch)
    return replace(listing, skipped=[*place.skipped, *listing.skipped])


def _list_unlabelled(path: Path, source: str, fetch: RowFetcher) -> Listing:
    if path.is_dir():
        return folders.list_unlabelled(path)
    if is_table(path.name) and path.exists():
        return list_unlabelled_csv(path, fetch)
    raise _no_images_at(source, path)


def _no_images_at(source: str, path: Path) -> errors.PipelineError:
    if path.exists():
        kinds = f"{KINDS} ({', '.join(TABLE_SUFFIXES)}, .zip, .tar.gz)"
        return errors.PipelineError(f"{without_secrets(source)} is {kinds}.")
    return errors.PipelineError(f"No folder, CSV or archive at {source}. Check the path.")
