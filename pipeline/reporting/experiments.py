"""One experiment with all that its files know: scores, predictions, classifier, codes; and how sure it was of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import errors
from pipeline.analysis import predictions
from pipeline.classifiers import persistence
from pipeline.codes import reader
from pipeline.paths import ADDRESS_WORDS, Experiment


@dataclass(frozen=True)
class ExperimentResult:
    """An experiment.

    facts: the description beside the classifier, {} without one; index: what stands beside its codes; tests: (n,) the
    codes' rows of the test images; sureness: (n,) float of each prediction, and what it is: "probability" of the
    predicted class, "lead" of its margin over the runner-up's, or the "margin" alone; note: what is missing, and why.
    """

    address: Experiment
    metrics: Mapping[str, Any]
    outcomes: predictions.Predictions
    facts: Mapping[str, Any]
    index: reader.CodesIndex | None
    tests: np.ndarray
    sureness: np.ndarray
    measure: str
    note: str

    @property
    def name(self) -> str:
        """The four words in one."""
        return f"{self.address.dataset}/{self.address.backbone}/{self.address.layer}-{self.address.model}"


def find_experiments(folder: Path, dataset: str | None = None, backbone: str | None = None) -> list[dict[str, Any]]:
    """Return the address and metrics of every experiment under a folder of reports, the best first in each dataset.

    Those on images of several labels each have no accuracy, and are left out: see `left_out`.
    """
    rows = _read_metrics(folder, dataset, backbone)
    if not rows:
        raise errors.PipelineError(
            f"There are no scores under {folder}. Make them: dvc repro, or python -m pipeline.evaluate."
        )
    return sorted((row for row in rows if "top1" in row), key=lambda row: (row["dataset"], -row["top1"]))


def find_multi_label(folder: Path, dataset: str | None = None, backbone: str | None = None) -> list[str]:
    """Return the names of the experiments that `find` leaves out."""
    return [
        "/".join(row[w] for w in ADDRESS_WORDS) for row in _read_metrics(folder, dataset, backbone) if "top1" not in row
    ]


def _read_metrics(folder: Path, dataset: str | None, backbone: str | None) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob(f"{dataset or '*'}/{backbone or '*'}/*/metrics.json")):
        layer, model = path.parent.name.rsplit("-", 1)
        address = {"dataset": path.parts[-4], "backbone": path.parts[-3], "layer": layer, "model": model}
        rows.append(address | json.loads(path.read_text(encoding="utf-8")))
    return rows


def load_experiment(folder: Path, row: Mapping[str, Any]) -> ExperimentResult:
    """Read an experiment's files; without its classifier and codes, or with others, it goes on with less."""
    address = Experiment(*(row[word] for word in ADDRESS_WORDS))
    found = predictions.read_predictions(folder / address.report.relative_to("reports"))
    facts: dict[str, Any] = {}
    try:
        facts = persistence.read_metadata(address.classifier)
        index = reader.read_index(address.codes, facts["spec"].to_dict())
        tests = np.flatnonzero(np.array(index.splits) == "test")
        measure, sureness = _confidence(persistence.load(address.classifier), index, tests, found)
    except errors.PipelineError as error:
        nothing = np.empty(0, np.int64)
        return ExperimentResult(address, row, found, facts, None, nothing, found.margins, "margin", str(error))
    return ExperimentResult(address, row, found, facts, index, tests, sureness, measure, "")


def _confidence(
    classifier: persistence.SavedClassifier, index: reader.CodesIndex, tests: np.ndarray, found: predictions.Predictions
) -> tuple[str, np.ndarray]:
    """Return how sure the classifier is of each prediction, which must be the one that was written."""
    best, leads, chances = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    for _, values in reader.blocks(index.path, tests):
        top = np.partition(persistence.margins(classifier, values), -2, axis=1)[:, -2:]
        best.append(top[:, 1].copy())  # a view would keep the whole block
        leads.append(top[:, 1] - top[:, 0])
        probabilities = persistence.probabilities(classifier, values)
        if probabilities is not None:
            chances.append(probabilities.max(1))
    same = tuple(index.paths[row] for row in tests) == found.paths and index.classes == found.classes
    if not same or not np.allclose(np.concatenate(best), found.margins, rtol=1e-3, atol=1e-4):
        raise errors.PipelineError(
            "These scores are not those of the classifier and codes that lie here now. Run pipeline.evaluate again."
        )
    return ("probability", np.concatenate(chances)) if len(chances) > 1 else ("lead", np.concatenate(leads))
