"""Select the best classifier of a backbone by cross-validation, and write its scores as one line of DVC's tables.

Example: python -m pipeline.select --dataset photos --backbone efficientnet_lite0 --layer stage6 avgpool
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("select")

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline import errors, files
from pipeline.classifiers import scoring
from pipeline.config import Select
from pipeline.paths import Experiment
from pipeline.reporting.experiments import find_experiments, find_multi_label, rank
from pipeline.reporting.page_data import Scores

REPORTS = Path("reports")
BEST = "best_in_cv"
"""What all keys begin with: the test images had no say in the choice."""

logger = logging.getLogger(__name__)


def find_candidates(address: Experiment, layers: Sequence[str], models: Sequence[str]) -> list[Scores]:
    """Return the scores of a backbone's classifiers of these layers and models, the best in cross-validation first.

    Those that are not evaluated are named in the log; PipelineError is raised if none is.
    """
    of_backbone = [find(REPORTS, address.name, address.backbone) for find in (find_experiments, find_multi_label)]
    there = {(scores["layer"], scores["model"]): scores for found in of_backbone for scores in found}
    wanted = [(layer, model) for layer in layers for model in models]
    missing = ["-".join(words) for words in wanted if words not in there]
    if len(missing) == len(wanted):
        (layer, model), *_ = wanted
        fix = [errors.Fix("evaluate", {"layer": layer, "model": model})]
        raise errors.PipelineError(f"None of {', '.join(missing)} is evaluated.", fix=fix)
    if missing:
        logger.warning("Not among those to select from, since they are not evaluated: %s.", ", ".join(missing))
    return rank(there[words] for words in wanted if words in there)


def summarise(best: Scores) -> dict[str, str | float]:
    """Return what stands in the tables: the same names for every backbone."""
    measure, of = ("top1", "accuracy") if "top1" in best else ("map", "map")
    validation = best["validation"]
    figures: dict[str, float] = {f"cv_{of}": validation["accuracy"]} if validation else {}
    for name in (measure, f"{measure}_low", f"{measure}_high"):
        figures[f"test_{name}"] = best[name]  # type: ignore[literal-required]
    words = {"dataset": best["dataset"], "backbone": best["backbone"], "layer": best["layer"], "model": best["model"]}
    return {**words, **{name: round(value, 4) for name, value in figures.items()}, "test_n": best["n"]}


def run(settings: Select) -> None:
    """Select among what the settings name."""
    address = Experiment(settings.dataset, settings.backbone)
    ranked = find_candidates(address, settings.layer, settings.model)
    best = summarise(ranked[0])
    files.write_json(settings.out, {BEST: best})
    held_out = f", {ranked[0]['validation']['accuracy']:.4f}" if ranked[0]["validation"] else ""
    print(
        f"{best['dataset']}, {best['backbone']}: {best['layer']} with {best['model']} is the best of "
        f"{errors.counted(len(ranked), 'classifier')} on held-out training images{held_out}; on the test images it has "
        f"{scoring.sentence(ranked[0])}\n{settings.out}"
    )
