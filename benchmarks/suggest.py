"""Label the images that `suggest` names, round by round, beside random ones; measure accuracy against labels."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.pipeline import Pipeline

from pipeline import read_codes
from pipeline.analysis import neighbors, suggestion
from pipeline.classifiers import scoring, search
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader

C = 100
"""Weight of the loss of the softmax; one value, since two labels cannot be cross-validated."""


class Pool:
    """The training images of a dataset, of which some have got their labels, and the test images."""

    def __init__(self, path: Path) -> None:
        self.train, self.test = read_codes(path, "train"), read_codes(path, "test")
        rows = np.flatnonzero(reader.read_index(path, {}).splits.isin(["train"]))
        self.vectors = neighbors.reduce(path, rows)

    def fit(self, known: np.ndarray) -> Pipeline:
        """Return a softmax trained on the images of these places."""
        data = TrainingData.of_independent(self.train.values[known], self.train.labels[known])
        return search.refit(data, "softmax", "l2", {"C": C})[0]

    def accuracy(self, known: np.ndarray) -> float:
        """Return the accuracy on the test images."""
        return float((self.fit(known).predict(self.test.values) == self.test.labels).mean())

    def choose(self, by: str, known: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return the places of the next images to label."""
        rest = np.setdiff1d(np.arange(len(self.train.labels)), known)
        if by == "random":
            return rng.choice(rest, count, replace=False)
        if by == "coverage":
            return suggestion.typical_images(self.vectors, np.isin(np.arange(len(self.vectors)), known), count)
        pipeline, values = self.fit(known), self.train.values[rest]
        if by == "margin":
            sure = suggestion.gap_to_second(scoring.margins_of(pipeline, values, len(rest)))
        else:
            sure = suggestion.certainty(pipeline.predict_proba(values))
        return rest[np.argsort(sure, kind="stable")[:count]]


def first_images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the place of one random image of each class."""
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in np.unique(labels)])


def curve(pool: Pool, by: str, seed: int, step: int, rounds: int) -> list[float]:
    """Return the accuracy after each round, from one image of each class on."""
    rng = np.random.default_rng(seed)
    known, accuracies = first_images(pool.train.labels, rng), []
    for _ in range(rounds):
        accuracies.append(pool.accuracy(known))
        known = np.concatenate([known, pool.choose(by, known, rng, step)])
    return [*accuracies, pool.accuracy(known)]


def main() -> None:
    """Print the mean curve of each way, and the labels needed for 95% of the accuracy of all, as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codes", type=Path, help="HDF5 file of codes")
    parser.add_argument("--step", type=int, default=4, help="images that are labelled in a round (default: 4)")
    parser.add_argument("--rounds", type=int, default=12, help="number of rounds (default: 12)")
    parser.add_argument("--draws", type=int, default=10, help="number of draws of the first images (default: 10)")
    options = parser.parse_args()
    pool = Pool(options.codes)
    everything, n_classes = pool.accuracy(np.arange(len(pool.train.labels))), len(np.unique(pool.train.labels))
    labels = [n_classes + options.step * number for number in range(options.rounds + 1)]
    for by in ("random", "margin", "entropy", "coverage"):
        curves = np.array([curve(pool, by, seed, options.step, options.rounds) for seed in range(options.draws)])
        mean, deviation = curves.mean(0), curves.std(0, ddof=1)
        enough = [number for number, value in zip(labels, mean, strict=True) if value >= 0.95 * everything]
        figures = {"by": by, "labels": labels, "accuracy": mean.round(4).tolist(), "sd": deviation.round(4).tolist()}
        print(json.dumps(figures | {"full": everything, "labels_for_95%": enough[0] if enough else None}), flush=True)


if __name__ == "__main__":
    main()
