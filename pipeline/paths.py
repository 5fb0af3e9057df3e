"""Four words address an experiment: dataset, backbone, layer, model; their defaults stand in params.yaml."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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

    The task that is named behind it stays.
    """
    place, task = split_task(source)
    name = _name_of_place(place)
    return f"{name}{TASK_SEPARATOR}{task}" if task else name


def prepared_folder(dataset: str) -> Path:
    """Return the folder of a prepared dataset: as given, or by name, or the one that was prepared from a source."""
    given, (source, task) = expand_home(dataset), split_task(dataset)
    if (given / MANIFEST).exists():
        return given
    if task:
        return folder_of_task(prepared_folder(source), task)
    prepared = Path("data", name_of_source(source))
    return prepared if read_origin(prepared) == identity_of(source) else Path("data", source)


def resolve_task(dataset: str) -> str:
    """Return a dataset with the task behind it, unless that is the first, which is the dataset itself.

    A task that the dataset does not have is refused.
    """
    source, task = split_task(dataset)
    folder = prepared_folder(source)
    tasks = read_tasks(folder)
    if not task:
        return dataset
    if is_task(folder):
        raise PipelineError(f"{source} is a task already. Name it alone, or the dataset with --task {task}.")
    if tasks[:1] == [task]:
        return source
    is_prepared = (prepared_folder(dataset) / MANIFEST).exists()
    if task not in tasks and (folder / MANIFEST).exists() and not is_prepared:
        raise _no_such_task(name_of_source(source), task, tasks)
    return dataset


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


def is_task(folder: Path) -> bool:
    """Return whether a prepared dataset is a task of another one, not its first."""
    return folder.name.rpartition(TASK_SEPARATOR)[2] in read_tasks(folder)[1:]


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


def read_record(folder: Path) -> dict[str, Any]:
    """Return what a prepared dataset's `ORIGIN` says, unchecked; {} where no file says anything readably."""
    try:
        return dict(json.loads((folder / ORIGIN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def read_origin(folder: Path) -> str | None:
    """Return the identity of the source that a folder was prepared from; None where no file says it readably."""
    record = read_record(folder)
    return str(record["source"]) if "source" in record else None


def read_tasks(folder: Path) -> list[str]:
    """Return the columns of labels that a dataset was prepared with; [] where none were named, or no file says it."""
    settings = read_record(folder).get("settings")
    labels = settings.get("labels") if isinstance(settings, dict) else None
    return [str(name) for name in labels] if isinstance(labels, list) else []


def codes_of_all_tasks(folder: Path) -> Path:
    """Return the folder of the codes of a dataset, for the one of a task's: features/NAME/… of features/NAME@TASK/…"""
    kind, *rest = folder.parts
    if kind != "features" or len(rest) < 2:
        return folder
    return Path(kind, without_task(Path(rest[0])), *rest[1:])


def split_layer(name: str) -> tuple[str, str]:
    """Return layer and model of a name like fc7-svm: layers have no hyphen, models may, as in logits-source-map."""
    layer, _, model = name.partition("-")
    return layer, model


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
        layer, model = (path.stem, "") if kind == "features" else split_layer(path.stem)
        return cls(folders[0], "/".join(folders[1:]), layer, model)

    @property
    def name(self) -> str:
        """The dataset's name: the last part, where it is given as a folder."""
        return name_of_source(self.dataset)

    @property
    def data(self) -> Path:
        """The prepared dataset: a folder with manifest.csv; for a source, the folder that was prepared from it."""
        return prepared_folder(self.dataset)

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
