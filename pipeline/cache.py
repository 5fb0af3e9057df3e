"""Show the codes that earlier extractions keep for later ones, and prune them."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import command_line
from pipeline.codes.writer import claim_folder
from pipeline.config import Cache
from pipeline.errors import counted

EXAMPLE = "python -m pipeline.cache --prune"


def cache_folders(features: Path) -> list[Path]:
    """Return the cache folders below the folder of all codes, one per dataset and backbone, those of advise too."""
    return sorted(path for path in features.glob("**/.cache/*") if path.is_dir())


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
        for path in folder.iterdir():
            freed += own_bytes(path)
            path.unlink()
    return freed


def run(settings: Cache) -> None:
    """Show or prune the cache."""
    folders = cache_folders(settings.features)
    if settings.prune:
        print(f"{sum(map(prune, folders)) / 1e6:.1f} MB freed")
        return
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    for path in files:
        print(f"{path.stat().st_size / 1e6:10.1f} MB  {own_bytes(path) / 1e6:10.1f} MB of its own  {path}")
    print(f"{counted(len(files), 'file')}, {sum(map(own_bytes, files)) / 1e6:.1f} MB that nothing else holds")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("cache", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
