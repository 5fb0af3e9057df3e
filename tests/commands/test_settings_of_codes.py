"""What determines codes is said once, for `extract`: every other command that builds the network builds the same."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Outcome, make_spec, write_photos
from helpers import mistake

from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.codes.spec import flatten
from pipeline.config import COMMANDS, Extract
from pipeline.extraction.sample import Kind, SampleCodes
from pipeline.finetuning.model import TUNED_ON

Run = Callable[..., Outcome]

CHANGED = (
    {
        "weights": "random:1",
        "pool": "max",
        "range": 100,
        "precision": "bf16",
        "decoder": "torchcodec",
        "dtype": "float16",
    },
    {"size": 48, "resize": 80, "views": "flips", "relu": "pre"},
    {"crop": "none"},
)
"""Settings of extract that change codes, with values that are not the default."""

IN_SPEC = {
    "range": "transform.max_value",
    "size": "transform.crop",
    "crop": "transform.fit",
    "resize": "transform.resize",
    "views": "transform.views",
    "decoder": "transform.decoder",
}
"""The names of these settings in a spec, where they differ."""

OF_NO_CONCERN = {
    "dataset": "every command is told the dataset itself",
    "task": "a part of the dataset's name",
    "backbone": "every command is told the backbone itself",
    "layer": "advise measures all layers, and finetune is told its own",
    "device": "codes depend on it by rounding, and a stage may run on another machine",
    "batch_size": "codes do not depend on it",
    "threads": "codes do not depend on it",
    "compile": "codes depend on it by rounding",
    "compress": "the files are smaller, the codes the same",
    "shards": "the codes lie in several files, and are the same",
    "engine": "where codes are computed",
    "workers": "codes do not depend on it",
    "address": "where codes are computed",
    "max_bad": "it ends a run, and changes no code",
    "out": "where the files lie",
    "list": "it ends the command",
    "quiet": "what is printed",
    "verbose": "what is printed",
    "debug": "what is printed",
}
"""The other settings of extract, and why they need not reach other commands."""

BUILT_BY = {
    "extract": "its own settings",
    "advise": "the settings of extract",
    "finetune": "the settings of extract with a random head, else the spec of the classifier's codes",
    "export": "the spec of the classifier's codes",
    "predict": "the spec of the classifier's codes; with --source-classes the network itself, whatever it is used for",
    "similar": "the spec of the codes",
}
"""The commands that build a network, and by what."""

LAYER = ("--layer", "conv7")


def test_every_setting_is_named_and_so_is_every_command_that_builds_a_network() -> None:
    assert {field.name for field in fields(Extract)} == {*OF_NO_CONCERN}.union(*CHANGED)
    texts = {name: (ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8") for name in COMMANDS}
    builders = re.compile(r"^ *from pipeline\.networks\.frozen import .*(FrozenNetwork|rebuild_network)", re.M)
    assert {name for name, text in texts.items() if builders.search(text)} == set(BUILT_BY)


@pytest.fixture
def prepared(run: Run, project: Path) -> Run:
    """Run commands beside a prepared dataset of a few images."""
    write_photos(project / "photos", {"red": 4, "green": 4})
    assert run("prepare", "--dataset", "photos").code == 0
    return run


@pytest.mark.parametrize("section", CHANGED, ids=lambda section: ",".join(section))
def test_every_setting_that_changes_codes_reaches_every_command(prepared: Run, section: Mapping[str, object]) -> None:
    if section.get("decoder") and not importlib.util.find_spec("torchcodec"):
        section = {name: value for name, value in section.items() if name != "decoder"}
    as_usual = {"precision": "fp32", "decoder": "pillow"}
    params = {"dataset": "photos", "extract": as_usual | section}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for command, *flags in (("extract",), ("advise", "--folds", 2)):
        outcome = prepared(command, *LAYER, *flags)
        assert outcome.code == 0, outcome.err
    spec = reader.read_index(Path("features/photos/tinyvgg/conv7.h5"), {}).spec
    usual, changed = flatten(make_spec().to_dict()), flatten(spec.to_dict())
    assert all(changed[key] != usual[key] for key in (IN_SPEC.get(name, name) for name in section))
    kind = Kind(spec.relu, spec.transform.views)
    assert SampleCodes(Path("features/photos/.advice/tinyvgg")).read(kind, "conv7").spec == spec
    tuned = prepared("finetune", *LAYER, "--head", "random", "--epochs", 0, "--val", 0.5)
    if {"size", "crop"} & set(section):
        mistake(tuned, TUNED_ON, "params.yaml", *(f"{IN_SPEC.get(name, name)} is " for name in section))
        return
    assert tuned.code == 0, tuned.err
    started = persistence.load(Path("models/photos/tinyvgg/conv7-finetuned.skops")).spec
    by_pillow = replace(spec, transform=replace(spec.transform, decoder=started.transform.decoder))
    assert replace(started, weights=spec.weights, weights_sha256=spec.weights_sha256) == by_pillow
