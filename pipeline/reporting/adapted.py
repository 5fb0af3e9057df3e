"""What another dataset brought to a classifier (`classify --adapt`): its images, or other shares of its classes."""

from __future__ import annotations

from pipeline.analysis.gain import Gain
from pipeline.classifiers.persistence import AdaptationFacts, ClassifierFacts, ShiftFacts
from pipeline.reporting.page_data import AdaptedClassifier, ClassShare
from pipeline.reporting.unlabelled_gains import measured


def adaptation_of(facts: ClassifierFacts) -> AdaptedClassifier | None:
    """Return how another dataset was used for a classifier, None where none was; facts: of the classifier."""
    if "adapted" in facts:
        return _learned_from(facts["adapted"])
    return _corrected(facts["label_shift"], facts["dataset"]) if "label_shift" in facts else None


def _learned_from(adapted: AdaptationFacts) -> AdaptedClassifier:
    return {
        "source": adapted["source"],
        "method": adapted["method"],
        "images": adapted["images"],
        "effective": adapted["effective"],
        "gain": measured(Gain.of_dict(adapted["gain"])),
        "shares": [],
    }


def _corrected(shift: ShiftFacts, source: str) -> AdaptedClassifier:
    shares: list[ClassShare] = [
        {"name": name, "before": before, "now": now} for name, (before, now) in shift["shares"].items()
    ]
    return {
        "source": source,
        "method": shift["method"],
        "images": shift["images"],
        "effective": None,
        "gain": None,
        "shares": shares,
    }
