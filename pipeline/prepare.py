"""Make a dataset ready: check every file, settle the splits, write data/<dataset>/manifest.csv.

Example: python -m pipeline.prepare --dataset ~/photos/flowers --test 0.2
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("prepare")

from pathlib import Path

from pipeline import errors, files, params
from pipeline.addresses import without_secrets
from pipeline.config import Prepare
from pipeline.data import corrections, sources, validation
from pipeline.data.checking import Prepared, prepare, with_corrections
from pipeline.data.listing import Listing
from pipeline.data.manifest import write_manifest
from pipeline.data.origin import validate_origin, write_origin
from pipeline.data.summary import first_bad, summary
from pipeline.images import parallel
from pipeline.paths import expand_home, identity_of

RECORDED = ("test", "val", "seed", "group_by", "layout", "range")
"""The settings on which a prepared dataset depends, besides its sources."""


def write(prepared: Prepared, folder: Path) -> None:
    """Write bad.csv, skipped.csv and leakage.csv, and last of all the manifest, without which nothing is prepared."""
    files.write_csv(folder / "bad.csv", ("path", "reason"), prepared.bad)
    skipped = [(entry.path, entry.reason, entry.files) for entry in prepared.listing.skipped]
    files.write_csv(folder / "skipped.csv", ("path", "reason", "files"), skipped)
    leaks = [(image.digest, image.split, image.label, image.path) for image in prepared.leaks]
    files.write_csv(folder / "leakage.csv", ("digest", "split", "label", "path"), leaks)
    write_manifest(folder, prepared.images)


def run(settings: Prepare) -> None:
    """Prepare what the settings name."""
    shares = {"test": settings.test, "val": settings.val}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise errors.PipelineError(
            f"--test {settings.test} and --val {settings.val} must be shares ≥ 0 that leave something for training."
        )
    source = settings.dataset or settings.unlabelled
    folder = settings.out or Path("data", params.dataset_name(source))
    validate_origin(folder, source, settings.overwrite)
    with sources.list_sources(settings.dataset, settings.unlabelled, folder, settings.layout) as listing:
        prepare_listed(settings, listing, folder, source)


def prepare_listed(settings: Prepare, listing: Listing, folder: Path, source: str) -> None:
    """Prepare the images that a source lists."""
    shown = without_secrets(source)
    validation.validate_column(listing, settings.group_by, shown)
    shares = {"test": settings.test, "val": settings.val}
    threads = settings.threads or parallel.default_threads()
    by_hand = [corrections.read_corrections(expand_home(name)) for name in settings.corrections]
    prepared = prepare(listing, shares, settings.seed, threads, settings.group_by, settings.range)
    for one in by_hand:
        prepared = with_corrections(prepared, one, folder)
    if prepared.bad and settings.on_bad == "error":
        raise errors.PipelineError(
            f"{len(prepared.bad)} bad files: {first_bad(prepared.bad)}. Fix them, or run with --on-bad skip."
        )
    validation.validate_usable(prepared, shown)
    validation.validate_groups(prepared, settings.group_by, shown)
    recorded: dict[str, object] = {name: identity_of(getattr(settings, name)) for name in ("dataset", "unlabelled")}
    recorded |= {name: getattr(settings, name) for name in RECORDED}
    recorded["corrections"] = [identity_of(name) for name in settings.corrections]
    write_origin(folder, source, prepared.max_value, prepared.depths, recorded)
    write(prepared, folder)
    print(summary(prepared, folder))
