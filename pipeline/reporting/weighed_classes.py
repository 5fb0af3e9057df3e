"""What `weigh` wrote about datasets and backbones: the source classes that weigh most and least, and the figure."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline import errors, files
from pipeline.analysis.source_weights import extremes
from pipeline.data.manifest import MANIFEST, Manifest, read_manifest
from pipeline.images.decoding import BadImage
from pipeline.paths import Experiment
from pipeline.reporting.page_data import WeighedClass, WeighedSource
from pipeline.reporting.thumbnails import make_thumbnail

SHOWN = 10
"""How many of the heaviest and of the lightest classes the page shows."""

EXAMPLES = 4
"""How many images of a class the page shows, beside its budget of thumbnails: a few kilobytes for each class."""

TRIED = 4
"""How many images are tried for each one that is shown, where some cannot be read."""

LARGEST_FIGURE = 1 << 20
"""Bytes of a figure up to which it stands on the page."""


def read_weighed(folder: Path, datasets: Collection[str], budget: int) -> list[WeighedSource]:
    """Return the weights of source classes for these datasets, from a folder of reports.

    budget: of the page's thumbnails, in bytes; without one, there are no example images.
    """
    found = sorted(folder.rglob("source_weights/weights.json"))
    addresses = [path.relative_to(folder).parts[:-2] for path in found]
    return [
        _summarise(dataset, "/".join(backbone), path, EXAMPLES if budget else 0)
        for (dataset, *backbone), path in zip(addresses, found, strict=True)
        if dataset in datasets and backbone
    ]


def _summarise(dataset: str, backbone: str, path: Path, per_class: int) -> WeighedSource:
    figure = path.with_suffix(".png")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rows = files.read_csv(path.with_suffix(".csv"))
        source = _open_source(str(facts["source"])) if per_class else None
        classes = [_class_of(row, source, per_class) for row in extremes(rows, SHOWN)]
        shown = figure.is_file() and figure.stat().st_size <= LARGEST_FIGURE
        return {
            "dataset": dataset,
            "backbone": backbone,
            "judge": str(facts["judge"]),
            "n_images": int(facts["n_images"]),
            "effective": float(facts["effective_classes"]),
            "n_classes": len(rows),
            "heaviest": classes[:SHOWN],
            "lightest": classes[SHOWN:][-SHOWN:],
            "figure": base64.b64encode(figure.read_bytes()).decode() if shown else "",
        }
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise errors.PipelineError(
            f"{path} or the files beside it are damaged or of an earlier release ({error!r}). Write them again: "
            f"python -m pipeline.weigh --dataset {dataset} --backbone {backbone}."
        ) from error


def _class_of(row: dict[str, str], source: Manifest | None, per_class: int) -> WeighedClass:
    p_source, p_target, weight = (float(row[name]) for name in ("p_source", "p_target", "weight"))
    examples = _examples(source, row["class"], per_class) if source else []
    return {"name": row["class"], "p_source": p_source, "p_target": p_target, "weight": weight, "examples": examples}


def _open_source(name: str) -> Manifest | None:
    """Return the dataset that was weighed, if one was and it is still there; its images have one label each."""
    folder = Experiment(name, "").data
    if not name or not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    return manifest if manifest.labels.ndim == 1 else None


def _examples(source: Manifest, label: str, count: int) -> list[str]:
    """Return the first training images of a class as JPEG files in base64; those that cannot be read are left out."""
    if label not in source.classes:
        return []
    of_class = (source.labels == source.classes.index(label)) & source.splits.isin(["train"])
    files_of_class = [source.file(row) for row in np.flatnonzero(of_class)[: TRIED * count]]
    return list(islice(_thumbnails(files_of_class, source.max_value), count))


def _thumbnails(paths: Sequence[Path], max_value: float) -> Iterator[str]:
    for path in paths:
        with suppress(BadImage):
            yield make_thumbnail(path, max_value)
