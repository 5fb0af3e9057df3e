"""The whole: DVC re-runs what changed and nothing else, and the README's commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, write_photos
from warm_python import warm_python

from pipeline import command_line
from pipeline.config import COMMANDS, extra_of

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_has_help_and_every_command_an_example(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="0"):
        command_line.run_command(command, ["--help"])
    shown = capsys.readouterr().out
    assert f"example:\n  python -m pipeline.{command}" in shown
    flags = re.findall(r"^  --[-\w]+.*(?:\n {6,}.*)*", shown, re.M)
    assert len(flags) == sum(extra_of(field)["kind"] != "positional" for field in fields_of(command))
    for flag in flags:
        help_text = " ".join(re.split(r"  +|\n", flag.strip(), maxsplit=1)[1].split())
        assert help_text[0].isupper() and re.search(r"\.( \(default: .+\))?$", help_text), f"{command}: {flag}"


def fields_of(command: str) -> list[Any]:
    """Return the settings of a command, as pydantic knows them."""
    return list(COMMANDS[command].__pydantic_fields__.values())  # type: ignore[attr-defined]


def test_classify_and_evaluate_do_without_torch() -> None:
    """Neither what they import nor skops, which saves and loads classifiers, takes the seconds that torch takes."""
    script = (
        "import sys, pipeline.classify, pipeline.evaluate\n"
        "from pipeline.classifiers import persistence\n"
        "persistence.import_skops().dumps(1)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


# DVC, in a clone of its own


def call(folder: Path, *command: str) -> str:
    """Run a command in the clone and return what it says."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout + ended.stderr


def repro(folder: Path) -> set[str]:
    """Run `dvc repro` and return the stages that it ran."""
    return set(re.findall(r"Running stage '([^']+)'", call(folder, "dvc", "repro")))


def best_of(revision: Any) -> Any:
    """Return the scores of the selected classifier, from what DVC shows of one revision."""
    metrics = revision.get("metrics") or revision["data"]
    assert list(metrics) == ["reports/best.json"], "one file, so that a table has one line per experiment"
    return metrics["reports/best.json"]["data"]["best_in_cv"]


def change(folder: Path, **sections: object) -> None:
    """Change sections of the clone's params.yaml."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in sections.items():
        params[name] = {**params[name], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project as git has it or would have it, on few images, with smaller grids, in a repository of its own.

    The `python` of its stages is one that need not import torch each time.
    """
    folder = tmp_path_factory.mktemp("clone")
    source = write_photos(tmp_path_factory.mktemp("source") / "photos", {"red": 20, "green": 20, "blue": 20})
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    change(
        folder,
        source=str(source),
        dataset="colours",
        svm={"l2": {"C": [10]}},
        softmax={"l2": {"C": [100]}},
        classify={"folds": 2},
        advise={"images": 40, "layer": ["fc7"], "folds": 2},
        extract={"layer": ["fc7"]},
    )
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    for model in ("svm", "softmax"):
        params[model].pop("standard")
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    call(folder, "git", "init", "-q")
    call(folder, "git", "config", "user.email", "test@example.org")
    call(folder, "git", "config", "user.name", "Test")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "clone")
    stages = ["prepare", "extract", "advise", "classify", "evaluate", "select", "report"]
    with (
        warm_python(folder, tmp_path_factory.mktemp("warm"), stages) as programs,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(ENVIRONMENT, "PATH", f"{programs}{os.pathsep}{ENVIRONMENT['PATH']}")
        yield folder


def test_dvc_runs_what_changed_and_nothing_else(clone: Path) -> None:
    assert repro(clone) == {"prepare", "extract", "advise", "select", "report"} | {
        f"{stage}@fc7-{model}" for stage in ("classify", "evaluate") for model in ("svm", "softmax")
    }
    assert repro(clone) == set()
    assert "up to date" in call(clone, "dvc", "status")

    change(clone, models=["svm"], extract={"layer": ["pool4", "fc7"]})
    ran = repro(clone) - {"advise", "report"}
    assert ran == {"extract", "select", "classify@pool4-svm", "evaluate@pool4-svm"}, (
        "the SVM on fc7, whose codes and grid are the same, is not trained again"
    )


def test_dvc_shows_and_compares_metrics_and_plots(clone: Path) -> None:
    best = best_of(json.loads(call(clone, "dvc", "metrics", "show", "--json").splitlines()[-1])[""])
    scores = [
        json.loads(path.read_text(encoding="utf-8")) | {"path": path.parent.name}
        for path in (clone / "reports/colours/tinyvgg").glob("*-svm/metrics.json")
    ]
    chosen = max(scores, key=lambda one: one["validation"]["accuracy"])
    assert chosen["path"] == f"{best['layer']}-{best['model']}" and best["backbone"] == "tinyvgg"
    assert (best["test_top1"], best["test_n"]) == (round(chosen["top1"], 4), 15)
    difference = call(clone, "dvc", "metrics", "diff")
    assert "best_in_cv.cv_accuracy" in difference
    call(clone, "dvc", "plots", "show")
    assert "confusion.png" in (clone / "dvc_plots" / "index.html").read_text(encoding="utf-8")


def test_dvc_experiments_change_the_backbone(clone: Path) -> None:
    call(clone, "git", "add", "-A")
    call(clone, "git", "commit", "-qm", "before the experiment", "--allow-empty")
    call(
        clone,
        "dvc",
        "exp",
        "run",
        "-S",
        "backbone=alexnet",
        "-S",
        "extract.weights=random",
        "-S",
        "extract.layer=[pool5]",
        "-S",
        "+extract.size=64",
        "-S",
        "models=[svm]",
        "-S",
        "advise.layer=[pool5]",
    )
    scores = json.loads((clone / "reports/colours/alexnet/pool5-svm/metrics.json").read_text(encoding="utf-8"))
    assert scores["n"] == 15
    rows = json.loads(call(clone, "dvc", "exp", "show", "--json").splitlines()[-1])
    assert {"tinyvgg", "alexnet"} <= {best_of(row["data"])["backbone"] for row in rows if row["data"]["metrics"]}
    page = (clone / "reports" / "index.html").read_text(encoding="utf-8")
    assert "colours/alexnet/pool5-svm" in page and "colours/tinyvgg/fc7-svm" in page, "the page shows all backbones"


def test_only_lock_files_and_artifacts_appear_in_the_clone(clone: Path) -> None:
    changed = call(clone, "git", "status", "--short").split()[1::2]
    assert set(changed) <= {"dvc.lock", "params.yaml"}


def test_dvc_passes_names_with_spaces_and_quotes_on(clone: Path) -> None:
    source = write_photos(clone.parent / "my 'best' photos", {"red": 3, "green": 3})
    change(clone, source=str(source), dataset="my photos")
    call(clone, "dvc", "repro", "prepare")
    assert (clone / "data" / "my photos" / "manifest.csv").read_text(encoding="utf-8").count("\n") == 7


# The README


def readme_commands() -> list[str]:
    """Return the README's commands and programs that are marked as run by this test."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands: list[str] = []
    for language, block in re.findall(r"<!-- tested -->\n```(sh|python)\n(.*?)```", text, re.S):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        commands += lines if language == "sh" else [f"python -c {shlex.quote(block)}"]
    return commands


def test_the_readmes_commands_run(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = readme_commands()
    assert len(commands) >= 5 and any(command.startswith("python -c ") for command in commands)
    photos = write_photos(tmp_path / "photos", {"ants": 20, "bees": 20})
    call(clone, "git", "checkout", "-q", "params.yaml")
    monkeypatch.chdir(clone)
    for command in commands:
        typed = command.replace("~/photos", str(photos))
        stage = re.fullmatch(r"python -m pipeline\.(\w+) ([^|>]*)", typed)
        if stage and "--help" not in typed:  # in this process, where the libraries are imported already
            assert command_line.run_command(stage[1], shlex.split(stage[2])) == 0, command
        else:
            call(clone, "bash", "-c", typed)


# The installed package


@pytest.mark.slow
def test_a_wheel_runs_in_a_folder_with_a_pipeline_of_the_users_own(tmp_path: Path) -> None:
    """The console script takes the installed package and its defaults, whatever lies in the working folder."""
    wheels, site, work = tmp_path / "wheels", tmp_path / "site", tmp_path / "work"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    call(tmp_path, *pip, *build)
    (wheel,) = wheels.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("params.yaml")]
    call(tmp_path, *pip, "install", "--no-deps", "--target", str(site), str(wheel))
    write_photos(work / "photos", {"red": 8, "green": 8})
    (work / "pipeline.py").write_text("raise SystemExit('the wrong pipeline')")
    environment = ENVIRONMENT | {"PYTHONPATH": str(site)}
    script = site / "bin" / "cnn-codes"
    for command in (
        ("prepare", "--dataset", "photos"),
        ("extract", "--dataset", "photos", "--layer", "fc7"),
        ("report",),
    ):
        ended = subprocess.run(
            [sys.executable, script, *command], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    assert (work / "reports" / "index.html").exists()
