"""Commands to paste: the fix of an error, in full for the dataset and the network that the user's command named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import errors, params
from pipeline.config import COMMANDS, EXPERIMENT, GRIDS, NEAR_DUPLICATES, NETWORK, extra_of
from pipeline.errors import Fix, PipelineError
from pipeline.paths import ADDRESS_WORDS, FINETUNED, LAYER_SEPARATOR, Experiment

PASSED_ON = ("codes", "classifier", "group_by", "near_distance")
"""Settings that hold for the fix's command as well, besides those of the address and the network."""


def completed(error: PipelineError, known: Mapping[str, Any], origin: str = "") -> PipelineError:
    """Return an error whose fix is in full.

    known: settings of the user's command; origin: a sentence that is added to the message.
    """
    known = _of_named_file(_of_dataset(known))
    fixes = [complete(fix, known) for fix in error.fix if _can_fix(fix, known)]
    message = f"{error.message}{origin}"
    model = known.get("model", "")
    if len(fixes) < len(error.fix) and isinstance(model, str) and model not in (*GRIDS, FINETUNED):
        message += f" The models are: {', '.join(errors.nearest(model, [*GRIDS, FINETUNED]))}."
    return PipelineError(message, error.setting, fixes, error.exit_code)


def complete(fix: Fix, known: Mapping[str, Any]) -> Fix:
    """Return a fix with all that its command needs for the same experiment.

    known: settings of another command. The four words are always given; other settings only where the command would
    not take the same value by itself, from params.yaml of this folder or by default.
    """
    command = _command_of(fix, known)
    settings: Any = COMMANDS[command]
    given = {}
    for name, field in settings.__pydantic_fields__.items():
        value = _passed_on(command, name, field, known)
        if name in fix.settings and not (name == "layer" and fix.settings[name] in str(value).split(LAYER_SEPARATOR)):
            value = fix.settings[name]
        if value not in (None, "", ()):
            given[name] = value.split(LAYER_SEPARATOR) if name == "layer" and _takes_many(field) else value
    wanted, usual = params.load(settings, given)[0], params.load(settings)[0]
    as_usual = {**vars(usual), "out": _usual_out(command, wanted)}
    address = {word: getattr(wanted, word) for word in ADDRESS_WORDS if hasattr(wanted, word)}
    unusual = {name: getattr(wanted, name) for name in given if getattr(wanted, name) != as_usual[name]}
    return Fix(command, {**address, **unusual})


def _takes_many(field: Any) -> bool:
    return "tuple" in str(field.annotation)


def _of_dataset(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings, without the range where it is that of new images, which are named one by one."""
    return {**known, "range": None} if isinstance(known.get("images"), tuple) else known


def _of_named_file(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings with the words of the address that the named file of codes or of a classifier has."""
    path = known.get("classifier") or known.get("file")
    address = Experiment.of_file(path) if path else None
    return {**known, **vars(address), "classifier": None, "file": None} if address else known


def _can_fix(fix: Fix, known: Mapping[str, Any]) -> bool:
    """Return whether a fix can help: nobody knows what a file elsewhere was made from, or how to train other models."""
    if known.get("file") and not known.get("dataset"):
        return False
    trains = fix.command == "classify"
    return not trains or (not known.get("classifier") and known.get("model", "svm") in (*GRIDS, FINETUNED))


def _command_of(fix: Fix, known: Mapping[str, Any]) -> str:
    return "finetune" if fix.command == "classify" and known.get("model") == FINETUNED else fix.command


def _passed_on(command: str, name: str, field: Any, known: Mapping[str, Any]) -> Any:
    """Return the value of a setting that holds for another command too; None where there is none."""
    value = known.get(name)
    if not (extra_of(field)["group"] in (EXPERIMENT, NETWORK) or name in PASSED_ON):
        return None
    if value == NEAR_DUPLICATES and command == "prepare":
        return None  # there are no codes yet
    if command == "report" and name == "layer":
        return None  # a page compares layers
    if isinstance(value, tuple):
        return value if _takes_many(field) else None
    return None if value == FINETUNED and command == "finetune" else value


def _usual_out(command: str, settings: Any) -> Path | None:
    """Return where a command writes by itself."""
    if command == "prepare":
        return Path("data", params.dataset_name(settings.dataset or settings.unlabelled))
    if command not in ("extract", "classify"):
        return None
    address = Experiment(**{word: getattr(settings, word) for word in ADDRESS_WORDS if hasattr(settings, word)})
    return address.features if command == "extract" else address.classifier
