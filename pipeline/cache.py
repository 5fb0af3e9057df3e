"""Show what earlier runs keep for later ones, and prune it: codes of extractions, checkpoints of fine-tuning.

Example: python -m pipeline.cache --prune
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("cache")

from pathlib import Path

from pipeline.codes.shards import ATTEMPTS
from pipeline.codes.writer import claim_folder
from pipeline.config import Cache
from pipeline.errors import counted


def cache_folders(features: Path) -> list[Path]:
    """Return the cache folders below the folder of all codes, one per dataset and backbone, those of advise too."""
    found = (path for path in features.glob("**/.cache/*") if path.is_dir())
    return sorted(path for path in found if ATTEMPTS not in path.parts)


def files_in(folder: Path) -> list[Path]:
    """Return the files of a cache folder, those of shards too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def own_bytes(path: Path) -> int:
    """Return the bytes on disk that removing this file would free: none while a file of codes shares them."""
    status = path.stat()
    return 512 * status.st_blocks if status.st_nlink == 1 else 0


def prune(folder: Path) -> int:
    """Remove the files of one cache folder, and return the bytes that this freed.

    Raises PipelineError if a run is writing there.
    """
    freed = 0
    with claim_folder(folder.parent.parent / folder.name):
        for path in files_in(folder):
            freed += own_bytes(path)
            path.unlink()
    return freed


def checkpoints(models: Path) -> list[Path]:
    """Return the files that interrupted fine-tuning left below the folder of all classifiers."""
    return sorted(path for path in models.glob("**/.cache/*") if path.is_file() and path.suffix != ".lock")


def prune_checkpoint(path: Path) -> int:
    """Remove a checkpoint, or one that was half-written, and return the bytes that this freed.

    Raises PipelineError if a run is using it.
    """
    from pipeline.finetuning.checkpoint import Checkpoint  # takes seconds to import, and is seldom needed

    complete = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
    with Checkpoint(complete, {}).locked():
        freed = own_bytes(path)
        path.unlink()
    return freed


def run(settings: Cache) -> None:
    """Show or prune the cache."""
    folders, of_models = cache_folders(settings.features), checkpoints(settings.models)
    if settings.prune:
        freed = sum(map(prune, folders)) + sum(map(prune_checkpoint, of_models))
        print(f"{freed / 1e6:.1f} MB freed")
        return
    files = [path for folder in folders for path in files_in(folder)] + of_models
    for path in files:
        print(f"{path.stat().st_size / 1e6:10.1f} MB  {own_bytes(path) / 1e6:10.1f} MB of its own  {path}")
    print(f"{counted(len(files), 'file')}, {sum(map(own_bytes, files)) / 1e6:.1f} MB that nothing else holds")
