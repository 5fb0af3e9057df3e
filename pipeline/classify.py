"""Train a linear classifier on CNN codes, its setting chosen by cross-validation on the training split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline import classifiers, codes, errors, experiment, partitions, saved
from pipeline.codes import Codes
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.saved import SavedClassifier

EXAMPLE = "python -m pipeline.classify --layer fc7 --model svm --grid '{l2: {C: [0.1, 1, 10]}}'"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags, with defaults from params.yaml."""
    parser = experiment.command("classify", __doc__, EXAMPLE, ("dataset", "backbone", "layer", "model"))
    parser.add_argument(
        "--grid", help="{normalisation: {parameter: [values]}} to search (default: the model's section of params.yaml)"
    )
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation")
    parser.add_argument("--seed", type=int, default=0, help="that draws the folds")
    parser.add_argument("--codes", type=Path, help="the codes (default: features/DATASET/BACKBONE/LAYER.h5)")
    parser.add_argument("--out", type=Path, help="the classifier (default: models/DATASET/BACKBONE/LAYER-MODEL.skops)")
    for name in ("weights", "pool"):
        parser.add_argument(f"--{name}", help=f"refuse codes of other {name}")
    parser.set_defaults(**experiment.section("classify"))
    return parser


def run(options: argparse.Namespace) -> None:
    """Train what the options name."""
    grid = read_grid(options.grid) if options.grid else experiment.section(options.model)
    classifiers.demand_grid(options.model, grid)
    address = Experiment(options.dataset, options.backbone, options.layer, options.model)
    asked = {"backbone": options.backbone, "layer": options.layer, "weights": options.weights, "pool": options.pool}
    training = codes.read(
        options.codes or address.codes, {name: value for name, value in asked.items() if value}, "train"
    )
    partitions.demand_learnable(training.labels, training.classes, options.folds)
    X, y, images = codes.each_view(training)
    trained = classifiers.train(X, y, options.model, grid, options.folds, options.seed, images)
    path = options.out or address.classifier
    facts = {
        "dataset": address.name,
        "model": options.model,
        "chosen": trained.chosen,
        "converged": trained.converged,
        "n_train": len(training.labels),
        "folds": options.folds,
        "seed": options.seed,
        "cv": trained.table,
    }
    saved.save(path, SavedClassifier(trained.pipeline, training.spec, training.classes), facts)
    print(summary(trained, training, path))


def read_grid(text: str) -> Any:
    """Parse the grid given on the command line: YAML, as in params.yaml."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PipelineError(f"--grid {text!r} is not valid YAML. Write it like {{l2: {{C: [0.1, 1, 10]}}}}.") from error


def summary(trained: classifiers.Trained, training: Codes, path: Path) -> str:
    """Say what was chosen from what, and what to be wary of."""
    chosen, folds = trained.chosen, len(trained.chosen["folds"])
    setting = ", ".join(f"{name}={value}" for name, value in chosen["parameters"].items())
    lines = [
        f"{path}: {chosen['normalise']}, {setting}; cross-validated accuracy {chosen['accuracy']:.4f} "
        f"± {chosen['deviation']:.4f} over {folds} folds, {len(training.labels)} images"
    ]
    if not trained.converged:
        lines.append("The classifier stopped before it converged: take a smaller C, or another normalisation")
    if late := sum(folds - row["converged"] for row in trained.table):
        lines.append(f"{late} of {folds * len(trained.table)} fits of the search stopped before they converged")
    lines += [f"The best {name} lies at the edge of its grid: widen it" for name in classifiers.at_edge(trained.table)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return errors.run(build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
