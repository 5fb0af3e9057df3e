"""What images without a label brought to classifiers: in cross-validation, and from a few labels per class on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import files
from pipeline.analysis.gain import Gain
from pipeline.classifiers.persistence import ClassifierFacts
from pipeline.paths import Experiment
from pipeline.reporting.curves import few_shot_path
from pipeline.reporting.page_data import MeasuredGain, UnlabelledGain


def gains_of(address: Experiment, facts: ClassifierFacts) -> list[UnlabelledGain]:
    """Return what `classify --unlabelled` measured of an experiment, if it did; facts: of its classifier."""
    return [*_cross_validated(facts), *_few_shot(few_shot_path(address.classifier))]


def _cross_validated(facts: ClassifierFacts) -> list[UnlabelledGain]:
    if "unlabelled" not in facts:
        return []
    gain = Gain.of_dict(facts["unlabelled"]["gain"])
    labels = f"all {gain.n_images:,}, cross-validated"
    return [{"method": facts["unlabelled"]["method"], "labels": labels, **measured(gain)}]


def measured(gain: Gain) -> MeasuredGain:
    """Return the figures of a gain over the labelled images alone."""
    return {
        "together": gain.after,
        "alone": gain.before,
        "difference": gain.difference,
        "low": gain.low,
        "high": gain.high,
    }


def _few_shot(path: Path) -> list[UnlabelledGain]:
    rows = files.read_csv(path) if path.exists() else []
    return [_few_shot_gain(row) for row in rows if row.get("gain")]


def _few_shot_gain(row: Mapping[str, str]) -> UnlabelledGain:
    accuracy, difference = float(row["accuracy"]), float(row["gain"])
    return {
        "method": row["unlabelled"],
        "labels": f"{row['shots']} per class, {row['draws']} draws",
        "together": accuracy,
        "alone": accuracy - difference,
        "difference": difference,
        "low": float(row["gain_low"]),
        "high": float(row["gain_high"]),
    }
