"""Four words address an experiment: dataset, backbone, layer, model; their defaults stand in params.yaml."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline import addresses
from pipeline.errors import PipelineError, unknown

ADDRESS_WORDS = ("dataset", "backbone", "layer", "model")

LAYER_SEPARATOR = "+"
"""What stands between the names of several layers, as in fc6+fc7."""

LOGITS = "logits"
"""The layer that gives the scores of the classes that a network was trained on."""

TASK_SEPARATOR = "@"
"""What stands between a dataset and one of its tasks, as in photos@shape."""

FINETUNED = "finetuned"
"""The model's name in the address of a fine-tuned network."""

MANIFEST, ORIGIN = "manifest.csv", "source.json"
"""What makes a folder a prepared dataset, and what says which source it was prepared from."""


def expand_home(text: str) -> Path:
    """Return a path that starts at the home folder if the text starts with `~`."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def name_of_source(source: str) -> str:
    """Return the name of the dataset that a source becomes: its last part, of a CSV file or archive without suffix.

    The task that is named behind it stays, unless it is the first, which is the dataset's own.
    """
    place, task = split_task(source)
    name = _name_of_place(place)
    if not task:
        return name
    tasks, folder = read_tasks(Path("data", name)), folder_of_task(Path("data", name), task)
    if tasks[:1] == [task]:
        return name
    if task not in tasks and (Path("data", name) / MANIFEST).exists() and not (folder / MANIFEST).exists():
        raise _no_such_task(name, task, tasks)
    return folder.name


def _no_such_task(name: str, task: str, tasks: Sequence[str]) -> PipelineError:
    if tasks:
        return unknown("task", task, tasks, where=name)
    return PipelineError(
        f"{name} has no task {task!r}: it was prepared without --labels. Name the columns of its CSV file there: "
        f"pipeline.prepare --labels COLUMN {task}."
    )


def _name_of_place(source: str) -> str:
    if addresses.is_url(source):
        return addresses.stem(addresses.last_name(source))
    path = expand_home(source)
    name = path.resolve().name
    return name if path.is_dir() else addresses.stem(name)


def split_task(dataset: str) -> tuple[str, str]:
    """Return a dataset and the task that is named behind it: photos and shape of photos@shape; "" for none."""
    place, _, task = dataset.rpartition(TASK_SEPARATOR)
    is_task = place and task and "/" not in task and not expand_home(dataset).exists()
    return (place, task) if is_task else (dataset, "")


def folder_of_task(folder: Path, task: str) -> Path:
    """Return the folder of a task beside that of its dataset, among prepared datasets or codes."""
    return folder.with_name(f"{folder.name}{TASK_SEPARATOR}{task}")


def without_task(folder: Path) -> Path:
    """Return the folder of the dataset that a folder is a task of, or the folder itself."""
    name, _, task = folder.name.rpartition(TASK_SEPARATOR)
    return folder.with_name(name) if name and task else folder


def identity_of(source: str) -> str:
    """Return what tells a source from others: the absolute path of a folder or file, the name of a dataset, a URL."""
    if addresses.is_url(source):
        return addresses.without_secrets(source)
    path = expand_home(source)
    return str(path.resolve()) if source and path.exists() else source


def read_origin(folder: Path) -> str | None:
    """Return the identity of the source that a folder was prepared from; None where no file says it readably."""
    try:
        return str(json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_tasks(folder: Path) -> list[str]:
    """Return the columns of labels that a dataset was prepared with; [] where none were named, or no file says it."""
    try:
        return [str(name) for name in json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["settings"]["labels"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def codes_of_all_tasks(folder: Path) -> Path:
    """Return the folder of the codes of a dataset, for the one of a task's: features/NAME/… of features/NAME@TASK/…"""
    kind, *rest = folder.parts
    if kind != "features" or len(rest) < 2:
        return folder
    return Path(kind, without_task(Path(rest[0])), *rest[1:])


def require_one_layer(layer: str) -> None:
    """Refuse several layers where the codes of one are needed."""
    if LAYER_SEPARATOR in layer:
        raise PipelineError(f"--layer {layer} names several layers. Take one of them.")


@dataclass(frozen=True)
class Experiment:
    """Where the artifacts of one experiment lie, relative to the project's folder."""

    dataset: str
    backbone: str
    layer: str = ""
    model: str = ""

    @classmethod
    def of_file(cls, path: Path) -> Self | None:
        """Return the experiment whose codes or classifier lie at a path of `codes` or `classifier`; None for others."""
        kind, *folders = path.parts[:-1] or ("",)
        if len(folders) < 2 or kind not in ("features", "models"):
            return None
        layer, model = (path.stem, "") if kind == "features" else path.stem.rsplit("-", 1)
        return cls(folders[0], "/".join(folders[1:]), layer, model)

    @property
    def name(self) -> str:
        """The dataset's name: the last part, where it is given as a folder."""
        return name_of_source(self.dataset)

    @property
    def data(self) -> Path:
        """The prepared dataset: a folder with manifest.csv; for a source, the folder that was prepared from it."""
        given, prepared, (source, task) = expand_home(self.dataset), Path("data", self.name), split_task(self.dataset)
        if (given / MANIFEST).exists():
            return given
        return prepared if task or read_origin(prepared) == identity_of(source) else Path("data", self.dataset)

    @property
    def features(self) -> Path:
        """The folder of the backbone's codes."""
        return Path("features", self.name, self.backbone)

    @property
    def codes(self) -> Path:
        """The HDF5 file of the layer's codes."""
        return self.features / f"{self.layer}.h5"

    def table(self, suffix: str) -> Path:
        """Return where the layer's codes lie as a table for other tools."""
        return Path("exports", self.name, self.backbone, f"{self.layer}.{suffix}")

    @property
    def classifier(self) -> Path:
        """The saved classifier; its description is the .json beside it."""
        return Path("models", self.name, self.backbone, f"{self.layer}-{self.model}.skops")

    @property
    def reports(self) -> Path:
        """The folder of what is reported of the backbone."""
        return Path("reports", self.name, self.backbone)

    @property
    def advice(self) -> Path:
        """The folder of what `advise` says of the backbone."""
        return self.reports / "advice"

    @property
    def report(self) -> Path:
        """The folder of the classifier's scores."""
        return self.reports / f"{self.layer}-{self.model}"
