"""Go all the way from images to a report: prepare, advise, extract, classify, evaluate, report.

Example: python -m pipeline.run ~/photos
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("run")

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import params
from pipeline.classifiers.scoring import Metrics
from pipeline.config import COMMANDS, Run
from pipeline.errors import Fix, PipelineError
from pipeline.paths import Experiment

BACKBONES = Run().backbone
"""The backbones that need no download: one for photographs, one for small images."""


@dataclass(frozen=True)
class FolderResult:
    """A trained and evaluated classifier of a folder of images.

    address: dataset, backbone, layer and model; cv_accuracy: the accuracy by which backbone and layer were chosen, in
    cross-validation on training images; metrics: the scores on the test split; page: the report.
    """

    address: Experiment
    cv_accuracy: float
    metrics: Metrics
    page: Path

    @property
    def classifier(self) -> Path:
        """The file of the classifier, for `load_classifier` and `predict`."""
        return self.address.classifier


def classify_folder(source: str | Path, backbones: Sequence[str] = BACKBONES) -> FolderResult:
    """Train and evaluate a classifier of images, and write the report, all below the working folder.

    source: a folder with a folder of images per class, a CSV file, or the name of a dataset; backbones: those that
    `advise` measures on the training images, to choose one of them and its layer. The steps are the commands that are
    printed, and give the same files. Raises PipelineError as they do.
    """
    name = params.dataset_name(str(source))
    do("prepare", dataset=str(source))
    choices = [choice for backbone in backbones if (choice := advise(name, backbone))]
    if not choices:
        raise PipelineError(f"No backbone can be chosen for {name}: the advice above says why.")
    chosen, accuracy = max(choices, key=lambda choice: choice[1])
    address = {"dataset": name, "backbone": chosen.backbone, "layer": chosen.layer, "model": chosen.model}
    do("extract", **{word: value for word, value in address.items() if word != "model"})
    do("classify", **address)
    do("evaluate", **address)
    do("report", dataset=name)
    metrics = json.loads((chosen.report / "metrics.json").read_text(encoding="utf-8"))
    return FolderResult(chosen, accuracy, metrics, Path("reports", "index.html"))


def advise(name: str, backbone: str) -> tuple[Experiment, float] | None:
    """Have the layers of a backbone measured; return the recommended experiment and its cross-validated accuracy.

    None where there is no advice.
    """
    do("advise", dataset=name, backbone=backbone)
    path = Experiment(name, backbone).advice / "advice.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if "no_advice" in content:
        return None
    layer, model = content["advice"]["layer"], content["advice"]["model"]
    accuracy = next(measured["accuracy"] for measured in content["layers"] if measured["layer"] == layer)
    return Experiment(name, backbone, layer, model), accuracy


def do(command: str, **settings: object) -> None:
    """Print a command as it could be typed, and run it."""
    print(f"\n$ {Fix(command, settings)}", flush=True)
    config, _ = params.load(COMMANDS[command], settings)
    importlib.import_module(f"pipeline.{command}").run(config)


def run(settings: Run) -> None:
    """Go all the way with what the settings name."""
    result = classify_folder(settings.source, settings.backbone)
    address = result.address
    print(
        f"\n{address.backbone} {address.layer} was chosen by cross-validation ({result.cv_accuracy:.4f}); on the "
        f"test split it has top-1 {result.metrics['top1']:.4f} (95% {result.metrics['top1_low']:.4f}–"
        f"{result.metrics['top1_high']:.4f}, n = {result.metrics['n']}).\n"
        f"For new images: {Fix('predict', {'classifier': result.classifier})} IMAGE"
    )
