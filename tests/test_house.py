"""The house: imports run one way, no command imports another, and DVC's stages name every module that they import."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest
import yaml
from conftest import ROOT

from pipeline.config import COMMANDS

LAYERS = (
    ("reporting",),
    ("finetuning", "analysis", "exporting"),
    ("extraction", "classifiers"),
    ("networks",),
    ("codes",),
    ("data",),
    ("images",),
    ("command_line",),
    ("hints",),
    ("params",),
    ("config", "paths"),
    ("files", "progress", "yaml_text"),
    ("errors", "texts"),
    ("addresses",),
)
"""The rooms, from the one that may import all others down to the one that may import none."""

DATA = {
    "pipeline.networks.tinyvgg": "pipeline/networks/pretrained",
    "pipeline.reporting.rendering": "pipeline/reporting/page",
}
"""Modules that read files of the program's own, and the folder where these are."""

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
GRAPH = grimp.build_graph("pipeline", cache_dir=None)


def modules_of(room: str) -> set[str]:
    """Return a room's modules, its package included."""
    return {f"pipeline.{room}"} | GRAPH.find_descendants(f"pipeline.{room}")


def file_of(module: str) -> str:
    """Return a module's file, relative to the project's root."""
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (ROOT / path / "__init__.py").exists() else path.with_suffix(".py"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_every_module_that_its_command_imports(stage: str) -> None:
    needed = GRAPH.find_upstream_modules(f"pipeline.{stage}") | {f"pipeline.{stage}", "pipeline"}
    deps = {dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/")}
    assert deps == {file_of(module) for module in needed} | {DATA[module] for module in needed & set(DATA)}


def test_every_room_has_its_layer() -> None:
    rooms = {child.removeprefix("pipeline.") for child in GRAPH.find_children("pipeline")}
    assert rooms - set(COMMANDS) - {"__main__"} == {room for layer in LAYERS for room in layer}


@pytest.mark.parametrize("upper", range(len(LAYERS)))
def test_a_room_imports_only_rooms_of_lower_layers(upper: int) -> None:
    forbidden = {module for layer in LAYERS[:upper] for room in layer for module in modules_of(room)}
    forbidden |= {f"pipeline.{command}" for command in COMMANDS}
    for room in LAYERS[upper]:
        beside = {module for other in LAYERS[upper] if other != room for module in modules_of(other)}
        for module in modules_of(room):
            wrong = GRAPH.find_modules_directly_imported_by(module) & (forbidden | beside)
            assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_another(command: str) -> None:
    others = {f"pipeline.{other}" for other in COMMANDS} - {f"pipeline.{command}"}
    assert not GRAPH.find_upstream_modules(f"pipeline.{command}") & others


def test_no_modules_import_each_other() -> None:
    assert not GRAPH.nominate_cycle_breakers("pipeline")
