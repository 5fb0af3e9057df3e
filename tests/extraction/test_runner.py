"""Extracting a dataset: what must hold under `python -O` as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT

from pipeline.codes import reader

SCRIPT = """
import sys
from pipeline import extract, prepare
assert False, "asserts are not executed"
sys.exit(prepare.main(["--dataset", "photos"]) or extract.main(sys.argv[1:]))
"""


def test_a_copy_of_an_image_and_a_corrupt_image_are_extracted_without_asserts(photos: Path) -> None:
    """The copy is in a later batch than its original; the corrupt image's row is left out of the file."""
    originals = sorted(photos.glob("*/*.png"))
    shutil.copy(originals[0], photos / "red" / "99.png")
    flags = ("--dataset", "photos", "--layer", "fc7", "--batch-size", "4", "--precision", "fp32", "--max-bad", "0.5")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    project = photos.parent
    command = [sys.executable, "-O", "-c", SCRIPT, *flags]
    whole = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    before = reader.read(project / "features/photos/tinyvgg/fc7.h5", {})
    shutil.rmtree(project / "features")
    corrupt = originals[5]
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    extract = [sys.executable, "-O", "-m", "pipeline.extract", *flags]
    part = subprocess.run(extract, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert part.returncode == 0 and corrupt.name in part.stdout, part.stderr
    after = reader.read(project / "features/photos/tinyvgg/fc7.h5", {})
    kept = [
        row for row, path in enumerate(before.paths) if not path.endswith(str(Path(corrupt.parent.name, corrupt.name)))
    ]
    assert len(kept) == 36 and [before.paths[row] for row in kept] == list(after.paths)
    np.testing.assert_allclose(after.values, before.values[kept], rtol=1e-4, atol=1e-5)
    assert after.digests == tuple(before.digests[row] for row in kept)
    copies = [row for row, digest in enumerate(after.digests) if after.digests.count(digest) == 2]
    assert len(copies) == 2 and (after.values[copies[0]] == after.values[copies[1]]).all()
