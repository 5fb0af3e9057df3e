"""Several columns of labels are several tasks on the same images: one pass of the network, and the same splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import count_forwards, mistake, read_page_data
from PIL import Image

from pipeline import files
from pipeline.data import corrections
from pipeline.data.manifest import read_manifest
from pipeline.paths import Experiment, codes_of_all_tasks, resolve_task, split_task

Run = Callable[..., Outcome]
POOL4 = ("--layer", "pool4")
GRID = ("--grid", "{l2: {C: [10]}}", "--folds", 2)
WITHOUT_COLOUR, WITHOUT_SHAPE = 5, 8


@pytest.fixture
def things(project: Path) -> Path:
    """A CSV file of 24 images with a colour and a shape each, of which one lacks the first and one the second."""
    rng, rows = np.random.default_rng(0), ["path,colour,shape,scene"]
    for number in range(24):
        colour, shape = number % 2, number // 2 % 2
        pixels = rng.integers(0, 90, (40, 40, 3))
        height = 12 if shape else 40
        pixels[:height, :12, colour] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(project / f"{number:02}.png")
        names = ("" if number == WITHOUT_COLOUR else ("red", "green")[colour], ("bar", "dot")[shape])
        rows.append(f"{number:02}.png,{names[0]},{'' if number == WITHOUT_SHAPE else names[1]},{number}")
    (project / "things.csv").write_text("\n".join(rows) + "\n")
    return project / "things.csv"


def test_one_pass_gives_a_classifier_and_a_line_of_the_report_for_each_task(
    things: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = run("prepare", "--dataset", things, "--labels", "colour", "shape")
    assert "things: 24 images, 2 classes" in prepared.out and "things@shape: 24 images, 2 classes" in prepared.out
    assert "classes lost" not in prepared.out
    forwarded = count_forwards(monkeypatch)
    extracted = run("extract", "--dataset", "things", *POOL4)
    assert sum(forwarded) == 24 and "0 images went through the network" in extracted.out, extracted
    for task in ("colour", "shape"):
        assert run("classify", "--dataset", "things", "--task", task, *POOL4, *GRID).code == 0
        assert "top-1" in run("evaluate", "--dataset", "things", "--task", task, *POOL4).out
    assert run("report").code == 0
    classes = {name: dataset["classes"] for name, dataset in read_page_data()["datasets"].items()}
    assert classes == {"things": ["green", "red"], "things@shape": ["bar", "dot"]}
    named = run("predict", things.parent / "00.png", "--dataset", "things", "--task", "shape", *POOL4).out
    assert named.splitlines()[1].split(",")[2] == "bar"


def test_all_tasks_have_the_same_splits_and_what_lacks_a_label_is_unlabelled(things: Path, run: Run) -> None:
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    colour, shape = (read_manifest(Path("data", name)) for name in ("things", "things@shape"))
    splits = [dict(zip((Path(path).name for path in each.paths), each.splits, strict=True)) for each in (colour, shape)]
    lacking = [f"{number:02}.png" for number in (WITHOUT_COLOUR, WITHOUT_SHAPE)]
    assert [splits[number][name] for number, name in enumerate(lacking)] == ["unlabelled"] * 2
    assert "unlabelled" not in (splits[1][lacking[0]], splits[0][lacking[1]])
    assert all(splits[0][name] == splits[1][name] for name in splits[0] if name not in lacking)
    assert colour.metadata["shape"] and shape.metadata["scene"]


def test_a_task_that_is_no_more_is_forgotten(things: Path, run: Run) -> None:
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    assert run("prepare", "--dataset", things, "--labels", "shape").code == 0
    assert read_manifest(Path("data/things")).classes == ("bar", "dot")
    assert not Path("data/things@shape/manifest.csv").exists()
    assert resolve_task("things@shape") == "things", "it is the first one now"


def test_a_task_alone_is_extracted_and_no_other_one_is_looked_for(things: Path, run: Run) -> None:
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    assert run("extract", "--dataset", "things", "--task", "shape", *POOL4).code == 0
    assert not Path("features/things/tinyvgg/pool4.h5").exists()


def test_what_was_made_of_a_task_does_not_pass_for_another(things: Path, run: Run) -> None:
    """Once other columns are named, or named in another order, scores and classifiers of the former tasks remain."""
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    run("extract", "--dataset", "things", *POOL4)
    for task in ("colour", "shape"):
        run("classify", "--dataset", "things", "--task", task, *POOL4, *GRID)
        run("evaluate", "--dataset", "things", "--task", task, *POOL4)
    run("prepare", "--dataset", things, "--labels", "shape", "colour")
    of_shape = ("--dataset", "things", "--task", "shape", *POOL4)
    mistake(run("predict", things.parent / "00.png", *of_shape), "knows the classes 'green', 'red'", "'bar', 'dot' now")
    mistake(run("export", *of_shape), "knows the classes 'green', 'red'")
    assert run("report").code == 0
    run("prepare", "--dataset", things, "--labels", "colour")
    assert {line.split()[0] for line in run("report").out.splitlines()[1:3]} == {"things", "things@shape"}


def test_a_file_of_the_same_name_elsewhere_has_tasks_of_its_own(things: Path, run: Run) -> None:
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    assert Experiment(f"{things}@shape", "tinyvgg").data == Path("data/things@shape")
    run("prepare", "--dataset", things, "--labels", "colour", "shape", "--out", "elsewhere/photos")
    Path("other").mkdir()
    other = things.rename(Path("other", "things.csv"))
    assert not Experiment(f"{other}@shape", "tinyvgg").data.exists()
    assert resolve_task("elsewhere/photos@colour") == "elsewhere/photos"
    mistake(run("classify", "--dataset", "elsewhere/photos", "--task", "size"), "Unknown task 'size' for photos")


def test_an_error_between_two_tasks_leaves_all_of_them_as_they_were(things: Path, run: Run) -> None:
    assert run("prepare", "--dataset", things, "--labels", "colour").code == 0
    before = {path: path.read_bytes() for path in Path("data").rglob("*.*") if path.is_file()}
    Path("data/things@shape").write_text("in the way")
    again = ("prepare", "--dataset", things, "--labels", "colour", "shape", "--seed", 5)
    mistake(run(*again), "data/things@shape")
    Path("data/things@shape").unlink()
    assert {path: path.read_bytes() for path in Path("data").rglob("*.*") if path.is_file()} == before
    assert not list(Path("data").rglob(".new")) and run(*again).code == 0
    assert read_manifest(Path("data/things@shape")).classes == ("bar", "dot")


def test_a_split_of_the_source_holds_for_all_tasks(things: Path, run: Run) -> None:
    rows = files.read_csv(things)
    splits = ["test" if number % 3 == 0 else "train" for number in range(24)]
    cells = [(row["path"], row["colour"], row["shape"], split) for row, split in zip(rows, splits, strict=True)]
    files.write_csv(things, ("path", "colour", "shape", "split"), cells)
    assert run("prepare", "--dataset", things, "--labels", "colour", "shape").code == 0
    shape = read_manifest(Path("data/things@shape"))
    of_source = {row["path"]: split for row, split in zip(rows, splits, strict=True)}
    of_source[f"{WITHOUT_SHAPE:02}.png"] = "unlabelled"
    assert {Path(path).name: split for path, split in zip(shape.paths, shape.splits, strict=True)} == of_source


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--labels", "colour", "form"), ("Unknown column 'form'", "shape")),
        (("--labels", "colour", "colour"), ("named twice",)),
        (("--labels", "colour", "path"), ("meaning of its own",)),
        (("--labels", "colour", "a@b"), ("'a@b' cannot stand behind",)),
        (("--labels", "colour", "shape", "--corrections", "things.csv"), ("of one column of labels",)),
    ],
)
def test_columns_that_cannot_be_tasks(things: Path, run: Run, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    mistake(run("prepare", "--dataset", things, *flags), *words)
    assert not Path("data/things/manifest.csv").exists()


def test_a_class_of_a_later_column_that_lands_in_no_training_image(things: Path, run: Run) -> None:
    """The splits are drawn by the first column, here with one image of a shape, which a seed puts among the tests."""
    rows = files.read_csv(things)
    cells = [(row["path"], row["colour"] or "red", "bar" if row["scene"] == "0" else "dot") for row in rows]
    files.write_csv(things, ("path", "colour", "shape"), cells)
    outcomes = [
        run("prepare", "--dataset", things, "--labels", "colour", "shape", "--seed", seed) for seed in range(20)
    ]
    mistake(next(one for one in outcomes if one.code), "class 'bar' has images in test", "put shape first")


def test_the_next_step_of_a_task_is_in_its_source(things: Path, run: Run) -> None:
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    step = corrections.next_step(Path("data/things@shape"), Path("audit.csv"), "Fill it in")
    assert "CSV file of the dataset" in step and "--labels colour shape" in step and "--corrections" not in step
    run("prepare", "--dataset", things, "--labels", "colour")
    step = corrections.next_step(Path("data/things"), Path("audit.csv"), "Fill it in")
    assert step.startswith("Fill it in, then: python -m pipeline.prepare") and "--corrections audit.csv" in step


def test_a_task_that_the_dataset_does_not_have(things: Path, run: Run) -> None:
    run("prepare", "--dataset", things, "--labels", "colour", "shape")
    mistake(
        run("classify", "--dataset", "things", "--task", "size"), "Unknown task 'size' for things", "colour", "shape"
    )
    mistake(run("report", "--task", "shape"), "Name the dataset with --dataset")
    run("prepare", "--dataset", things, "--labels", "colour", "--out", "data/plain")
    Path("data/plain/source.json").unlink()
    mistake(run("evaluate", "--dataset", "plain@shape"), "no task 'shape'", "without --labels")


def test_a_folder_has_no_columns(photos: Path, run: Run) -> None:
    mistake(run("prepare", "--dataset", photos, "--labels", "colour"), "columns of a CSV file")


def test_names_of_tasks(project: Path) -> None:
    assert split_task("photos@shape") == ("photos", "shape") and split_task("photos") == ("photos", "")
    assert split_task("https://me@host/photos.csv") == ("https://me@host/photos.csv", "")
    (project / "me@home").mkdir()
    assert split_task("me@home") == ("me@home", ""), "a folder of that name is meant"
    assert codes_of_all_tasks(Path("features/a@b/timm/x")) == Path("features/a/timm/x")
    assert codes_of_all_tasks(Path("/home/me@x/codes")) == Path("/home/me@x/codes")
