"""The README's table "I have … I want …": each of its commands runs, on images like those that its row names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from conftest import ROOT, write_photos
from pyarrow import parquet

import pipeline
from pipeline import command_line, files

PER_CLASS = 16
"""Number of photos of a class: of those for training, 8 are left after a quarter is held out for --shots 8."""


def table_commands() -> list[str]:
    """Return all that stands in backticks in the column `command` of the table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| I have \| I want \| command \|.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.M)
    assert table
    cells = [re.findall(r"`([^`]+)`", row.split(" | ")[2]) for row in table[1].splitlines()]
    assert all(cells), "each row has a command"
    return [command for commands in cells for command in commands]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the rows name, and the photos prepared, extracted, classified once for all rows."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_sources(write_photos(Path("photos"), {"ants": PER_CLASS, "bees": PER_CLASS, "unlabelled": 6}))
        for command in ("prepare", "extract --layer fc7 logits", "classify --model svm"):
            assert command_line.run_command(*words_of(f"{command} --dataset photos")) == 0
        write_photos(Path("drawings"), {"ants": 8, "bees": 8}, seed=1)  # a source with the classes of the photos
        for command in ("prepare", "extract --layer fc7"):
            assert command_line.run_command(*words_of(f"{command} --dataset drawings")) == 0
    yield folder


def write_sources(photos: Path) -> None:
    """Write the files that the rows name, beside a folder of photos by class."""
    images = sorted(path for path in photos.glob("*s/*.png"))
    shutil.copy(images[0], "photo.jpg")
    cells = [(str(path), path.parent.name, f"object {number // 2}") for number, path in enumerate(images)]
    files.write_csv(Path("photos.csv"), ("path", "label", "object"), cells)
    tags = [(path, f"{label};{'even' if row % 2 else 'odd'}") for row, (path, label, _) in enumerate(cells)]
    files.write_csv(Path("tags.csv"), ("path", "labels"), tags)
    shapes = [(path, label, "disc" if row % 2 else "ring") for row, (path, label, _) in enumerate(cells)]
    files.write_csv(Path("things.csv"), ("path", "colour", "shape"), shapes)
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in images:
            archive.write(path, path.relative_to(photos))
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in images],
        "label": [label for _, label, _ in cells],
    }
    parquet.write_table(pyarrow.table(rows), "photos.parquet")


def words_of(command: str) -> tuple[str, list[str]]:
    """Return the stage and the arguments of a command, with the photos where the row looks for them."""
    stage, *arguments = shlex.split(command.removeprefix("python -m pipeline.").replace("~/photos", "photos"))
    return stage, arguments


@pytest.mark.parametrize("command", table_commands())
def test_a_command_of_the_table_runs(command: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    if command.startswith("python -m pipeline."):
        stage, arguments = words_of(command)
        if stage == "prepare":  # of a source of another kind, which may not take the name of a dataset that is there
            shutil.rmtree("data")
        assert command_line.run_command(stage, arguments) == 0
    elif command.startswith("CNNCodes("):
        codes = eval(command, {"CNNCodes": pipeline.CNNCodes}).fit_transform(["photo.jpg"])  # noqa: S307 - the README's own line
        assert codes.shape == (1, 1280) and np.isfinite(codes).all()
    else:  # DVC's own tests run these on a whole clone, for minutes
        assert subprocess.run([*shlex.split(command), "--help"], capture_output=True, check=False).returncode == 0
