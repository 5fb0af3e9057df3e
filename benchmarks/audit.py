"""Flip some training labels, and measure what `audit` finds of them, and the test accuracy before and after."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import read_codes
from pipeline.audit import GRID, find_label_errors
from pipeline.classifiers import scoring, search
from pipeline.classifiers.search import SearchPlan
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes.reader import Codes

PLAN = SearchPlan("softmax", GRID, folds=5, seed=0)


def flip(labels: np.ndarray, n_classes: int, share: float, seed: int) -> np.ndarray:
    """Return labels of which a share, drawn at random, is another class, drawn at random as well."""
    rng, flipped = np.random.default_rng(seed), labels.copy()
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    flipped[rows] = (labels[rows] + rng.integers(1, n_classes, len(rows))) % n_classes
    return flipped


def correct_first_half(train: Codes[np.ndarray], listed: list[tuple[int, int]]) -> np.ndarray:
    """Return the labels after the first half of the list was relabelled as it suggests."""
    labels = train.labels.copy()
    for row, label in listed[: len(listed) // 2]:
        labels[row] = label
    return labels


def accuracy(train: Codes[np.ndarray], labels: np.ndarray, test: Codes[np.ndarray]) -> float:
    """Return the accuracy on the test images of a softmax trained on these labels, its C cross-validated."""
    trained = search.train(TrainingData(train.values, labels, np.arange(len(labels))), PLAN)
    return float((trained.pipeline.predict(test.values) == test.labels).mean())


def measure(train: Codes[np.ndarray], test: Codes[np.ndarray], share: float, seed: int) -> dict[str, float]:
    """Return precision and recall of the list of suspected labels, and the test accuracies."""
    noisy = replace(train, labels=flip(train.labels, len(train.classes), share, seed))
    rows = {path: row for row, path in enumerate(train.paths)}
    data = TrainingData.of_codes(noisy, np.arange(len(train.labels)))
    findings = list(find_label_errors(noisy, data, PLAN))
    listed = [(rows[finding.path], train.classes.index(finding.to)) for finding in findings]
    wrong = {row for row, _ in listed if noisy.labels[row] != train.labels[row]}
    flipped = int((noisy.labels != train.labels).sum())
    return {
        "share": share,
        "flipped": flipped,
        "listed": len(listed),
        "precision": len(wrong) / max(len(listed), 1),
        "recall": len(wrong) / flipped,
        "accuracy_clean": accuracy(train, train.labels, test),
        "accuracy_flipped": accuracy(train, noisy.labels, test),
        "accuracy_half_corrected": accuracy(train, correct_first_half(noisy, listed), test),
    }


def main() -> None:
    """Print a line of JSON for each share: means over the draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codes", type=Path, help="HDF5 file of codes")
    parser.add_argument("--draws", type=int, default=5, help="number of draws (default: 5)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="shares of flipped labels")
    options = parser.parse_args()
    train, test = read_codes(options.codes, "train"), read_codes(options.codes, "test")
    for share in options.shares:
        draws = [measure(train, test, share, seed) for seed in range(options.draws)]
        means = {name: round(float(np.mean([draw[name] for draw in draws])), 4) for name in draws[0]}
        n = len(test.labels)
        low, high = scoring.wilson_interval(means["accuracy_clean"] * n, n)
        print(json.dumps(means | {"n_test": n, "clean_95%": [round(low, 4), round(high, 4)]}), flush=True)


if __name__ == "__main__":
    main()
