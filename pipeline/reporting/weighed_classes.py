"""What `weigh` wrote about datasets and backbones: the source classes that weigh most and least, and the figure."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from pathlib import Path

from pipeline import errors, files
from pipeline.reporting.page_data import WeighedClass, WeighedSource

SHOWN = 10
"""How many of the heaviest and of the lightest classes the page shows."""

LARGEST_FIGURE = 1 << 20
"""Bytes of a figure up to which it stands on the page."""


def read_weighed(folder: Path, datasets: Collection[str]) -> list[WeighedSource]:
    """Return the weights of source classes for these datasets, from a folder of reports."""
    found = sorted(folder.rglob("source_weights/weights.json"))
    addresses = [path.relative_to(folder).parts[:-2] for path in found]
    return [
        _summarise(dataset, "/".join(backbone), path)
        for (dataset, *backbone), path in zip(addresses, found, strict=True)
        if dataset in datasets and backbone
    ]


def _summarise(dataset: str, backbone: str, path: Path) -> WeighedSource:
    figure = path.with_suffix(".png")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        classes = [_class_of(row) for row in files.read_csv(path.with_suffix(".csv"))]
        shown = figure.is_file() and figure.stat().st_size <= LARGEST_FIGURE
        return {
            "dataset": dataset,
            "backbone": backbone,
            "judge": str(facts["judge"]),
            "n_images": int(facts["n_images"]),
            "effective": float(facts["effective_classes"]),
            "n_classes": len(classes),
            "heaviest": classes[:SHOWN],
            "lightest": classes[SHOWN:][-SHOWN:],
            "figure": base64.b64encode(figure.read_bytes()).decode() if shown else "",
        }
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise errors.PipelineError(
            f"{path} or the files beside it are damaged or of an earlier release ({error!r}). Write them again: "
            f"python -m pipeline.weigh --dataset {dataset} --backbone {backbone}."
        ) from error


def _class_of(row: dict[str, str]) -> WeighedClass:
    p_source, p_target, weight = (float(row[name]) for name in ("p_source", "p_target", "weight"))
    return {"name": row["class"], "p_source": p_source, "p_target": p_target, "weight": weight}
