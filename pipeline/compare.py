"""Compare frozen codes with a fine-tuned network: the same splits, several seeds, accuracy beside what it costs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import config, errors, files
from pipeline.analysis import comparison, predictions
from pipeline.data import sources
from pipeline.paths import Experiment

EXAMPLE = "python -m pipeline.compare --layer pool3 fc7 --model softmax --tuned-layer fc7 --seeds 5 -- --recipe modern"
ENERGY = "intel-rapl:*/energy_uj"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and the folder where codes, classifiers and scores lie meanwhile."""

    dataset: str
    backbone: str
    folder: Path

    def call(self, stage: str, *flags: object) -> comparison.Cost:
        """Run a command of ours on the dataset and the backbone; return what it took."""
        address = ("--dataset", self.dataset, "--backbone", self.backbone)
        return measured([sys.executable, "-m", f"pipeline.{stage}", *map(str, (*address, *flags))])

    def score(self, codes: Path, classifier: Path) -> np.ndarray:
        """Return (n,) bool: which test images a classifier of codes gets right."""
        scored = self.folder / "scores"
        self.call("evaluate", "--codes", codes, "--classifier", classifier, "--out", scored)
        return predictions.read_predictions(scored).right

    def frozen(self, layers: Sequence[str], models: Sequence[str], seeds: int) -> list[comparison.Contender]:
        """Try each model on the frozen codes of each layer, which one pass extracts; seeds draw the folds."""
        codes = self.folder / "frozen"
        extraction = self.call("extract", "--layer", *layers, "--out", codes)
        return [
            self._frozen(codes / f"{layer}.h5", layer, model, seeds, extraction) for layer in layers for model in models
        ]

    def _frozen(
        self, codes: Path, layer: str, model: str, seeds: int, extraction: comparison.Cost
    ) -> comparison.Contender:
        right, validated, costs = [], [], []
        for seed in range(seeds):
            path = self.classifier(layer, model, seed)
            flags = ("--layer", layer, "--model", model, "--seed", seed, "--codes", codes, "--out", path)
            costs.append(extraction + self.call("classify", *flags))
            right.append(self.score(codes, path))
            validated.append(description(path)["chosen"]["accuracy"])
        return comparison.Contender(layer, model, np.stack(right), float(np.mean(validated)), costs)

    def tuned(self, start: comparison.Contender, flags: Sequence[str]) -> comparison.Contender:
        """Fine-tune from the classifiers of a frozen contender, one a seed."""
        right, validated, costs = [], [], []
        for seed, before in enumerate(start.costs):
            weights, codes = self.folder / f"tuned-{seed}.safetensors", self.folder / f"tuned-{seed}"
            origin = ("--classifier", self.classifier(start.layer, start.model, seed))
            files = (*origin, "--codes", self.folder / "frozen" / f"{start.layer}.h5", "--out", weights)
            cost = self.call(
                "finetune", "--layer", start.layer, "--seed", seed, *files, "--report", self.folder / "log", *flags
            )
            cost += self.call("extract", "--layer", start.layer, "--weights", weights, "--out", codes)
            costs.append(before + cost)
            right.append(self.score(codes / f"{start.layer}.h5", weights.with_suffix(".skops")))
            validated.append(description(weights)["best"]["val_accuracy"])
            print(f"seed {seed}: top-1 {right[-1].mean():.4f} after {costs[-1].seconds:.0f} s", flush=True)
        return comparison.Contender(start.layer, "finetuned", np.stack(right), float(np.mean(validated)), costs)

    def classifier(self, layer: str, model: str, seed: int) -> Path:
        """Return where the classifier of a seed lies."""
        return self.folder / f"{layer}-{model}-{seed}.skops"


def measured(command: Sequence[str]) -> comparison.Cost:
    """Run a command to its end and return its cost; what it says of a mistake becomes ours."""
    start, joules = time.monotonic(), energy()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            lines = said.read().strip().splitlines() or [f"exit code {process.returncode}"]
            raise errors.PipelineError(f"{command[2]} failed: {lines[-1].removeprefix('Error: ')}")
    after = energy()
    spent = after - joules if after is not None and joules is not None and after >= joules else None
    return comparison.Cost(time.monotonic() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), spent)


def energy() -> float | None:
    """Return the joules that the processors have taken so far, None where the machine does not tell."""
    try:
        found = [int(path.read_text()) for path in Path("/sys/class/powercap").glob(ENERGY)]
    except OSError:
        return None
    return sum(found) / 1e6 if found else None


def description(path: Path) -> dict[str, Any]:
    """Return what stands beside a classifier or weights."""
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags, with defaults from params.yaml."""
    parser = config.command("compare", __doc__, EXAMPLE, ("dataset", "backbone"))
    defaults = config.params()
    parser.add_argument("--layer", nargs="+", default=defaults["extract"]["layer"], help="whose frozen codes compete")
    parser.add_argument("--model", nargs="+", default=defaults["models"], help="the classifiers of frozen codes")
    parser.add_argument("--tuned-layer", help="that fine-tuning reads (default: the last of --layer)")
    parser.add_argument("--tuned-model", help="that fine-tuning starts from (default: the last of --model)")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--out", type=Path, help="the folder for comparison.csv (default: reports/DATASET/BACKBONE)")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="of pipeline.finetune")
    return parser


def run(options: argparse.Namespace) -> None:
    """Compare what the options name."""
    config.validate_minimum(options, seeds=1)
    layer, model = options.tuned_layer or options.layer[-1], options.tuned_model or options.model[-1]
    if layer not in options.layer or model not in options.model:
        raise errors.PipelineError(
            f"Fine-tuning starts from {layer}-{model}: name both with --layer and --model as well."
        )
    address = Experiment(options.dataset, options.backbone)
    sources.open_prepared(address.data, **config.section("prepare"))
    with tempfile.TemporaryDirectory() as folder:
        arms = Comparison(options.dataset, options.backbone, Path(folder))
        frozen = arms.frozen(options.layer, options.model, options.seeds)
        start = next(one for one in frozen if (one.layer, one.model) == (layer, model))
        tuned = arms.tuned(start, options.flags)
    out = options.out or address.report.parent
    found, sentence = comparison.rows(frozen, tuned), comparison.verdict(frozen, tuned)
    cells = [["" if value is None else value for value in row.values()] for row in found]
    files.write_csv(out / "comparison.csv", list(found[0]), cells)
    content = {"rows": found, "verdict": sentence, "flags": options.flags}
    (out / "comparison.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{comparison.table(found)}\n\n{sentence}\n{out / 'comparison.csv'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run_command(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
