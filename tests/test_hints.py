"""Hints: the command that an error names can be pasted as it is, and then the command that failed works."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import yaml
from conftest import Outcome, write_photos
from helpers import mistake

from pipeline import files, hints
from pipeline.codes import reader
from pipeline.errors import Fix, PipelineError
from pipeline.networks import backbones, weights

Run = Callable[..., Outcome]
NAME = "ants & bees"
ADDRESS = ("--dataset", NAME, "--layer", "pool3")
CLASSIFIER = Path("models") / NAME / "tinyvgg/pool3-svm.skops"
CODES = Path("features") / NAME / "tinyvgg/pool3.h5"
OTHER_NETWORK = ("--weights", "random:3", "--pool", "max2", "--size", "72x96", "--resize", "80", "--views", "flips")


@pytest.fixture
def images(project: Path) -> Path:
    """A folder of images whose name a shell would take apart, and settings with which training takes no time."""
    quick = {"extract": {"precision": "fp32"}, "classify": {"folds": 2}, "svm": {"l2": {"C": [1]}}}
    Path("params.yaml").write_text(yaml.safe_dump(quick))
    return write_photos(project / NAME, {"red": 6, "green": 6})


def hint_of(outcome: Outcome) -> list[list[str]]:
    """Return the commands that an error says to run, each as a shell splits it."""
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("  python -m pipeline.")]
    return [shlex.split(command) for command in line.split(" && ")]


def works_by_its_hints(run: Run, stage: str, *flags: object) -> list[str]:
    """Run a command, and what its errors say to run, until it works; return the stages that were run for that."""
    stages: list[str] = []
    for _ in range(4):
        done = run(stage, *flags)
        if done.code == 0:
            return stages
        mistake(done)
        for _, _, module, *hinted in hint_of(done):
            name = module.removeprefix("pipeline.")
            stages += [*works_by_its_hints(run, name, *hinted), name]
    raise AssertionError(f"{stage} does not work after {stages}: {done.err}")


@pytest.mark.parametrize(
    ("stage", "flags", "stages"),
    [
        ("extract", ADDRESS, "prepare"),
        ("classify", ("--dataset", NAME, "--layer", "pool3+fc7"), "prepare extract"),
        (
            "classify",
            (*ADDRESS, "--codes", "x/pool3.h5", "--weights", "random:3", "--pool", "max"),
            "prepare extract",
        ),
        ("evaluate", (*ADDRESS, "--classifier", CLASSIFIER, "--codes", "x/pool3.h5"), "prepare extract classify"),
        ("predict", (NAME, "--classifier", CLASSIFIER), "prepare extract classify"),
        ("finetune", (*ADDRESS, "--epochs", 0), "prepare extract classify"),
        ("report", ("--dataset", NAME, "--table"), "prepare extract classify evaluate"),
    ],
)
def test_from_nothing_the_hints_lead_to_a_command_that_works(
    run: Run, images: Path, stage: str, flags: tuple[object, ...], stages: str
) -> None:
    assert works_by_its_hints(run, stage, *flags) == stages.split()


@pytest.fixture
def trained(run: Run, images: Path) -> Run:
    """A classifier of codes that no default gives."""
    assert run("prepare", "--dataset", NAME, "--test", 0.5, "--seed", 3).code == 0
    assert run("extract", *ADDRESS, *OTHER_NETWORK).code == 0 and run("classify", *ADDRESS).code == 0
    return run


def test_codes_that_are_gone_are_extracted_as_the_classifier_knows_them(trained: Run) -> None:
    assert trained("cache", "--prune").code == 0
    CODES.unlink()
    assert works_by_its_hints(trained, "evaluate", *ADDRESS) == ["extract"]


def test_codes_of_another_state_of_the_dataset_are_extracted_as_they_were(trained: Run, images: Path) -> None:
    spec = reader.read_index(CODES, {}).spec
    next(images.glob("red/*")).unlink()
    assert trained("prepare", "--dataset", NAME).code == 0
    assert works_by_its_hints(trained, "classify", *ADDRESS) == ["extract"]
    assert reader.read_index(CODES, {}).spec == spec
    assert works_by_its_hints(trained, "evaluate", *ADDRESS) == []


def test_damaged_files_are_made_again(trained: Run) -> None:
    with h5py.File(CODES, "r+") as file:
        file["values"][0] += 1
    assert works_by_its_hints(trained, "verify", CODES) == ["extract"]
    CLASSIFIER.with_suffix(".json").write_text("{")
    assert works_by_its_hints(trained, "evaluate", *ADDRESS) == ["classify"]
    (manifest := Path("data", NAME, "manifest.csv")).write_text("path,label\n")
    before = reader.read_index(CODES, {}).splits
    assert works_by_its_hints(trained, "evaluate", *ADDRESS) == ["prepare"]
    assert tuple(row["split"] for row in files.read_csv(manifest)) == before, (
        "with the shares and the seed of that time"
    )


def test_other_weights_under_the_same_name_are_refused_with_the_way_to_take_them(run: Run, images: Path) -> None:
    networks = [backbones.load(backbones.get("tinyvgg"), f"random:{seed}")[0] for seed in (1, 2)]
    weights.write_state(Path("own.safetensors"), networks[0].state_dict(), {})
    assert run("prepare", "--dataset", NAME).code == 0
    assert run("extract", *ADDRESS, "--weights", "own.safetensors").code == 0 and run("classify", *ADDRESS).code == 0
    weights.write_state(Path("own.safetensors"), networks[1].state_dict(), {})
    assert works_by_its_hints(run, "predict", NAME, *ADDRESS) == ["extract", "classify"]


def test_the_folder_that_a_dataset_was_prepared_from_stands_for_it(run: Run, images: Path) -> None:
    assert works_by_its_hints(run, "extract", "--dataset", images, "--layer", "fc7") == ["prepare"]
    elsewhere = write_photos(images.parent / "other" / NAME, {"red": 6, "green": 6}, seed=1)
    mistake(run("extract", "--dataset", elsewhere, "--layer", "fc7"), "There is no prepared dataset")


# What a hint holds


def hint(command: str, known: dict[str, object], **settings: object) -> str:
    return str(hints.complete(Fix(command, settings), known))


def test_a_hint_leaves_out_what_its_command_would_take_by_itself(project: Path) -> None:
    network = {"dataset": "my photos", "layer": "fc6+fc7", "weights": "default", "size": "64", "views": "ten"}
    words = "python -m pipeline.extract --dataset 'my photos' --backbone tinyvgg --layer fc6 fc7"
    known = {"backbone": "tinyvgg", "seed": 3, "group_by": "patient"}
    assert hint("extract", known, **network) == f"{words} --size 64 --views ten"
    Path("params.yaml").write_text("extract: {weights: other.pth, size: 64}")
    assert hint("extract", known, **network) == f"{words} --weights default --views ten"


def test_groups_are_passed_on_but_not_near_duplicates_to_prepare(project: Path) -> None:
    known = {"dataset": "photos", "group_by": "near-duplicates", "near_distance": 0.1}
    assert hint("classify", known).endswith("--group-by near-duplicates --near-distance 0.1")
    assert "near" not in hint("prepare", known)
    error = PipelineError("Extract.", fix=[Fix("extract")])
    assert "--range" not in str(hints.completed(error, {"images": ("new.tif",), "range": 4095.0}))
    assert "--range 4095" in str(hints.completed(error, {"range": 4095.0}))


def test_no_hint_trains_what_nobody_knows_how_to_train(run: Run, images: Path) -> None:
    mistake(run("predict", NAME, "--classifier", "given/by-others.skops"), "There is no classifier at given/by-others")
    assert "python -m" not in run("predict", NAME, "--classifier", "given/by-others.skops").err
    mistake(run("evaluate", *ADDRESS, "--model", "smv"), "The models are: svm,")
    error = PipelineError("Train it.", fix=[Fix("classify")])
    assert hints.completed(error, {"model": "finetuned", "layer": "fc7"}).fix[0].command == "finetune"


def test_the_nearest_names_that_are_there_are_named(trained: Run) -> None:
    mistake(trained("extract", "--dataset", "ants & bee"), f"data has {NAME}.")
    mistake(trained("classify", "--dataset", "ants"), f"features has {NAME}.")
    mistake(trained("evaluate", *ADDRESS, "--model", "softmax"), "tinyvgg has pool3-svm.skops.")
    mistake(trained("classify", "--dataset", NAME, "--layer", "pool4"), "tinyvgg has pool3.h5.")
    mistake(trained("report", "--dataset", "bees"), "There are no scores under reports/bees.")


# The first line


def test_the_first_line_says_what_is_worked_on_and_who_said_so(trained: Run) -> None:
    Path("params.yaml").write_text("{backbone: tinyvgg, classify: {folds: 2}}")
    first = trained("classify", "--layer", "pool3", "--dataset", NAME).err.splitlines()[0]
    assert (
        first
        == f"dataset: {NAME} (--dataset); backbone: tinyvgg (params.yaml); layer: pool3 (--layer); model: svm (default)"
    )
    assert "dataset: digits (default)" in trained("evaluate").err.splitlines()[0]
    assert (
        trained("predict", NAME, "--classifier", CLASSIFIER).err.splitlines()[0]
        == f"classifier: {CLASSIFIER} (--classifier)"
    )
    assert "dataset:" not in trained("classify", *ADDRESS, "--quiet").err
    assert trained("report", "--table").err.startswith(
        "dataset: all (default); backbone: all (default); layer: all (default)\n"
    )
    assert "dataset:" not in trained("extract", "--list").err


def test_images_without_labels_are_prepared_by_the_hint(run: Run, images: Path) -> None:
    shutil.rmtree(images / "green")
    ((*_, module, flag, source),) = hint_of(run("prepare", "--dataset", NAME))
    assert (module, flag, source) == ("pipeline.prepare", "--unlabelled", NAME)
    assert run("prepare", flag, source).code == 0
    assert works_by_its_hints(run, "extract", "--dataset", NAME, "--layer", "fc7") == []
