"""Codes belong to a dataset: whoever reads them refuses those of other labels, splits, images or classes, by name."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, write_photos
from helpers import FC7, count_forwards, mistake
from PIL import Image

from pipeline import files

Run = Callable[..., Outcome]
FLAGS = ("--dataset", "photos")
GRID = ("--grid", "{l2: {C: [1]}}", "--folds", 2)


@pytest.fixture
def done(run: Run, photos: Path) -> Run:
    """`photos` prepared, extracted, classified and evaluated."""
    for command, flags in (("prepare", ("--dataset", photos)), ("extract", FLAGS), ("classify", (*FLAGS, *GRID))):
        assert run(command, *flags).code == 0
    assert run("evaluate", *FLAGS).code == 0
    return run


def change(row: int, **cells: str) -> dict[str, str]:
    """Change cells of a row of the manifest; return the row as it was."""
    path = Path("data/photos/manifest.csv")
    rows = files.read_csv(path)
    before = dict(rows[row])
    rows[row] |= cells
    files.write_csv(path, list(rows[0]), [list(line.values()) for line in rows])
    return before


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"label": "blue"}, "is labelled"),
        ({"split": "val"}, "and in val in the dataset"),
        ({"digest": "0" * 64}, "is another image"),
        ({"path": "/elsewhere.png"}, "is not in the dataset"),
        ({"label": "violet"}, "only the dataset has the class 'violet'"),
    ],
)
@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_the_first_difference_is_named_with_the_command_that_fixes_it(
    done: Run, command: str, cells: dict[str, str], words: str
) -> None:
    row = next(n for n, r in enumerate(files.read_csv(Path("data/photos/manifest.csv"))) if r["label"] != "blue")
    before = change(row, **cells)
    flags = GRID if command == "classify" else ()
    hint = "python -m pipeline.extract --dataset photos --backbone tinyvgg --layer fc7"
    mistake(done(command, *FLAGS, *flags), str(FC7), words, hint)
    change(row, **before)
    assert done(command, *FLAGS, *flags).code == 0


def test_labels_corrected_after_extraction_cost_no_forward_pass_but_training_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels were wrong, and are put right: neither the old codes nor the old classifier give a score."""
    right = write_photos(tmp_path / "right" / "photos", {"red": 12, "green": 12, "blue": 12})
    wrong = tmp_path / "wrong" / "photos"
    for number, path in enumerate(sorted(right.glob("*/*"))):
        folder = wrong / ("red", "green", "blue")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    assert run("prepare", "--dataset", wrong).code == 0 and run("extract", *FLAGS).code == 0
    assert run("classify", *FLAGS, *GRID).code == 0
    mistake(run("prepare", "--dataset", right), "holds the dataset of another source", str(wrong), "--overwrite")
    assert run("prepare", "--dataset", right, "--overwrite").code == 0
    refused = run("classify", *FLAGS, *GRID)
    mistake(refused, "is not in the dataset", "pipeline.extract")
    mistake(run("evaluate", *FLAGS), "is not in the dataset")
    seen = count_forwards(monkeypatch)
    command = shlex.split(refused.err.split("python -m pipeline.")[1].strip().rstrip("."))
    assert run(*command).code == 0 and sum(seen) == 0
    mistake(run("evaluate", *FLAGS), "was trained on other training images or labels", "pipeline.classify")
    assert run("classify", *FLAGS, *GRID).code == 0
    outcome = run("evaluate", *FLAGS)
    assert outcome.code == 0 and "top-1 1.0000" in outcome.out


def test_images_that_cannot_be_read_are_no_difference(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    path = sorted(photos.glob("red/*"))[0]
    path.write_bytes(b"")
    assert run("extract", *FLAGS).code == 0
    assert run("classify", *FLAGS, *GRID).code == 0


def test_the_report_says_which_scores_are_of_another_state(done: Run) -> None:
    change(0, label="green" if files.read_csv(Path("data/photos/manifest.csv"))[0]["label"] != "green" else "red")
    outcome = done("report")
    assert outcome.code == 0 and "photos/tinyvgg/fc7-svm: features/photos/tinyvgg/fc7.h5 does not belong" in outcome.out
    assert "does not belong to the dataset" in Path("reports/index.html").read_text()


def test_a_changed_image_is_extracted_again(done: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30), "red").save(sorted(photos.glob("red/*"))[0])
    assert done("prepare", "--dataset", photos).code == 0
    mistake(done("classify", *FLAGS, *GRID), "does not belong to the dataset")
    seen = count_forwards(monkeypatch)
    assert done("extract", *FLAGS).code == 0 and sum(seen) == 1
