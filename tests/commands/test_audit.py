"""audit: what deserves a second look becomes a file that a person fills in, and `prepare` takes its corrections."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, write_photos
from helpers import CODES, mistake, write_listed_codes

from pipeline import files
from pipeline.data.manifest import read_manifest

Run = Callable[..., Outcome]
SHEET = Path("reports/digits/tinyvgg/fc7-audit.csv")


@pytest.fixture
def doubtful(run: Run, project: Path) -> Run:
    """A dataset with a wrong label, a copy of another label, and a copy in another split, audited."""
    photos = write_photos(project / "photos", {"red": 12, "green": 12, "blue": 12})
    for name in ("red", "green", "blue"):
        (photos / "train" / name).mkdir(parents=True)
        (photos / "test" / name).mkdir(parents=True)
        for number, file in enumerate(sorted((photos / name).iterdir())):
            file.rename(photos / ("test" if number < 2 else "train") / name / file.name)
        (photos / name).rmdir()
    (photos / "train/red/05.png").rename(photos / "train/blue/wrong.png")
    shutil.copy(photos / "train/red/07.png", photos / "train/green/conflict.png")
    shutil.copy(photos / "train/red/08.png", photos / "test/red/leak.png")
    assert run("prepare", "--dataset", photos, "--out", "data/digits").code == 0
    assert run("extract", "--layer", "fc7").code == 0
    outcome = run("audit")
    assert outcome.code == 0 and "label error" in outcome.out and "--corrections" in outcome.out, outcome
    return run


def fill_in(path: Path, **actions: tuple[str, str]) -> list[dict[str, str]]:
    """Give the rows of files, named without their suffix, an action and its target; return all rows."""
    rows = files.read_csv(SHEET)
    for row in rows:
        if (name := Path(row["path"]).stem) in actions:
            row["action"], row["to"] = actions[name]
    files.write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
    return rows


def test_what_is_found_can_be_corrected(doubtful: Run, project: Path) -> None:
    rows = fill_in(project / "mine.csv", wrong=("relabel", "red"), conflict=("Drop", ""), leak=("move", "train"))
    found = {(Path(row["path"]).name, row["problem"]): row for row in rows}
    assert found["wrong.png", "label error"]["label"] == "blue"
    assert Path(found["conflict.png", "conflicting duplicate"]["other"]).name == "07.png"
    assert {"07.png", "conflict.png"} <= {name for name, problem in found if problem == "conflicting duplicate"}
    assert ("08.png", "copy across splits") in found or ("leak.png", "copy across splits") in found
    before = {Path(path).name: split for path, split in rows_of("path", "split")}
    fill_in(project / "mine.csv", wrong=("relabel", "red"), conflict=("Drop", ""), **{"10": ("move", "test")})
    outcome = doubtful("prepare", "--dataset", "photos", "--out", "data/digits", "--corrections", "mine.csv")
    assert "1 relabelled, 1 dropped" in outcome.out, outcome
    manifest = read_manifest(Path("data/digits"))
    names = [Path(path).name for path in manifest.paths]
    assert "conflict.png" not in names and manifest.classes[manifest.labels[names.index("wrong.png")]] == "red"
    assert "conflict.png,dropped by the corrections" in Path("data/digits/skipped.csv").read_text()
    after = {Path(path).name: split for path, split in rows_of("path", "split")}
    assert {name: split for name, split in after.items() if before[name] != split and name != "10.png"} == {}
    again = doubtful("extract", "--layer", "fc7")
    assert "0 images went through the network" in again.out
    assert "--corrections mine.csv reports" in doubtful("audit").out.replace(f"{project}/", "")


def rows_of(*columns: str) -> list[list[str]]:
    """Return columns of the manifest."""
    return [[row[name] for name in columns] for row in files.read_csv(Path("data/digits/manifest.csv"))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("photos/no.png,drop,", ("'photos/no.png', which is no image",)),
        ("{path},relabel,rde", ("Unknown class 'rde'", "red")),
        ("{path},relabel,", ("Unknown class ''",)),
        ("{path},move,tset", ("Unknown split 'tset'", "line 2", "test")),
        ("{path},delete,", ("Unknown action 'delete'", "drop")),
        ("{path},drop,\n{path},relabel,red", ("line 3", "another correction above")),
    ],
)
def test_corrections_that_cannot_be_made_change_nothing(
    run: Run, photos: Path, line: str, words: tuple[str, ...]
) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    manifest = Path("data/photos/manifest.csv")
    before, path = manifest.read_bytes(), files.read_csv(manifest)[0]["path"]
    Path("mine.csv").write_text("path,action,to\n" + line.format(path=path) + "\n")
    mistake(run("prepare", "--dataset", photos, "--corrections", "mine.csv"), *words)
    assert manifest.read_bytes() == before


def test_a_file_of_corrections_that_is_missing_or_lacks_columns(run: Run, photos: Path) -> None:
    mistake(run("prepare", "--dataset", photos, "--corrections", "mine.csv"), "no corrections at mine.csv")
    Path("mine.csv").write_text("path,do\na.png,drop\n")
    mistake(run("prepare", "--dataset", photos, "--corrections", "mine.csv"), "Unknown column 'action'", "do")


def test_an_image_without_a_label_gets_one_and_is_trained_on(run: Run, photos: Path, project: Path) -> None:
    pile = write_photos(project / "pile", {"any": 2}, seed=1)
    flags = ("--dataset", photos, "--unlabelled", pile)
    assert "2 unlabelled" in run("prepare", *flags).out
    Path("mine.csv").write_text(f"path,action,to\n{pile / 'any/00.png'},relabel,red\n")
    assert "28 train, 9 test, 1 unlabelled" in run("prepare", *flags, "--corrections", "mine.csv").out


def test_a_file_that_is_filled_in_is_not_written_over(doubtful: Run) -> None:
    fill_in(SHEET, wrong=("relabel", "red"))
    SHEET.write_bytes(SHEET.read_text(encoding="utf-8").replace(",", ";").encode("utf-16"))
    mistake(doubtful("audit"), "has been filled in", "--out")
    assert doubtful("audit", "--out", "second.csv").code == 0


def test_what_cannot_be_audited_is_refused(run: Run) -> None:
    mistake(run("audit"), "no codes at", "pipeline.extract")
    mistake(run("audit", "--layer", "fc6+fc7"), "names several layers")
    write_listed_codes(["a.png", "b.png"], [0, 0], ["train"] * 2, ["ant"])
    mistake(run("audit"), "one class only")
    assert not SHEET.exists() and CODES.exists()
