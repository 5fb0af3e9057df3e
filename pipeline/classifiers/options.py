"""Which options of `classify` go together, and with which codes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline import errors
from pipeline.classifiers import catalogue, search
from pipeline.classifiers.search import SearchPlan
from pipeline.codes import reader
from pipeline.paths import LOGITS

MIN_MEMORY = 100_000_000
"""Smallest size in bytes that --memory accepts."""


def parse_bytes(text: str) -> int:
    """Return the number of bytes of a size like 2GB."""
    size = re.fullmatch(r"(\d{1,15}(?:\.\d*)?|\.\d+) *([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if size is None:
        raise errors.PipelineError(f"--memory {text!r} is no size. Write it like 2GB or 500MB.")
    count = int(float(size[1]) * 1000 ** " KMGT".index(size[2].upper() or " "))
    if count < MIN_MEMORY:
        raise errors.PipelineError(f"--memory {text} is too little to work in. Allow {MIN_MEMORY // 10**6}MB or more.")
    return count


def in_blocks(codes: reader.Codes[Any]) -> bool:
    """Whether the codes stay on disk and are read in blocks."""
    return isinstance(codes.values, reader.StoredRows)


def validate_combination(
    plan: SearchPlan, codes: reader.Codes[Any], *, calibrate: bool, nested: bool, shots: Sequence[int] | None
) -> None:
    """Refuse options that do not go together, or not with these codes."""
    multi_label = codes.labels.ndim == 2
    if plan.model == catalogue.SOURCE_MAP and codes.spec.layer != LOGITS:
        raise errors.PipelineError(
            f"{plan.model} reads the scores of the network's own classes, the layer {LOGITS}, not {codes.spec.layer}. "
            f"Extract them, and name --layer {LOGITS}.",
            fix=[errors.Fix("extract", {"layer": LOGITS})],
        )
    if plan.images and (calibrate or nested or shots):
        raise errors.PipelineError("--search-images takes no --calibrate, no --nested and no --shots. Leave one out.")
    if 0 < plan.images < 10 * plan.folds:
        raise errors.PipelineError(
            f"--search-images {plan.images} leaves too few images to choose by. Take {10 * plan.folds} or more.",
            "search_images",
        )
    along_path = all(search.uses_path_solver(plan.model, values) for values in plan.grid.values())
    if plan.model != "svm" and (multi_label or calibrate):
        why = "These images have several labels each" if multi_label else "--calibrate is for margins"
        raise errors.PipelineError(f"{why}: that takes --model svm, not {plan.model}.")
    if multi_label and (calibrate or nested or shots):
        raise errors.PipelineError("--calibrate, --nested and --shots are for one label per image. Leave them out.")
    if (multi_label or calibrate) and not along_path:
        raise errors.PipelineError("The grid must be of C alone for that. Take its other parameters out.")
    if in_blocks(codes) and (not along_path or nested or shots or codes.spec.n_views > 1):
        raise errors.PipelineError(
            "The codes do not fit into --memory. Only an svm or softmax over values of C, without --nested or --shots, "
            "of one view per image, learns from disk: allow more memory, or leave those out."
        )


def validate_weights(model: str, *, asked: bool) -> None:
    """Refuse weights of images for a model that knows none; asked: whether there are any."""
    if asked and not catalogue.takes_weights(model):
        raise errors.PipelineError(
            f"--weight-by is for a model that knows weights, and {model} does not. Take another --model, like svm."
        )


def validate_adaptation(source: str, method: str | None, codes: reader.Codes[Any], *, others: bool) -> None:
    """Refuse one of --source and --adapt without the other, and options or codes that do not go with them."""
    if bool(source) != bool(method):
        raise errors.PipelineError("--source names the dataset that --adapt learns from: give both, or neither.")
    if source and (others or in_blocks(codes)):
        raise errors.PipelineError(
            "--adapt takes no --shots, no --unlabelled, no --search-images, and no codes beyond --memory."
        )


def validate_unlabelled(model: str, codes: reader.Codes[Any], *, others: bool) -> None:
    """Refuse to learn from images without a label with other options, or with codes, that do not go with it."""
    if others or in_blocks(codes):
        raise errors.PipelineError(
            "--unlabelled takes no --calibrate, no --nested, no --search-images, and no codes beyond --memory."
        )
    if codes.labels.ndim == 2:
        raise errors.PipelineError("--unlabelled is for one label per image, and these have several. Leave it out.")
    if not catalogue.takes_weights(model):
        raise errors.PipelineError(
            f"Guessed labels weigh less than given ones, and {model} knows no weights. Take another --model, like svm."
        )
