"""What a prepared dataset was made from, so that one name is never given to the images of two sources unnoticed."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import files
from pipeline.data.listing import expand_home
from pipeline.data.manifest import MANIFEST, ORIGIN
from pipeline.errors import PipelineError


def identity_of(source: str) -> str:
    """Return what tells a source from others: the absolute path of a folder or file, or the name of a dataset."""
    path = expand_home(source)
    return str(path.resolve()) if path.exists() else source


def validate_origin(folder: Path, source: str, overwrite: bool) -> None:
    """Refuse to prepare a source in a folder that holds a dataset of another source, unless that is to be replaced."""
    path = folder / ORIGIN
    if overwrite or not path.exists() or not (folder / MANIFEST).exists():
        return
    before = _read_origin(path)
    if before != identity_of(source):
        raise PipelineError(
            f"{folder} holds the dataset of another source, {before}. Take --overwrite to replace it, or another name "
            f"with --out {folder.parent / 'NAME'}."
        )


def _read_origin(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["source"])
    except (ValueError, KeyError, TypeError):
        return f"named in the damaged file {path}"


def write_origin(folder: Path, source: str, max_value: float) -> None:
    """Record what a dataset is made from, and the value that is white in its images of more than 8 bits."""
    files.write_json(folder / ORIGIN, {"source": identity_of(source), "max_value": max_value})
