"""Compare frozen codes with a fine-tuned network on the same splits: accuracy over several seeds, and cost.

Example: python -m pipeline.compare --layer pool3 fc7 --model softmax --tuned-layer fc7 --seeds 5 -- --recipe modern
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("compare")

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import errors, files, params
from pipeline.analysis import comparison, predictions
from pipeline.analysis.grouping import Grouping
from pipeline.classifiers import persistence
from pipeline.config import Compare
from pipeline.data import digits
from pipeline.paths import Experiment
from pipeline.progress import ProgressBar

ENERGY = "intel-rapl:*/energy_uj"
"""Files of microjoules, one per CPU, under /sys/class/powercap."""


@dataclass(frozen=True)
class Comparison:
    """The dataset and backbone to compare on, the folder for all files in the meantime, and the count of commands."""

    dataset: str
    backbone: str
    folder: Path
    bar: ProgressBar
    grouping: Grouping

    @property
    def grouped(self) -> tuple[object, ...]:
        """The flags of what joins images to groups; none where each command's own settings decide."""
        by, near_distance = self.grouping.by, self.grouping.near_distance
        return ("--group-by", by, "--near-distance", near_distance) if by else ()

    def call(self, command: str, *flags: object) -> comparison.Cost:
        """Run one of the pipeline's commands on the dataset and the backbone; return its cost."""
        address = ("--dataset", self.dataset, "--backbone", self.backbone)
        cost = run_measured(command, *map(str, (*address, *flags)))
        self.bar.update()
        return cost

    def score(self, codes: Path, classifier: Path) -> predictions.Predictions:
        """Return the predictions of the test images by a classifier of codes."""
        scores = self.folder / "scores"
        self.call("evaluate", "--codes", codes, "--classifier", classifier, "--out", scores)
        return predictions.read_predictions(scores)

    def frozen(self, layers: Sequence[str], models: Sequence[str], seeds: int) -> list[comparison.Contender]:
        """Train each model on the frozen codes of each layer, all extracted in one pass; seeds draw the folds."""
        codes = self.folder / "frozen"
        extraction = self.call("extract", "--layer", *layers, "--out", codes)
        return [
            self._frozen(codes / f"{layer}.h5", layer, model, seeds, extraction) for layer in layers for model in models
        ]

    def _frozen(
        self, codes: Path, layer: str, model: str, seeds: int, extraction: comparison.Cost
    ) -> comparison.Contender:
        correct, accuracies, costs = [], [], []
        for seed in range(seeds):
            path = self.classifier(layer, model, seed)
            flags = ("--layer", layer, "--model", model, "--seed", seed, "--codes", codes, "--out", path)
            costs.append(extraction + self.call("classify", *flags, *self.grouped))
            outcomes = self.score(codes, path)
            correct.append(outcomes.correct)
            accuracies.append(persistence.read_metadata(path).facts["chosen"]["accuracy"])
        return comparison.Contender(layer, model, np.stack(correct), outcomes.units, float(np.mean(accuracies)), costs)

    def tuned(self, start: comparison.Contender, flags: Sequence[str]) -> comparison.Contender:
        """Fine-tune from the classifiers of a frozen contender, one run per seed."""
        correct, accuracies, costs = [], [], []
        for seed, before in enumerate(start.costs):
            weights, codes = self.folder / f"tuned-{seed}.safetensors", self.folder / f"tuned-{seed}"
            classifier = weights.with_suffix(".skops")
            costs.append(before + self._fine_tune(start, seed, weights, codes, flags))
            correct.append(self.score(codes / f"{start.layer}.h5", classifier).correct)
            accuracies.append(persistence.read_metadata(classifier).facts["best"]["val_accuracy"])
            print(f"seed {seed}: top-1 {correct[-1].mean():.4f} after {costs[-1].seconds:.0f} s", flush=True)
        mean = float(np.mean(accuracies))
        return comparison.Contender(start.layer, "finetuned", np.stack(correct), start.units, mean, costs)

    def _fine_tune(
        self, start: comparison.Contender, seed: int, weights: Path, codes: Path, flags: Sequence[str]
    ) -> comparison.Cost:
        """Fine-tune with one seed, and extract the codes of the tuned network; return the cost of both."""
        origin = ("--classifier", self.classifier(start.layer, start.model, seed))
        files = (*origin, "--codes", self.folder / "frozen" / f"{start.layer}.h5", "--out", weights, *self.grouped)
        report = self.folder / "log"
        cost = self.call("finetune", "--layer", start.layer, "--seed", seed, *files, "--report", report, *flags)
        return cost + self.call("extract", "--layer", start.layer, "--weights", weights, "--out", codes)

    def classifier(self, layer: str, model: str, seed: int) -> Path:
        """Return the path of the classifier that was trained with a seed."""
        return self.folder / f"{layer}-{model}-{seed}.skops"


def count_commands(layers: int, models: int, seeds: int) -> int:
    """Return how many commands a comparison runs."""
    frozen = 1 + 2 * layers * models * seeds  # extract; classify and evaluate
    return frozen + 3 * seeds  # finetune, extract, evaluate


def run_measured(stage: str, *flags: str) -> comparison.Cost:
    """Run one of the pipeline's commands and return its cost; raise PipelineError with its last line if it fails.

    The command is that of this package, even if the working folder contains another `pipeline`.
    """
    command = [sys.executable, "-P", "-m", f"pipeline.{stage}", *flags]
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    start, joules = time.monotonic(), read_energy()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            said = output.read().strip() or f"exit code {process.returncode}"
            raise errors.PipelineError(f"pipeline.{stage} failed: {said.rpartition('Error: ')[2]}")
    after = read_energy()
    spent = after - joules if after is not None and joules is not None and after >= joules else None
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return comparison.Cost(time.monotonic() - start, memory, spent)


def read_energy() -> float | None:
    """Return the joules that the CPUs have used so far, None where the machine does not count them."""
    try:
        counters = [int(path.read_text()) for path in Path("/sys/class/powercap").glob(ENERGY)]
    except OSError:
        return None
    return sum(counters) / 1e6 if counters else None


def run(settings: Compare) -> None:
    """Compare what the settings name."""
    layer, model = settings.tuned_layer or settings.layer[-1], settings.tuned_model or settings.model[-1]
    if layer not in settings.layer or model not in settings.model:
        raise errors.PipelineError(
            f"Fine-tuning starts from {layer}-{model}: name both with --layer and --model as well."
        )
    address = Experiment(settings.dataset, settings.backbone)
    digits.open_prepared(address.data, **params.split_settings())
    n_commands = count_commands(len(settings.layer), len(settings.model), settings.seeds)
    grouping = Grouping(settings.group_by, settings.near_distance)
    with tempfile.TemporaryDirectory() as folder, ProgressBar("comparing", n_commands, "command") as bar:
        arms = Comparison(settings.dataset, settings.backbone, Path(folder), bar, grouping)
        frozen = arms.frozen(settings.layer, settings.model, settings.seeds)
        start = next(one for one in frozen if (one.layer, one.model) == (layer, model))
        tuned = arms.tuned(start, settings.flags)
    out = settings.out or address.reports
    rows, verdict = comparison.rows(frozen, tuned), comparison.verdict(frozen, tuned)
    cells = [["" if value is None else value for value in row.values()] for row in rows]
    files.write_csv(out / "comparison.csv", list(rows[0]), cells)
    content = {"rows": rows, "verdict": verdict, "flags": settings.flags}
    files.write_json(out / "comparison.json", content)
    print(f"{comparison.table(rows)}\n\n{verdict}\n{out / 'comparison.csv'}")
