"""`run` goes from a folder to a report, and gives exactly what its steps give one by one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, write_photos
from helpers import mistake

from pipeline import PipelineError, classify_folder, load_classifier

Run = Callable[..., Outcome]
PARAMS = (
    "svm: {l2: {C: [1, 10]}}\nsoftmax: {l2: {C: [10]}}\nadvise: {folds: 2, layer: [pool3, fc7]}\nclassify: {folds: 2}\n"
)


@pytest.fixture
def folder(project: Path) -> Path:
    """A folder of photos of two classes, and settings that make the steps short."""
    (project / "params.yaml").write_text(PARAMS)
    return write_photos(project / "my photos", {"red": 12, "green": 12})


def artifacts() -> dict[str, bytes]:
    """Return the contents of the files of codes, scores and advice, but for times and the page's figures."""
    paths = [
        *Path("reports").rglob("*.csv"),
        *Path("reports").rglob("metrics.json"),
        Path("data/my photos/manifest.csv"),
    ]
    return {str(path): path.read_bytes() for path in paths if "cv" not in path.name}


def test_the_printed_commands_give_exactly_what_one_call_gives(run: Run, folder: Path, tmp_path: Path) -> None:
    outcome = run("run", folder, "--backbone", "tinyvgg")
    assert outcome.code == 0, outcome
    ours = artifacts()
    assert any(name.endswith("metrics.json") for name in ours) and Path("reports/index.html").exists()
    commands = [shlex.split(line) for line in re.findall(r"^\$ python -m pipeline\.(.*)$", outcome.out, re.M)]
    assert [command for command, *_ in commands] == ["prepare", "advise", "extract", "classify", "evaluate", "report"]
    for name in ("data", "features", "models", "reports"):
        (tmp_path / name).rename(tmp_path / f"first {name}")
    for command, *arguments in commands:
        assert run(command, *arguments).code == 0
    assert artifacts() == ours
    _, last = outcome.out.split("For new images: python -m pipeline.predict ")
    command = [str(folder / "red") if word == "IMAGE" else word for word in shlex.split(last)]
    assert run("predict", *command).code == 0


def test_it_takes_the_backbone_and_layer_of_the_best_accuracy_in_cross_validation(run: Run, folder: Path) -> None:
    result = classify_folder(folder, ["tinyvgg"])
    advice = json.loads(Path("reports/my photos/tinyvgg/advice/advice.json").read_text())
    assert result.address.layer == advice["advice"]["layer"]
    assert result.cv_accuracy == max(layer["accuracy"] for layer in advice["layers"])
    assert result.metrics["n"] == 6 and result.page.exists()
    assert load_classifier(result.classifier).classes == ("green", "red")


def test_mistakes_are_those_of_the_steps(run: Run, folder: Path, project: Path) -> None:
    mistake(run("run", "no/such/folder"), "No folder, CSV or archive at no/such/folder")
    mistake(run("run", folder, "--backbone", "tinyvg"), "tinyvgg")
    with pytest.raises(PipelineError, match="No folder"):
        classify_folder("no/such/folder")
