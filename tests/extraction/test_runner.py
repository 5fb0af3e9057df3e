"""Extracting a dataset: copies and bad images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Outcome

from pipeline.codes import reader

FLAGS = ("--dataset", "photos", "--layer", "fc7", "--batch-size", 4, "--precision", "fp32")


def test_a_copy_of_an_image_and_a_corrupt_image(run: Callable[..., Outcome], photos: Path) -> None:
    """The copy is in a later batch than its original; the corrupt image's row is left out of the file.

    The second run writes into a folder that shares no cache with the first.
    """
    originals = sorted(photos.glob("*/*.png"))
    shutil.copy(originals[0], photos / "red" / "99.png")
    assert run("prepare", "--dataset", photos).code == 0
    assert run("extract", *FLAGS, "--out", "whole").code == 0
    originals[5].write_bytes(originals[5].read_bytes()[:200])
    outcome = run("extract", *FLAGS, "--out", "parts/part")
    assert outcome.code == 0 and f"Skipped '{originals[5]}'" in outcome.out, outcome
    whole, part = (reader.read(Path(folder, "fc7.h5"), {}) for folder in ("whole", "parts/part"))
    kept = [row for row, path in enumerate(whole.paths) if Path(path).parts[-2:] != originals[5].parts[-2:]]
    assert len(whole.paths) == 37 and part.paths == tuple(whole.paths[row] for row in kept)
    assert part.digests == tuple(whole.digests[row] for row in kept)
    np.testing.assert_array_equal(part.values, whole.values[kept])
    for codes in (whole, part):
        first, second = (row for row, digest in enumerate(codes.digests) if codes.digests.count(digest) == 2)
        assert second - first > 4 and (codes.values[first] == codes.values[second]).all()
