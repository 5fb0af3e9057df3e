"""The progress bar of long work: rate and time left on a terminal, nothing elsewhere, nothing with --quiet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(description: str, total: int) -> tqdm[Any]:
    """Return a bar that counts images on standard error; it shows nothing where that is no terminal."""
    from tqdm import tqdm

    quiet = logging.getLogger("pipeline").getEffectiveLevel() >= logging.ERROR  # as --quiet sets it
    return tqdm(desc=description, total=total, unit="image", disable=True if quiet else None)
