"""Train a linear classifier on CNN codes, its setting chosen by cross-validation on the training split."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import command_line, errors, params
from pipeline.classifiers import few_shot, persistence, search
from pipeline.codes import reader
from pipeline.config import Classify
from pipeline.data.manifest import MANIFEST, read_manifest
from pipeline.data.splits import find_units, make_folds, validate_folds, validate_trainable
from pipeline.paths import Experiment
from pipeline.reporting import curves

BLOCK = 1024
MIN_MEMORY = 100_000_000
EXAMPLE = "python -m pipeline.classify --layer fc7 --model svm --grid '{l2: {C: [0.1, 1, 10]}}'"


def run(settings: Classify) -> None:
    """Train what the settings name."""
    grid = settings.grid or params.grid_of(settings.model)
    search.validate_grid(settings.model, grid)
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    asked = {"backbone": settings.backbone, "layer": settings.layer, "weights": settings.weights, "pool": settings.pool}
    expected = {name: value for name, value in asked.items() if value}
    half = parse_bytes(settings.memory) // 2 if settings.memory else None
    with reader.open_codes(settings.codes or address.codes, expected, "train", half) as training:
        validate_combination(settings, grid, training)
        groups = training_units(training, address.data, settings.group_by)
        validate_trainable(training.labels, training.classes, settings.folds, groups)
        lesson = TrainingData(*flatten_training(training, groups), grid, half if in_blocks(training) else None)
        path = settings.out or address.classifier
        print((draw_shots if settings.shots else train_classifier)(path, lesson, training, settings))


@dataclass(frozen=True)
class TrainingData:
    """What is learnt from: codes (n, d), their labels and groups, the grid, and bytes for the state of the search."""

    X: Any
    y: np.ndarray
    groups: np.ndarray
    grid: Any
    space: int | None


def train_classifier(path: Path, lesson: TrainingData, training: reader.Codes, options: Classify) -> str:
    """Write the classifier, its CV table and the curve of it; say what was chosen."""
    X, y = lesson.X, lesson.y
    folds: dict[str, Any] = {"folds": options.folds, "seed": options.seed, "groups": lesson.groups}
    splits = make_folds(y, **folds)
    validate_folds(splits, y, training.classes)
    choice: dict[str, Any] = {"rule": options.rule, "widen": options.extend_grid}
    trained = search.train(X, y, options.model, lesson.grid, splits, **choice, memory=lesson.space)
    facts: dict[str, Any] = {
        "dataset": Experiment(options.dataset, options.backbone).name,
        "model": options.model,
        "chosen": trained.chosen,
        "converged": trained.converged,
        "n_train": len(training.labels),
        "folds": options.folds,
        "seed": options.seed,
        "rule": options.rule,
        "group_by": options.group_by,
        "measure": "accuracy" if y.ndim == 1 else "mean average precision",
        "constant": constant_columns(X),
        "widened": trained.widened,
        "cv": trained.table,
    }
    if options.calibrate:
        facts["temperature"] = search.calibrate(trained, X, y, splits, memory=lesson.space)
    if options.nested:
        facts["nested"] = search.nested_cv(X, y, options.model, lesson.grid, **folds, **choice)
    curves.write_cv(path.with_suffix(".csv"), trained.table, trained.chosen, facts["measure"])
    persistence.save(path, persistence.SavedClassifier(trained.pipeline, training.spec, training.classes), facts)
    return summary(trained, training, path, facts)


def draw_shots(path: Path, lesson: TrainingData, training: reader.Codes, options: Classify) -> str:
    """Write the curve of few images beside the classifier's place, and say what it shows."""
    counts = sorted(set(options.shots))
    few_shot.validate_shots(training.labels, training.classes, counts, options.draws)
    scheme: dict[str, Any] = {
        "draws": options.draws,
        "folds": options.folds,
        "seed": options.seed,
        "groups": lesson.groups,
    }
    rows = few_shot.summarise(few_shot.learning_curve(lesson.X, lesson.y, options.model, lesson.grid, counts, **scheme))
    path = path.with_name(f"{path.stem}-shots.csv")
    curves.write_shots(path, rows)
    lines = [f"{path}: accuracy on {rows[0]['n_scored']} training images held out, over {rows[0]['draws']} draws"]
    lines += [f"{row['shots']:4} a class: {row['accuracy']:.4f} ± {row['deviation']:.4f}" for row in rows]
    return "\n".join(lines)


def in_blocks(training: reader.Codes) -> bool:
    """Whether the codes stay on disk."""
    return isinstance(training.values, reader.StoredRows)


def validate_combination(options: Classify, grid: Any, training: reader.Codes) -> None:
    """Refuse what does not go together."""
    several, along = training.labels.ndim == 2, all(search.uses_path_solver(options.model, v) for v in grid.values())
    if options.model != "svm" and (several or options.calibrate):
        why = "These images have several labels each" if several else "--calibrate is for margins"
        raise errors.PipelineError(f"{why}: that takes --model svm, not {options.model}.")
    if several and (options.calibrate or options.nested or options.shots):
        raise errors.PipelineError("--calibrate, --nested and --shots are for one label an image. Leave them out.")
    if (several or options.calibrate) and not along:
        raise errors.PipelineError("The grid must be of C alone for that. Take its other parameters out.")
    if in_blocks(training) and (not along or options.nested or options.shots or training.spec.n_views > 1):
        raise errors.PipelineError(
            f"The codes do not fit into --memory {options.memory}. Only an svm or softmax over values of C, without "
            "--nested or --shots, of one view an image, learns from disk: allow more memory, or leave those out."
        )


def parse_bytes(text: str) -> int:
    """Return the bytes that `2GB` or the like stands for."""
    found = re.fullmatch(r"([0-9.]+) *([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    try:
        assert found
        size = int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))
    except (AssertionError, ValueError):
        raise errors.PipelineError(f"--memory {text!r} is no size. Write it like 2GB or 500MB.") from None
    if size < MIN_MEMORY:
        raise errors.PipelineError(f"--memory {text} is too little to work in. Allow {MIN_MEMORY // 10**6}MB or more.")
    return size


def training_units(training: reader.Codes, folder: Path, group_by: str) -> np.ndarray:
    """Return the unit (n,) of each training image: copies, and images of one group, must stay together.

    folder: the prepared dataset; group_by: one of its metadata columns, or "".
    """
    return find_units(training.digests, *([read_groups(folder, group_by, training.paths)] if group_by else []))


def read_groups(folder: Path, column: str, paths: Sequence[str]) -> list[str]:
    """Return the value of each image in a metadata column of the prepared dataset."""
    manifest = read_manifest(folder)
    rows = {path: row for row, path in enumerate(manifest.paths)}
    if missing := [path for path in paths if path not in rows]:
        raise errors.PipelineError(
            f"{folder / MANIFEST} does not list {missing[0]}, whose codes are here. Run pipeline.extract again."
        )
    return list(manifest.take(np.array([rows[path] for path in paths], np.int64)).groups(column))


def flatten_training(training: reader.Codes, groups: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return codes, labels and units of all views; the views of an image are in the unit of the image."""
    if in_blocks(training):
        return training.values, training.labels, groups
    X, y, images = reader.flatten_views(training)
    return X, y, groups if images is None else groups[images]


def constant_columns(X: Any) -> int:
    """Return how many columns of codes (n, d) have one value in all rows."""
    low = high = X[:1].min(0)
    for start in range(0, X.shape[0], BLOCK):
        rows = X[start : start + BLOCK]
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
    return int((low == high).sum())


def summary(trained: search.SearchResult, training: reader.Codes, path: Path, facts: Mapping[str, Any]) -> str:
    """Say what was chosen from what, and what to be wary of."""
    chosen, folds = trained.chosen, len(trained.chosen["folds"])
    setting = ", ".join(f"{name}={value}" for name, value in chosen["parameters"].items())
    lines = [
        f"{path}: {chosen['normalise']}, {setting}; cross-validated {facts['measure']} {chosen['accuracy']:.4f} "
        f"± {chosen['deviation']:.4f} over {folds} folds, {len(training.labels)} images"
    ]
    if nested := facts.get("nested"):
        lines.append(
            f"Nested, with the choice inside: {nested['accuracy']:.4f} (95% {nested['low']:.4f}–{nested['high']:.4f}), "
            f"n = {nested['n']}"
        )
    if facts["constant"]:
        lines.append(
            f"{facts['constant']} of {training.values.shape[1]} columns of codes are constant: they tell nothing"
        )
    if not trained.converged:
        lines.append("The classifier stopped before it converged: take a smaller C, or another normalisation")
    if late := sum(folds - row["converged"] for row in trained.table):
        lines.append(f"{late} of {folds * len(trained.table)} fits of the search stopped before they converged")
    if trained.widened:
        added = ", ".join(json.dumps(further) for further in trained.widened)
        lines.append(f"The best setting lay at the edge of its grid, which was widened: {added}")
    lines += [f"The best {name} lies at the edge of its grid: widen it" for name in search.at_edge(trained.table)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("classify", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
