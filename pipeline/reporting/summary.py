"""Everything a report says of a project's experiments, as one dict: from their files to numbers and names."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import errors, files, params
from pipeline.analysis import predictions
from pipeline.data.manifest import SPLITS
from pipeline.paths import ADDRESS_WORDS, Experiment
from pipeline.reporting import charts, image_lists, thumbnails
from pipeline.reporting.experiments import ExperimentResult, load_experiment

PACKAGES = ("cnn-codes", "scikit-learn", "numpy", "scipy", "h5py", "pillow")
Row = dict[str, Any]


def summarise(folder: Path, rows: Sequence[Row], budget: int) -> dict[str, Any]:
    """Return all that the page shows, ready for JSON.

    folder: of the reports; rows: the experiments, as `studies.find` lists them; budget: bytes of thumbnails.
    """
    album, found, every = thumbnails.Album(), {}, []
    for dataset, group in groupby(rows, key=lambda row: row["dataset"]):
        some = list(group)
        found[dataset], experiments = _dataset(folder, some, album)
        every += experiments
    small = album.thumbnails(budget)
    return {
        "datasets": found,
        "experiments": every,
        "layers": layer_charts(rows),
        "shots": shot_charts(rows),
        "training": [chart for row in rows for chart in training_charts(folder, row)],
        "advice": read_advice(folder, rows),
        "images": _images(album, found),
        "thumbs": small,
        "thumbs_total": len(album.pictures),
        "budget": budget,
        "parameters": yaml.safe_dump(params.effective(), sort_keys=False, allow_unicode=True),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _dataset(folder: Path, rows: Sequence[Row], album: thumbnails.Album) -> tuple[Row, list[Row]]:
    """Summarise the experiments on one dataset; the images of the first with codes, the best, are studied in full."""
    whole: Row = {}
    experiments, right = [], []
    for row in rows:
        study = load_experiment(folder, row)
        if study.index is not None and not whole:
            whole = _study_images(image_lists.Gallery(study, study.index, album))
        experiments.append(_experiment(study, album, whole.get("map")))
        right.append((hash(study.outcomes.paths), study.outcomes.correct))
    for entry, test in zip(experiments, compare(right), strict=True):
        entry.update(test)
    found = study.outcomes
    bad = read_bad(study.address.data / "bad.csv") + whole.pop("bad", [])
    facts = {"classes": found.classes, "root": study.address.data, "folder": common_folder(found.paths)}
    return {**facts, "bad": list(dict.fromkeys(bad)), **whole}, experiments


def _images(album: thumbnails.Album, found: Mapping[str, Row]) -> list[tuple[str, int, str]]:
    """Return (path, class, split) of each image, its path without the folder that a dataset's images share."""
    folders = {dataset.pop("root"): dataset["folder"] for dataset in found.values()}
    return [(p.path.removeprefix(folders[p.root]), p.label, p.split) for p in album.pictures]


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder, with its slash, of images that lie outside the dataset's own; "" where they lie within."""
    if not paths or not all(path.startswith("/") for path in paths):
        return ""
    return os.path.commonpath(paths) + "/"


def _study_images(gallery: image_lists.Gallery) -> Row:
    return {
        "layer": f"{gallery.index.spec.backbone}, {gallery.index.spec.layer}",
        "leaks": image_lists.find_leaks_between_splits(gallery),
        "labels": image_lists.suspected_label_errors(gallery),
        "odd": image_lists.outliers(gallery),
        "map": image_lists.code_map(gallery),
        "bad": list(gallery.index.bad),
        "folder": common_folder(gallery.index.paths),
        "sizes": {split: len(gallery.rows(split)) for split in SPLITS},
    }


def _experiment(study: ExperimentResult, album: thumbnails.Album, flat: Row | None) -> Row:
    found = study.outcomes
    probable = study.measure == "probability"
    calibrated = predictions.calibration(study.sureness, found.correct) if probable else None
    return {
        **study.metrics,
        "name": study.name,
        "measure": study.measure,
        "note": study.note,
        "per_class": [tuple(round(value, 4) for value in row) for row in found.per_class],
        "cells": image_lists.confusion_cells(study, album),
        "wrong": image_lists.wrong_on_map(study, album, flat),
        "wrong_total": int((~found.correct).sum()),
        "calibration": calibrated,
        "reliability": reliability_chart(calibrated) if calibrated else None,
        "path": path_chart(study.facts.get("cv", []), study.facts.get("measure", "accuracy")),
        "facts": plain_facts(study.facts),
        **image_lists.prediction_lists(study, album),
    }


def compare(right: Sequence[tuple[int, np.ndarray]]) -> list[dict[str, Any]]:
    """Test every experiment against the first: {"p": McNemar's p or None, "differs": after Holm, or None}.

    right: for each a hash of its test images' paths, and (n,) bool, which are right.
    """
    pairs = [number for number in range(1, len(right)) if right[number][0] == right[0][0]]
    p_values = [predictions.mcnemar(right[0][1], right[number][1]) for number in pairs]
    found = {
        n: {"p": p, "differs": d} for n, p, d in zip(pairs, p_values, predictions.significant(p_values), strict=True)
    }
    return [{"best": number == 0, **found.get(number, {"p": None, "differs": None})} for number in range(len(right))]


def read_bad(path: Path) -> list[str]:
    """Return "path: reason" of the files that `prepare` set aside."""
    if not path.exists():
        return []
    with path.open(**files.UTF8) as file:
        return [f"{row['path']}: {row['reason']}" for row in csv.DictReader(file)]


def layer_charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a chart of accuracy against layer for each dataset and backbone with several layers."""
    result = []
    groups = {(row["dataset"], row["backbone"]): True for row in rows}
    for dataset, backbone in groups:
        some = [row for row in rows if (row["dataset"], row["backbone"]) == (dataset, backbone)]
        layers = order_layers(backbone, {row["layer"] for row in some})
        if len(layers) > 1:
            series = {model: _layer_points(some, model, layers) for model in sorted({row["model"] for row in some})}
            title = f"{dataset}, {backbone}"
            result.append(charts.chart(series, list(enumerate(layers)), (title, "layer", "top-1 accuracy")))
    return result


def training_charts(folder: Path, row: Row) -> list[dict[str, Any]]:
    """Return the charts of loss and accuracy against epochs of a fine-tuned network; of another experiment, none."""
    address = Experiment(*(row[word] for word in ADDRESS_WORDS))
    path = folder / address.report.relative_to("reports") / "epochs.csv"
    if not path.exists():
        return []
    epochs = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    ticks = [(float(number), str(number)) for number in range(0, len(epochs), max(1, len(epochs) // 6))]
    if len(epochs) < 2:
        return []
    ticks += [] if ticks[-1][0] == len(epochs) - 1 else [(float(len(epochs) - 1), str(len(epochs) - 1))]
    name = f"{address.name}/{address.backbone}/{address.layer}-{address.model}"
    return [
        charts.chart(
            {
                split: _epoch_points(epochs, f"{part}_{measure}")
                for split, part in (("training", "train"), ("validation", "val"))
            },
            ticks,
            (name, "epoch", measure),
        )
        for measure in ("loss", "accuracy")
    ]


def _epoch_points(epochs: Sequence[Mapping[str, str]], column: str) -> list[charts.Point]:
    values = [(int(row["epoch"]), float(row[column])) for row in epochs if row[column]]
    return [
        charts.Point(epoch, value, value, value, f"epoch {epoch}: {value:.4f}", radius=2) for epoch, value in values
    ]


def shot_charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a chart of accuracy against training images a class for each dataset and backbone where it was measured.

    It is what `classify --shots` wrote beside the classifiers.
    """
    lines: dict[str, dict[str, list[charts.Point]]] = {}
    for row in rows:
        address = Experiment(*(row[word] for word in ADDRESS_WORDS))
        path = address.classifier.with_name(f"{address.classifier.stem}-shots.csv")
        if path.exists():
            title = f"{address.dataset}, {address.backbone}"
            lines.setdefault(title, {})[f"{address.layer}, {address.model}"] = _shot_points(path)
    return [
        charts.chart(series, shot_ticks(series.values()), (title, "training images a class", "accuracy"))
        for title, series in lines.items()
    ]


def _shot_points(path: Path) -> list[charts.Point]:
    points = []
    with path.open(**files.UTF8) as file:
        for row in csv.DictReader(file):
            count, mean, spread = int(row["shots"]), float(row["accuracy"]), float(row["deviation"])
            title = f"{count} a class: {mean:.4f} ± {spread:.4f} over {row['draws']} draws, n = {row['n_scored']}"
            points.append(charts.Point(math.log2(count), mean, mean - spread, mean + spread, title))
    return points


def shot_ticks(series: Iterable[Sequence[charts.Point]]) -> list[tuple[float, str]]:
    """Return the places and names of the numbers of images that were measured."""
    places = sorted({point.x for points in series for point in points})
    return [(place, f"{2**place:.0f}") for place in places]


def _layer_points(rows: Sequence[Row], model: str, layers: Sequence[str]) -> list[charts.Point]:
    found = {row["layer"]: row for row in rows if row["model"] == model}
    return [
        charts.Point(number, row["top1"], row["top1_low"], row["top1_high"], f"{model}, {layer}: {row['top1']:.4f}")
        for number, layer in enumerate(layers)
        if (row := found.get(layer))
    ]


def read_advice(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """Return what `advise` said of each dataset and backbone, with charts of its measures and curves."""
    found = []
    for dataset, backbone in {(row["dataset"], row["backbone"]): True for row in rows}:
        path = folder / dataset / backbone / "advice" / "advice.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            name = f"{dataset}, {backbone}"
            said = {"name": name, "sentences": content["advice"]["sentences"]}
            found.append(said | {"charts": [measures_chart(content["layers"]), *curve_charts(content["curve"])]})
    return found


def measures_chart(layers: Sequence[Row]) -> dict[str, Any]:
    """Return the chart of cross-validated accuracy against layer, the other measures in its points' titles."""
    points = [
        charts.Point(number, row["accuracy"], row["low"], row["high"], _measures(row))
        for number, row in enumerate(layers)
    ]
    ticks = [(number, row["layer"]) for number, row in enumerate(layers)]
    return charts.chart({"all training images": points}, ticks, ("all images", "layer", "cross-validated accuracy"))


def _measures(row: Row) -> str:
    return f"{row['layer']}: {row['accuracy']:.4f}, LogME {row['log_me']:.4f}, H-score {row['h_score']:.4f}"


def curve_charts(points: Sequence[Row]) -> list[dict[str, Any]]:
    """Return charts of accuracy against layer, a line for each number of training images, after and before the ReLU."""
    found = []
    for relu in dict.fromkeys(point["relu"] for point in points):
        some = [point for point in points if point["relu"] == relu]
        layers = list(dict.fromkeys(point["layer"] for point in some))
        series: dict[str, list[charts.Point]] = {}
        for point in some:
            title = f"{point['layer']}, {point['images']} a class: {point['accuracy']:.4f}"
            place = charts.Point(layers.index(point["layer"]), point["accuracy"], point["low"], point["high"], title)
            series.setdefault(f"{point['images']} images a class", []).append(place)
        where = "after" if relu == "post" else "before"
        titles = (f"few images, {where} the ReLU", "layer", "accuracy")
        found.append(charts.chart(series, list(enumerate(layers)), titles))
    return found


def order_layers(backbone: str, layers: set[str]) -> list[str]:
    """Return layers from a network's input to its output; by name, where the network is not known here."""
    if len(layers) < 2:
        return list(layers)
    from pipeline.networks import backbones

    try:
        return backbones.sort_layers(backbones.get(backbone), layers)
    except (errors.PipelineError, KeyError):
        return sorted(layers)


def path_chart(table: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """Return the chart of a cross-validated measure against C; None where C was not searched over.

    table: the rows of `classifiers.cv_table`.
    """
    rows = [row for row in table if isinstance(row["parameters"].get("C"), (int, float)) and row["parameters"]["C"] > 0]
    values = sorted({row["parameters"]["C"] for row in rows})
    if len(values) < 2:
        return None
    series: dict[str, list[charts.Point]] = {}
    for row in sorted(rows, key=lambda row: float(row["parameters"]["C"])):
        others = [f"{name}={value}" for name, value in row["parameters"].items() if name != "C"]
        mean, spread, C = row["accuracy"], row["deviation"], row["parameters"]["C"]
        title = f"C={C:g}: {mean:.4f} ± {spread:.4f}"
        point = charts.Point(math.log10(C), mean, mean - spread, mean + spread, title)
        series.setdefault(", ".join([row["normalise"], *others]), []).append(point)
    first, last = math.floor(math.log10(values[0])), math.ceil(math.log10(values[-1]))
    ticks = [(float(power), f"1e{power}") for power in range(first, last + 1)]
    return charts.chart(series, ticks, ("", "C", f"cross-validated {measure}"))


def reliability_chart(calibrated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart of accuracy against probability, bin by bin."""
    most = max(bin["n"] for bin in calibrated["bins"])
    points = [
        charts.Point(
            bin["confidence"],
            bin["accuracy"],
            bin["low"],
            bin["high"],
            f"{bin['n']} images: probability {bin['confidence']:.3f}, accuracy {bin['accuracy']:.3f}",
            radius=2 + 6 * math.sqrt(bin["n"] / most),
        )
        for bin in calibrated["bins"]
    ]
    ticks = [(share / 4, f"{share / 4:g}") for share in range(5)]
    titles = ("", "mean probability", "accuracy")
    return charts.chart({"test images": points}, ticks, titles, y_range=(0, 1), diagonal=True)


def plain_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a description's values as names and text, nested names joined by a dot, without the CV table."""
    result = []
    for name, value in facts.items():
        if name == "spec":
            value = value.to_dict()
        if isinstance(value, Mapping):
            result += [(f"{name}.{inner}", text) for inner, text in plain_facts(value)]
        elif name not in ("cv", "classes", "folds") or isinstance(value, int):
            result.append((name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)))
    return result
