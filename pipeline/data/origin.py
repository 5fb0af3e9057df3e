"""What a prepared dataset was made from, so that one name is never given to the images of two sources unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import files
from pipeline.errors import Fix, PipelineError
from pipeline.images.depth import Depths
from pipeline.paths import MANIFEST, ORIGIN, identity_of, is_task, read_origin, read_record, without_task


def validate_origin(folder: Path, source: str, overwrite: bool) -> None:
    """Refuse to prepare a source in a folder that holds a dataset of another source, unless that is to be replaced."""
    path = folder / ORIGIN
    if overwrite or not path.exists() or not (folder / MANIFEST).exists():
        return
    before = read_origin(folder) or f"named in the damaged file {path}"
    if before != identity_of(source):
        raise PipelineError(
            f"{folder} holds the dataset of another source, {before}. Take --overwrite to replace it, or another name "
            f"with --out {folder.parent / 'NAME'}."
        )


def write_origin(folder: Path, source: str, max_value: float, depths: Depths, settings: Mapping[str, object]) -> None:
    """Record what a dataset is made from and how.

    max_value: the value that is white in its images of more than 8 bits; depths: of its images; settings: those of
    `prepare` on which the dataset depends, its sources included.
    """
    content = {"source": identity_of(source), "max_value": max_value, "depths": depths.to_dict(), "settings": settings}
    files.write_json(folder / ORIGIN, content)


def prepare_again(folder: Path) -> list[Fix]:
    """Return the command that prepares a dataset as it was prepared before, as far as that is known."""
    record = read_record(folder)
    settings = record.get("settings", {})
    if "source" not in record or not isinstance(settings, dict):
        return [Fix("prepare", {"out": folder})]
    whole = without_task(folder) if is_task(folder) else folder
    return [Fix("prepare", {"out": whole, "dataset": record["source"], **settings})]
