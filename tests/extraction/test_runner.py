"""Extracting a dataset: copies and bad images, where asserts are not executed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from pipeline.codes import reader

SCRIPT = """
import os, sys
from pathlib import Path
from pipeline.command_line import run_command as run

assert False, "asserts are executed"
flags = ["--dataset", "photos", "--layer", "fc7", "--batch-size", "4", "--precision", "fp32"]
codes = run("prepare", ["--dataset", "photos"]), run("extract", [*flags, "--out", "whole"])
corrupt = Path(sys.argv[1])
corrupt.write_bytes(corrupt.read_bytes()[:200])
sys.exit(any([*codes, run("extract", [*flags, "--out", "parts/part"])]))
"""
"""Extracts a folder twice, the second time without an image, into a folder that shares no cache with the first."""


@pytest.mark.slow
def test_a_copy_of_an_image_and_a_corrupt_image_are_extracted_without_asserts(photos: Path) -> None:
    """The copy is in a later batch than its original; the corrupt image's row is left out of the file."""
    originals = sorted(photos.glob("*/*.png"))
    shutil.copy(originals[0], photos / "red" / "99.png")
    ended = subprocess.run(
        [sys.executable, "-O", "-c", SCRIPT, originals[5]],
        cwd=photos.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0 and f"Skipped '{originals[5]}'" in ended.stdout, (ended.stdout, ended.stderr)
    whole, part = (reader.read(photos.parent / folder / "fc7.h5", {}) for folder in ("whole", "parts/part"))
    kept = [row for row, path in enumerate(whole.paths) if Path(path).parts[-2:] != originals[5].parts[-2:]]
    assert len(whole.paths) == 37 and part.paths == tuple(whole.paths[row] for row in kept)
    assert part.digests == tuple(whole.digests[row] for row in kept)
    np.testing.assert_allclose(part.values, whole.values[kept], rtol=1e-4, atol=1e-5)
    for codes in (whole, part):
        first, second = (row for row, digest in enumerate(codes.digests) if codes.digests.count(digest) == 2)
        assert second - first > 4 and (codes.values[first] == codes.values[second]).all()
