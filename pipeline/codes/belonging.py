"""Codes belong to a dataset: compare a file's rows with the manifest, and name the first difference."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.codes.reader import Codes, CodesIndex, layer_files, read_index
from pipeline.codes.shards import as_settings
from pipeline.codes.spec import Rows, extract_settings
from pipeline.data.manifest import Manifest, dataset_digest, names_of_label, read_manifest
from pipeline.errors import Fix, PipelineError, first_names
from pipeline.paths import MANIFEST, read_tasks

logger = logging.getLogger(__name__)


def validate_dataset(path: Path, data: Path, known: CodesIndex | None = None) -> CodesIndex:
    """Refuse codes whose images, labels, splits or digests are not those of the prepared dataset as it is now.

    path: a file of codes, or fc6+fc7.h5 for those of several layers; data: the folder with the manifest. Where nothing
    is prepared there, that is logged, and nothing is compared. known: the index of the first file, which is returned,
    if it has been read.
    """
    first, *others = layer_files(path)
    known = known or read_index(first, {})
    if not (data / MANIFEST).exists():
        logger.info("There is no prepared dataset at %s: the codes are not compared with it.", data)
        return known
    manifest = read_manifest(data)
    for file in (first, *others):
        index = known if file == first else read_index(file, {})
        if difference := next(differences(index, manifest), ""):
            raise PipelineError(
                f"{file} does not belong to the dataset in {data} as it is now: {difference}. Extract again (images "
                "that are the same cost no forward pass).",
                fix=[
                    Fix("extract", {**extract_settings(index.spec.to_dict()), **as_settings(file), "out": file.parent})
                ],
            )
    return known


def validate_classes(path: Path, classes: tuple[str, ...], data: Path) -> None:
    """Refuse a classifier of another task than the dataset in its address is now; path: of the classifier.

    A dataset is its first task, and another column may have been the first when the classifier was trained.
    """
    if read_tasks(data) and (data / MANIFEST).exists() and (now := read_manifest(data).classes) != classes:
        raise PipelineError(
            f"{path} knows the classes {first_names(classes)}, and the dataset in {data} has {first_names(now)} now. "
            "Train it again, or name the file with --classifier.",
            fix=[Fix("classify")],
        )


def differences(index: CodesIndex, manifest: Manifest) -> Iterator[str]:
    """Yield in what the rows of codes differ from a manifest, a sentence part for each row.

    Images that were skipped at extraction, since they could not be read, are no difference.
    """
    if index.classes != manifest.classes:
        odd = sorted(set(index.classes) ^ set(manifest.classes))
        where = "the codes have" if odd[0] in index.classes else "the dataset has"
        yield f"only {where} the class {odd[0]!r}"
    if (index.paths, index.digests, index.splits) == (manifest.paths, manifest.digests, manifest.splits) and (
        index.classes == manifest.classes and np.array_equal(index.labels, manifest.labels)
    ):
        return
    rows = manifest.paths.rows_of(index.paths)
    for number, (path, row) in enumerate(zip(index.paths, rows, strict=True)):
        if row < 0:
            yield f"{path!r} is not in the dataset"
        elif difference := _row_difference(index, number, manifest, row):
            yield f"{path!r} {difference}"
    missing = set(manifest.paths.take(np.flatnonzero(index.paths.rows_of(manifest.paths) < 0)))
    skipped = {path for path in missing if any(entry.startswith(f"{path}: ") for entry in index.bad)}
    yield from (f"{path!r} has no code" for path in sorted(missing - skipped))


def _row_difference(index: CodesIndex, number: int, manifest: Manifest, row: int) -> str:
    """Say in what a row of codes differs from the manifest's row of the same path; "" if in nothing."""
    if index.digests[number] != manifest.digests[row]:
        return "is another image than the one that was extracted"
    ours = names_of_label(index.classes, index.labels[number])
    theirs = names_of_label(manifest.classes, manifest.labels[row])
    if ours != theirs:
        return f"is labelled {';'.join(ours)!r} in the codes and {';'.join(theirs)!r} in the dataset"
    if index.splits[number] != manifest.splits[row]:
        return f"is in the split {index.splits[number]} in the codes and in {manifest.splits[row]} in the dataset"
    return ""


def training_digest(rows: Codes[Rows] | CodesIndex | Manifest) -> str:
    """Return the digest of a dataset's training images, their labels and classes: what a classifier is trained on."""
    train = np.flatnonzero(rows.splits.isin(["train"]))
    paths, splits, digests = (column.take(train) for column in (rows.paths, rows.splits, rows.digests))
    return dataset_digest(paths, rows.labels[train], splits, rows.classes, digests)
