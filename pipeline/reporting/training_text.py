"""What `classify` says of a search: what was chosen from what, and what to be careful about."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path

from pipeline import errors
from pipeline.analysis.gain import Gain, judge_source, judge_unlabelled
from pipeline.classifiers import cv_table, scoring
from pipeline.classifiers.persistence import ClassifierFacts, ShiftFacts
from pipeline.classifiers.search import SearchResult


def summary(path: Path, trained: SearchResult, facts: ClassifierFacts, width: int) -> str:
    """Return what was chosen from what, and what to be careful about; width: number of features of the codes."""
    chosen = trained.chosen
    setting = [
        chosen["normalisation"],
        *(f"{name}={reprlib.repr(value)}" for name, value in chosen["parameters"].items()),
    ]
    lines = [
        f"{path}: {', '.join(setting)}; cross-validated {facts['measure']} {chosen['accuracy']:.4f} "
        f"± {chosen['standard_deviation']:.4f} over {len(chosen['folds'])} folds, " + _images_of_search(facts)
    ]
    if nested := facts.get("nested"):
        lines.append(
            f"Nested, with the choice inside: {nested['accuracy']:.4f} (95% {nested['low']:.4f}–{nested['high']:.4f}), "
            + scoring.count_text(nested["n"], nested["images"])
        )
    if further := facts.get("unlabelled"):
        judgement = judge_unlabelled(Gain.of_dict(further["gain"]), further["method"], further["images"])
        lines.append(f"With {judgement}")
    if adapted := facts.get("adapted"):
        gain = Gain.of_dict(adapted["gain"])
        arguments = (adapted["method"], adapted["source"], adapted["images"], adapted["effective"])
        lines.append(f"With {judge_source(gain, *arguments)}")
    if constant := facts["constant_features"]:
        are = "is constant: it carries" if constant == 1 else "are constant: they carry"
        lines.append(f"{constant} of {errors.counted(width, 'feature')} of the codes {are} no information")
    return "\n".join([*lines, *_convergence_warnings(trained), *_edge_warnings(trained)])


def _images_of_search(facts: ClassifierFacts) -> str:
    """Return how many images the setting was chosen on, and how many were learned from, if these are more."""
    learned = scoring.images_text(facts["n_units"], facts["n_train"])
    if "n_searched" not in facts:
        return learned
    return f"n = {facts['n_searched']:,}, from which the setting was chosen; learned from {learned}"


def shift_summary(path: Path, facts: ShiftFacts, judge: Path) -> str:
    """Return the shares of classes for which a classifier was corrected; judge: the classifier before."""
    lines = [f"{'class':<30} {'share before':>12} {'share now':>12}"]
    lines += [f"{name[:30]:<30} {before:>12.4f} {now:>12.4f}" for name, (before, now) in facts["shares"].items()]
    images = errors.counted(facts["images"], "image")
    told = f"{judge} for the shares of classes among {images} of {facts['dataset']} ({facts['method']})"
    return "\n".join([*lines, f"{path}: {told}; labels were not looked at"])


def _convergence_warnings(trained: SearchResult) -> list[str]:
    """Return a line for each kind of fit that did not converge."""
    lines = []
    if not trained.converged:
        lines.append("The classifier stopped before it converged: take a smaller C, or another normalisation")
    fits = sum(len(row["folds"]) for row in trained.table)
    if unconverged := fits - sum(row["converged"] for row in trained.table):
        lines.append(f"{unconverged} of {fits} fits of the search stopped before they converged")
    return lines


def _edge_warnings(trained: SearchResult) -> list[str]:
    """Return lines that say where the best setting lay at an edge of the grid, and where it still does."""
    lines = []
    if trained.extended_grid:
        added = ", ".join(json.dumps(extension) for extension in trained.extended_grid)
        lines.append(f"The best setting lay at the edge of its grid, which was extended by {added}")
    edges = cv_table.at_edge(trained.table)
    return lines + [f"The best {name} lies at the edge of its grid: extend the grid" for name in edges]
