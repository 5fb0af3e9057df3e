"""`similar` names the images of a dataset that are nearest in code space, and draws them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import mistake
from PIL import Image

from pipeline.codes import reader

Run = Callable[..., Outcome]
CODES = Path("features/photos/tinyvgg/fc7.h5")


@pytest.fixture
def extracted(run: Run, photos: Path) -> Path:
    """The folder of photos, prepared, with codes."""
    assert run("prepare", "--dataset", photos).code == 0
    assert run("extract", "--dataset", "photos", "--layer", "fc7").code == 0
    return photos


def lines(outcome: Outcome) -> list[dict[str, str]]:
    assert outcome.code == 0, outcome
    return list(csv.DictReader(io.StringIO(outcome.out)))


def test_the_nearest_come_first_and_an_image_of_the_dataset_finds_itself(run: Run, extracted: Path) -> None:
    query = extracted / "red" / "03.png"
    found = lines(run("similar", query, "--dataset", "photos", "--count", 36))
    assert found[0]["path"] == str(query) and float(found[0]["distance"]) < 1e-6 and found[0]["label"] == "red"
    codes = reader.read(CODES, {})
    values = codes.values / np.linalg.norm(codes.values, axis=1, keepdims=True)
    distances = dict(zip(codes.paths, 1 - values @ values[codes.paths.index(str(query))], strict=True))
    assert [line["path"] for line in found] == sorted(distances, key=lambda path: distances[path])
    assert [float(line["distance"]) for line in found] == pytest.approx(sorted(distances.values()), abs=2e-6)
    with Image.open("reports/photos/tinyvgg/fc7-similar.png") as sheet:
        assert sheet.width > 37 * 100


def test_several_images_and_bad_ones(run: Run, extracted: Path, project: Path) -> None:
    (project / "bad.png").write_bytes(b"no image")
    images = (extracted / "red" / "00.png", "bad.png", extracted / "blue" / "00.png")
    outcome = run("similar", *images, "--dataset", "photos", "--count", 2, "--out", "sheet.png")
    assert [line["image"] for line in lines(outcome)] == [str(images[0])] * 2 + [str(images[2])] * 2
    assert "Skipped 'bad.png'" in outcome.err and Path("sheet.png").exists()
    mistake(run("similar", "bad.png", "--dataset", "photos"), "None of 1 image can be read")


def test_mistakes(run: Run, extracted: Path) -> None:
    mistake(run("similar", extracted / "red", "--dataset", "photos", "--layer", "fc6+fc7"), "Take one of them")
    mistake(run("similar", extracted / "red", "--dataset", "photos", "--layer", "fc6"), "no codes", "pipeline.extract")
    write = Path("data/photos/manifest.csv")
    write.write_text(write.read_text().replace(",red,", ",scarlet,"))
    mistake(run("similar", extracted / "red", "--dataset", "photos"), "does not belong to the dataset")
