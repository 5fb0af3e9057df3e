"""Make a dataset ready: check every file, settle the splits, write data/<dataset>/manifest.csv.

Example: python -m pipeline.prepare --dataset ~/photos/flowers --test 0.2
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("prepare")

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from pipeline import errors, files, params
from pipeline.addresses import without_secrets
from pipeline.config import Prepare
from pipeline.data import corrections, sources, tasks, validation
from pipeline.data.checking import Prepared, prepare, with_corrections
from pipeline.data.findings import first_bad, summary
from pipeline.data.hugging_face_columns import Columns
from pipeline.data.listing import Listing
from pipeline.data.manifest import write_manifest
from pipeline.data.origin import validate_origin, write_origin
from pipeline.images import parallel
from pipeline.paths import MANIFEST, expand_home, folder_of_task, identity_of

RECORDED = ("test", "val", "seed", "group_by", "layout", "image_column", "label_column", "range", "labels")
"""The settings on which a prepared dataset depends, besides its sources."""


def write(prepared: Prepared, folder: Path, root: Path) -> None:
    """Write bad.csv, skipped.csv, leakage.csv and the manifest of the dataset in the folder `root`."""
    files.write_csv(folder / "bad.csv", ("path", "reason"), prepared.bad)
    skipped = [(entry.path, entry.reason, entry.files) for entry in prepared.listing.skipped]
    files.write_csv(folder / "skipped.csv", ("path", "reason", "files"), skipped)
    leaks = [(image.digest, image.split, image.label, image.path) for image in prepared.leaks]
    files.write_csv(folder / "leakage.csv", ("digest", "split", "label", "path"), leaks)
    write_manifest(folder, prepared.images, root)


def run(settings: Prepare) -> None:
    """Prepare what the settings name."""
    shares = shares_of(settings)
    source = settings.dataset or settings.unlabelled
    folder = settings.out or Path("data", params.dataset_name(source))
    tasks.validate_labels(settings.labels, settings.corrections)
    for one in folders_of(folder, settings):
        validate_origin(one, source, settings.overwrite)
    columns = Columns(settings.image_column, settings.label_column)
    reading = sources.Reading(settings.layout, settings.labels, columns)
    with sources.list_sources(settings.dataset, settings.unlabelled, folder, reading) as listing:
        texts = prepare_listed(settings, listing, folder, source, shares)
    print("\n".join(texts))  # the images stay, even if nobody reads what is said of them


def shares_of(settings: Prepare) -> dict[str, float]:
    """Return the shares of the images that become test and validation images."""
    shares = {"test": settings.test, "val": settings.val}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise errors.PipelineError(
            f"--test {settings.test} and --val {settings.val} must be shares ≥ 0 that leave something for training."
        )
    return shares


def folders_of(folder: Path, settings: Prepare) -> list[Path]:
    """Return the folders of all tasks, that of the dataset first."""
    return [folder, *(folder_of_task(folder, name) for name in settings.labels[1:])]


def prepare_listed(
    settings: Prepare, listing: Listing, folder: Path, source: str, shares: Mapping[str, float]
) -> list[str]:
    """Prepare the images that a source lists, and return what is to be said of each task."""
    shown = without_secrets(source)
    validation.validate_column(listing, settings.group_by, shown)
    threads = settings.threads or parallel.default_threads()
    by_hand = [corrections.read_corrections(expand_home(name)) for name in settings.corrections]
    prepared = prepare(listing, shares, settings.seed, threads, settings.group_by, settings.range)
    for correction in by_hand:
        prepared = with_corrections(prepared, correction, folder)
    if prepared.bad and settings.on_bad == "error":
        raise errors.PipelineError(
            f"{len(prepared.bad)} bad files: {first_bad(prepared.bad)}. Fix them, or run with --on-bad skip."
        )
    by_task = tasks.part_by_task(prepared, settings.labels)
    for name, one in by_task.items():
        validation.validate_usable(one, shown, name if name in settings.labels[1:] else "")
        validation.validate_groups(one, settings.group_by, shown)
    prepared_tasks = dict(zip(folders_of(folder, settings), by_task.values(), strict=True))
    texts = [summary(one, place, briefly=place != folder) for place, one in prepared_tasks.items()]
    write_all(prepared_tasks, source, settings)
    return texts


def write_all(prepared: Mapping[Path, Prepared], source: str, settings: Prepare) -> None:
    """Write the files of all tasks, by their folders, or of none if there is an error, the first of them last."""
    with ExitStack() as stack:
        for place, one in prepared.items():
            staged = stack.enter_context(files.replacing_files(place, last=MANIFEST))
            write_origin(staged, source, one.max_value, one.depths, recorded_settings(settings))
            write(one, staged, place)
        tasks.forget_tasks(next(iter(prepared)), source, settings.labels)


def recorded_settings(settings: Prepare) -> dict[str, object]:
    """Return the settings on which a prepared dataset depends."""
    recorded: dict[str, object] = {name: identity_of(getattr(settings, name)) for name in ("dataset", "unlabelled")}
    recorded |= {name: getattr(settings, name) for name in RECORDED}
    return recorded | {"corrections": [identity_of(name) for name in settings.corrections]}
