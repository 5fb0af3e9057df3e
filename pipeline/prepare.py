"""Make a dataset ready: check every file, settle the splits, write data/<dataset>/manifest.csv."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import command_line, errors, files, params
from pipeline.config import Prepare
from pipeline.data import downloads, sources
from pipeline.data.manifest import SPLITS, ListedImage, write_manifest
from pipeline.data.origin import validate_origin, write_origin
from pipeline.data.splits import assign_splits, find_leaks, resolve_splits
from pipeline.images import decoding, parallel

EXAMPLE = "python -m pipeline.prepare --dataset ~/photos/flowers --test 0.2"
SOURCES: dict[str, Callable[[Path], list[ListedImage]]] = {"digits": sources.write_digits, **downloads.SOURCES}


@dataclass(frozen=True)
class Prepared:
    """What came of a dataset: its images with their splits, the bad files with reasons, copies across splits."""

    images: list[ListedImage]
    bad: list[tuple[str, str]]
    leaks: list[ListedImage]


def list_source(source: str, folder: Path) -> list[ListedImage]:
    """List the images of a named dataset (written or downloaded to `folder`), a folder or a CSV."""
    if source in SOURCES:
        return SOURCES[source](folder)
    path = Path(source).expanduser()
    if path.is_dir():
        return sources.list_folder(path)
    if path.suffix.lower() == ".csv" and path.exists():
        return sources.list_csv(path)
    if "/" in source or path.suffix:
        raise errors.PipelineError(f"No folder or CSV at {source}. Check the path.")
    raise errors.unknown("dataset", source, SOURCES, where="neither a folder nor a CSV")


def check(path: Path) -> str:
    """Decode one file and return its digest; raise `BadImage` where it gives no picture."""
    data = decoding.read_bytes(path)
    decoding.decode(data)
    return decoding.digest(data)


def prepare(
    listed: Sequence[ListedImage], shares: dict[str, float], seed: int, threads: int, group_by: str = ""
) -> Prepared:
    """Open every listed file, set the bad ones aside, give the others splits, and look for leakage."""
    from tqdm import tqdm

    paths = [image.path for image in listed]
    checked = parallel.ordered_map(check, paths, threads, ahead=16 * threads)
    results = list(tqdm(checked, "checking", len(paths), unit="image", disable=None))
    good = [replace(image, digest=r) for image, r in zip(listed, results, strict=True) if isinstance(r, str)]
    bad = [(str(i.path), str(r)) for i, r in zip(listed, results, strict=True) if isinstance(r, decoding.BadImage)]
    images = assign_splits(resolve_splits(good), shares, seed, group_by)
    return Prepared(images, bad, find_leaks(images))


def validate_column(listed: Sequence[ListedImage], name: str, source: str) -> None:
    """Refuse to group by a column that the source does not have, or has without a value."""
    if not name:
        return
    for image in listed:
        if name not in image.metadata:
            raise errors.unknown("column", name, image.metadata, where=f"--group-by in {source}")
        if not image.metadata[name]:
            raise errors.PipelineError(
                f"{image.path} has no value in the column {name!r}. Fill it in: its group is unknown."
            )


def validate_groups(prepared: Prepared, name: str, source: str) -> None:
    """Refuse splits of the source's own that part a group."""
    splits: dict[str, set[str | None]] = {}
    for image in prepared.images if name else ():
        splits.setdefault(image.metadata[name], set()).add(image.split)
    if parted := sorted(group for group, found in splits.items() if len(found) > 1):
        raise errors.PipelineError(
            f"The splits of {source} part {len(parted)} groups of {name!r}, the first is {parted[0]!r}. Mend the "
            "column split, or take it out."
        )


def validate_usable(prepared: Prepared, source: str) -> None:
    """Refuse a dataset that no classifier could learn from."""
    if not prepared.images:
        raise errors.PipelineError(
            f"None of the {len(prepared.bad)} files of {source} is an image: {_first(prepared.bad)}."
        )
    classes = {split: {name for i in prepared.images if i.split == split for name in i.classes} for split in SPLITS}
    every = set().union(*classes.values())
    if len(every) < 2:
        raise errors.PipelineError(f"{source} has one class only, {every.pop()!r}. A classifier needs two or more.")
    for split in ("test", "val"):
        if untrained := sorted(classes[split] - classes["train"]):
            raise errors.PipelineError(
                f"The labels of {source} do not match: class {untrained[0]!r} has images in {split} but none in train. "
                "Add some there, or take it out."
            )


def write(prepared: Prepared, folder: Path) -> None:
    """Write bad.csv and leakage.csv, and last of all the manifest that makes the dataset a prepared one."""
    files.write_csv(folder / "bad.csv", ("path", "reason"), prepared.bad)
    leaks = [(image.digest, image.split, image.label, image.path) for image in prepared.leaks]
    files.write_csv(folder / "leakage.csv", ("digest", "split", "label", "path"), leaks)
    write_manifest(folder, prepared.images)


def summary(prepared: Prepared, folder: Path) -> str:
    """Say what is in the dataset, and what was set aside."""
    counts = Counter(image.split for image in prepared.images)
    splits = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    classes = {name for image in prepared.images for name in image.classes}
    lines = [f"{folder.name}: {len(prepared.images)} images, {len(classes)} classes ({splits})"]
    if prepared.bad:
        lines.append(f"{len(prepared.bad)} bad files set aside, see {folder / 'bad.csv'}: {_first(prepared.bad)}")
    if prepared.leaks:
        copies = len({image.digest for image in prepared.leaks})
        lines.append(f"Leakage: {copies} images occur in more than one split, see {folder / 'leakage.csv'}")
    return "\n".join(lines)


def _first(bad: Sequence[tuple[str, str]]) -> str:
    path, reason = bad[0]
    return f"{path!r}, {reason}" + (", …" if len(bad) > 1 else "")


def name_of(source: str, project: Mapping[str, Any]) -> str:
    """Return a dataset's name: the one that params.yaml gives to its own source, else the last part of the source."""
    if source == str(project["source"]):
        return str(project["dataset"])
    return Path(source).expanduser().resolve().with_suffix("").name


def run(settings: Prepare) -> None:
    """Prepare what the settings name."""
    shares = {"test": settings.test, "val": settings.val}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise errors.PipelineError(
            f"--test {settings.test} and --val {settings.val} must be shares ≥ 0 that leave something for training."
        )
    folder = settings.out or Path("data", name_of(settings.dataset, params.effective()))
    validate_origin(folder, settings.dataset, settings.overwrite)
    listed = list_source(settings.dataset, folder)
    validate_column(listed, settings.group_by, settings.dataset)
    prepared = prepare(listed, shares, settings.seed, settings.threads or parallel.default_threads(), settings.group_by)
    if prepared.bad and settings.on_bad == "error":
        raise errors.PipelineError(
            f"{len(prepared.bad)} bad files: {_first(prepared.bad)}. Mend them, or run with --on-bad skip."
        )
    validate_usable(prepared, settings.dataset)
    validate_groups(prepared, settings.group_by, settings.dataset)
    write_origin(folder, settings.dataset)
    write(prepared, folder)
    print(summary(prepared, folder))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("prepare", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
