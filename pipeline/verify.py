"""Check a file of codes: its checksums, its spec, and that each row belongs to the image and label it names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import command_line, errors
from pipeline.codes import reader
from pipeline.codes.spec import extract_settings
from pipeline.config import Verify
from pipeline.data.manifest import Manifest, names_of_label, read_manifest
from pipeline.images import decoding, parallel
from pipeline.paths import MANIFEST, Experiment
from pipeline.progress import track

EXAMPLE = "python -m pipeline.verify features/digits/tinyvgg/fc7.h5"


def value_problems(path: Path) -> Iterator[str]:
    """Yield a description of each row whose values are not finite; raise PipelineError if a checksum is wrong."""
    index = reader.read_index(path, {})
    for rows, values in reader.blocks(path, np.arange(len(index.paths))):
        for row in rows[~np.isfinite(values).all(1)]:
            yield f"row {row} ({index.paths[row]!r}) has values that are not finite"


def dataset_problems(path: Path, manifest: Manifest, threads: int) -> Iterator[str]:
    """Yield a description of each row whose image, label or split differs from the prepared dataset."""
    index = reader.read_index(path, {})
    manifest_rows = {name: row for row, name in enumerate(manifest.paths)}
    rows = [manifest_rows.get(name) for name in index.paths]
    files = (manifest.root / name for name in index.paths)
    digests = parallel.ordered_map(decoding.read_digest, files, threads, ahead=16 * threads)
    for number, (row, digest) in enumerate(zip(rows, track(digests, "verifying", len(rows)), strict=True)):
        name = f"row {number} ({index.paths[number]!r})"
        if row is None:
            yield f"{name} is not in the dataset"
        elif isinstance(digest, decoding.BadImage) or digest != index.digests[number]:
            yield f"{name} is of an image that is gone or has changed"
        elif index.splits[number] != manifest.splits[row] or (
            names_of_label(index.classes, index.labels[number])
            != names_of_label(manifest.classes, manifest.labels[row])
        ):
            yield f"{name} has another label or split than the dataset"


def run(settings: Verify) -> None:
    """Verify what the settings name."""
    spec = reader.read_index(settings.file, {}).spec
    problems = list(value_problems(settings.file))
    dataset = settings.dataset or settings.file.absolute().parents[1 + spec.backbone.count("/")].name
    folder = Experiment(dataset, spec.backbone).data
    compared = settings.dataset or (folder / MANIFEST).exists()
    if compared:
        problems += dataset_problems(
            settings.file, read_manifest(folder), settings.threads or parallel.default_threads()
        )
    if problems:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        values = {"dataset": dataset, **extract_settings(spec.to_dict()), "out": settings.file.parent}
        fix = [errors.Fix("extract", values)]
        raise errors.PipelineError(f"{settings.file}: {problems[0]}{rest}. Extract again.", fix=fix)
    images_too = f"and fit the images in {folder}" if compared else "(no prepared dataset to compare them with)"
    print(f"{settings.file}: {spec.backbone} {spec.layer}, all rows are sound {images_too}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("verify", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
