"""Settings: a wrong key, type or choice in params.yaml is one sentence; flags win over the file, it over defaults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import ROOT, Outcome
from helpers import mistake

from pipeline import params
from pipeline.classifiers import catalogue, cv_table
from pipeline.config import COMMANDS, GRIDS, Classify, Extract, Finetune, Project, choices_of, extra_of
from pipeline.finetuning import recipes
from pipeline.images import decoding

Run = Callable[..., Outcome]

IN_FILE = [
    (command, name)
    for command, settings in COMMANDS.items()
    for name, field in settings.__pydantic_fields__.items()  # type: ignore[attr-defined]
    if extra_of(field)["in_file"] and not extra_of(field)["key"] and extra_of(field)["kind"] == "flag"
]
"""Every key of every section."""


def write(content: Any) -> None:
    """Write params.yaml of the working folder."""
    Path("params.yaml").write_text(yaml.safe_dump(content))


def annotation_of(command: str, name: str) -> Any:
    return COMMANDS[command].__pydantic_fields__[name].annotation  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "name"), IN_FILE)
def test_a_wrong_type_is_one_sentence_with_file_key_and_what_is_right(run: Run, command: str, name: str) -> None:
    write({command: {name: {"a": {"b": "c"}}}})
    mistake(
        run("report"),
        f"params.yaml: {command}.{name} is {{'a': {{'b': 'c'}}}}",
        "Choose from" if choices_of(annotation_of(command, name)) else "must be",
    )


@pytest.mark.parametrize(("command", "name"), [key for key in IN_FILE if choices_of(annotation_of(*key))])
def test_a_wrong_choice_lists_the_choices(run: Run, command: str, name: str) -> None:
    write({command: {name: "nonsense"}})
    mistake(run("report"), f"params.yaml: {command}.{name} is 'nonsense'", *choices_of(annotation_of(command, name)))


@pytest.mark.parametrize(("command", "name"), IN_FILE)
def test_a_misspelt_key_names_the_nearest(run: Run, command: str, name: str) -> None:
    write({command: {f"{name}x": 1}})
    mistake(run("report"), f"Unknown key '{name}x' for params.yaml: {command}. Choose from: {name}")


@pytest.mark.parametrize(("command", "name"), IN_FILE)
def test_true_where_no_boolean_belongs(run: Run, command: str, name: str) -> None:
    if "bool" in str(annotation_of(command, name)):
        return
    write({command: {name: True}})
    mistake(run("report"), f"params.yaml: {command}.{name} is true")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_section_must_be_a_mapping(run: Run, command: str) -> None:
    write({command: ["a"]})
    mistake(run("report"), f"params.yaml: {command} is ['a'], but it must hold `name: value` lines")
    write({command: None})
    assert params.read_params() == {command: None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"extrct": {}}, ("Unknown key 'extrct' for params.yaml", "extract")),
        ({"extract": {"prescision": "fp32"}}, ("'prescision'", "precision")),
        ({"extract": {"precision": "fp8"}}, ("params.yaml: extract.precision is 'fp8'", "fp32, ", "bf16")),
        ({"extract": {"crop": "nope"}}, ("params.yaml: extract.crop is 'nope'", "center")),
        (
            {"extract": {"compile": True}},
            ("params.yaml: extract.compile is true", "Choose from: auto, torch, onnxruntime, no"),
        ),
        ({"extract": {"pool": "avg0"}}, ("params.yaml: extract.pool is 'avg0'", "flatten")),
        ({"extract": {"max_bad": 1.5}}, ("extract.max_bad is 1.5, but it must be 1 or less",)),
        ({"prepare": {"test": -0.1}}, ("prepare.test is -0.1, but it must be 0 or more",)),
        ({"classify": {"folds": "five"}}, ("classify.folds is 'five', but it must be a whole number",)),
        ({"classify": {"folds": 2.5}}, ("classify.folds is 2.5, but it must be a whole number",)),
        ({"dataset": 3}, ("params.yaml: dataset is 3, but it must be text",)),
        ({"models": {"a": 1}}, ("params.yaml: models is {'a': 1}, but it must be a list",)),
        ({"svm": {"l3": {"C": [1]}}}, ("params.yaml: svm", "l2")),
        ({"svm": {"l2": {"C": 1}}}, ("params.yaml: svm", "list")),
        ({"svm": {"l2": {"C": []}}}, ("params.yaml: svm", "list")),
        ({"svm": "many"}, ("params.yaml: svm is 'many'",)),
        ("text", ("`name: value` lines",)),
        ({"models": []}, ("params.yaml: models is [], but it must be a list of at least 1",)),
        ({"extract": {"layer": []}}, ("extract.layer is [], but it must be a list of at least 1",)),
        ({"dataset": ""}, ("params.yaml: dataset is '', but it must be 1 character or more",)),
        ({"dataset": "a\0b"}, ("params.yaml: dataset holds a character", "'a\\x00b'")),
        ({"prepare": {"range": float("inf")}}, ("prepare.range is inf, but it must be a finite number",)),
        ({"extract": {"max_bad": float("nan")}}, ("extract.max_bad is nan",)),
        ({"classify": {"seed": 2**32}}, ("classify.seed is 4294967296, but it must be 4294967295 or less",)),
        ({"classify": {"group-by": "a", "group_by": "b"}}, ("classify has a key twice",)),
        ({"predict": {"images": ["a.png"]}}, ("Unknown key 'images' for params.yaml: predict",)),
    ],
    ids=str,
)
def test_mistakes_that_once_passed_unnoticed(run: Run, content: Any, words: tuple[str, ...]) -> None:
    write(content)
    for command in ("report", "prepare"):
        mistake(run(command), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"extract: [", ("params.yaml is not valid YAML", "line 1")),
        (b"dataset: a\ndataset: b\n", ("not valid YAML", 'duplicate key "dataset"', "line 2")),
        ("# café".encode("cp1252"), ("not valid UTF-8", "Save it as UTF-8")),
        (f"classify: {{seed: 0x{'f' * 5000}}}".encode(), ("classify.seed is a number of thousands of digits",)),
        (b"models: &a [*a, *a]", ("params.yaml: models is [[",)),
    ],
    ids=range(5),
)
def test_a_file_that_is_no_yaml(run: Run, content: bytes, words: tuple[str, ...]) -> None:
    Path("params.yaml").write_bytes(content)
    mistake(run("report"), *words)


def test_a_link_to_nowhere_is_not_taken_for_no_file(run: Run) -> None:
    Path("params.yaml").symlink_to("gone.yaml")
    mistake(run("report"), "No such file or directory at params.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_with_empty_sections_and_with_settings_of_one_command_alone(run: Run, command: str) -> None:
    write({"extract": None, "prepare": {"group_by": "patient"}, "classify": {"folds": 3}})
    assert run(command, "--help").code == 0


def test_help_shows_defaults_as_they_would_be_written(run: Run) -> None:
    write({"classify": {"group_by": "", "nested": True, "memory": "2GB"}, "extract": {"layer": ["pool3", "fc7"]}})
    shown = " ".join(run("classify", "--help").out.split())
    for words in ("draws. (default: 0)", "cross-validation. (default: yes)", "(default: 2GB)", "both. (default: fc7)"):
        assert words in shown
    assert "(default: )" not in shown and "None" not in shown and "False" not in shown
    assert "Settings of the recipe, where its own are not to be taken: --optimiser" in " ".join(
        run("finetune", "--help").out.split()
    )


def test_flags_win_over_the_file_and_the_file_over_defaults(project: Path) -> None:
    assert params.load(Classify)[0].folds == 5
    write({"classify": {"folds": 3}, "extract": {"layer": ["pool3", "fc6"]}, "models": ["ridge", "svm"]})
    settings, origins = params.load(Classify, {"seed": "7"})
    assert (settings.folds, settings.seed, settings.layer, settings.model) == (3, 7, "fc6", "ridge")
    assert origins["folds"].name == "params.yaml: classify.folds" and origins["seed"].name == "--seed"
    assert origins["layer"].name == "params.yaml: extract.layer" and "draws" not in origins


def test_an_error_says_where_the_value_came_from(run: Run) -> None:
    write({"extract": {"layer": ["fc9"]}})
    mistake(run("extract"), "Unknown layer 'fc9' for tinyvgg", "(layer is set by params.yaml: extract.layer.)")
    assert "params.yaml" not in run("extract", "--layer", "fc8").err


def test_wrong_flags_are_one_sentence(run: Run) -> None:
    mistake(run("classify", "--folds", "five"), "--folds is 'five', but it must be a whole number")
    mistake(run("classify", "--fold", "5"), "Unrecognized arguments: --fold", "--help")
    mistake(run("extract", "--precision", "fp8"), "--precision is 'fp8'. Choose from")
    mistake(run("classify", "--grid", "{l2: {C: ["), "--grid", "not valid YAML")
    mistake(run("verify"), "arguments are required: FILE", "--help")


def test_choices_are_those_of_the_rooms() -> None:
    """The settings lie below the rooms, so they repeat the names of what the rooms offer."""
    assert set(GRIDS) == set(catalogue.CLASSIFIERS)
    assert set(choices_of(annotation_of("classify", "rule"))) == set(cv_table.RULES)
    assert set(choices_of(annotation_of("extract", "decoder"))) == {"auto", *decoding.DECODERS}
    assert set(choices_of(annotation_of("finetune", "recipe"))) == set(recipes.RECIPES)
    for name, choices in recipes.CHOICES.items():
        assert set(choices_of(annotation_of("finetune", name))) == set(choices)
    normalisations = {key for part in get_args(annotation_of("classify", "grid")) for key in str(part).split("'")[1::2]}
    assert set(catalogue.NORMALISATIONS) <= normalisations
    names = set(params.names_of(Finetune))
    assert {field.name for field in fields(recipes.Recipe)} <= names


def test_the_projects_own_file_is_valid_and_holds_the_programs_grids() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params.validate_params(content)
    assert {name: content[name] for name in GRIDS} == GRIDS
    assert set(params.names_of(Project)) <= set(content)
    assert "pool" not in content["extract"] and Extract().pool == "auto"


def test_quiet_silences_notes_and_verbose_adds_details(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from pipeline.command_line import set_up_logging

    for flags, level in (({}, logging.INFO), ({"quiet": True}, logging.ERROR), ({"verbose": True}, logging.DEBUG)):
        set_up_logging(**flags)
        assert logging.getLogger("pipeline").level == level


def test_every_word_of_the_surface_can_be_imported() -> None:
    import pipeline

    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    assert dir(pipeline) == sorted(pipeline.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipeline.nothing


def test_the_console_script_lists_the_commands_and_runs_one(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    from pipeline.__main__ import main

    assert main([]) == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] and len(line.split()) > 3 for line in listed.splitlines())
    assert main(["nope"]) == 2 and "Unknown command 'nope'" in capsys.readouterr().err
    assert main(["cache"]) == 0 and "0 files" in capsys.readouterr().out


def test_help_and_mistakes_do_not_wait_for_libraries(project: Path) -> None:
    script = f"""
import sys
from pipeline.command_line import run_command
for command in {list(COMMANDS)}:
    try:
        run_command(command, ["--help"])
    except SystemExit as end:
        assert not end.code
    assert run_command(command, ["--nonsense"]) == 2
print("imported:", *sorted({{"torch", "sklearn", "scipy", "pandas", "numpy", "h5py", "PIL"}} & set(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.stdout.endswith("imported:\n"), ended.stderr
