"""Find the images of a dataset that are most similar to given images, by the distance between their CNN codes.

Example: python -m pipeline.similar photo.jpg --dataset flowers --backbone efficientnet_lite0 --layer avgpool
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("similar")

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from pipeline import errors
from pipeline.analysis import neighbors
from pipeline.codes import reader
from pipeline.codes.belonging import validate_dataset
from pipeline.config import Similar
from pipeline.data.local import NewImage, open_images
from pipeline.data.manifest import names_of_label, read_depths, read_max_value
from pipeline.extraction import memory
from pipeline.extraction.engine import Engine
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, parallel
from pipeline.networks.frozen import choose_device, rebuild_network
from pipeline.paths import Experiment, require_one_layer
from pipeline.reporting.contact_sheet import MOST_ROWS, SheetImage, draw_sheet


@dataclass(frozen=True)
class SimilarImage:
    """An image of a dataset and its distance, 1 - cosine in [0, 2]; label: "" for an image without one."""

    path: str
    label: str
    split: str
    distance: float


def find_similar(
    engine: Engine, index: reader.CodesIndex, images: Sequence[NewImage], count: int, threads: int
) -> Iterator[tuple[NewImage, list[SimilarImage] | str]]:
    """Yield each image with the most similar ones of a dataset, the nearest first, or with why it cannot be read.

    The order is that of `images`, but for images that cannot be read, which come ahead of their batch.
    """
    rows = np.arange(len(index.paths))
    for result in compute_codes(engine, ((image, image.file) for image in images), threads):
        if not isinstance(result, CodesBatch):
            yield result[0], str(result[1])
            continue
        codes = neighbors.to_unit(result.codes[index.spec.layer].astype(np.float32, copy=False))
        distances, nearest = neighbors.nearest_to(codes, index.path, rows, count)
        for image, line, numbers in zip(result.keys, distances.tolist(), nearest.tolist(), strict=True):
            yield image, [similar_image(index, row, distance) for row, distance in zip(numbers, line, strict=True)]


def similar_image(index: reader.CodesIndex, row: int, distance: float) -> SimilarImage:
    """Return what is known of an image of the dataset."""
    label = ";".join(names_of_label(index.classes, index.labels[row]))
    return SimilarImage(index.paths[row], label, index.splits[row], distance)


def write_csv(file: TextIO, found: Sequence[tuple[NewImage, list[SimilarImage]]]) -> None:
    """Write a line for each similar image: image,rank,path,label,split,distance."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("image", "rank", "path", "label", "split", "distance"))
    for image, similar in found:
        for rank, one in enumerate(similar, start=1):
            writer.writerow((image.name, rank, one.path, one.label, one.split, round(one.distance, 6)))


def sheet_rows(
    found: Sequence[tuple[NewImage, list[SimilarImage]]], data: Path, white_of_new: float | None
) -> list[list[SheetImage]]:
    """Return the rows of a contact sheet: each image, then those similar to it.

    data: the dataset's folder; white_of_new: the value that is white in the images, None for that of the dataset's.
    """
    white = read_max_value(data)
    return [
        [
            SheetImage(image.path, image.path.name, max_value=white_of_new or white),
            *(
                SheetImage(data / one.path, one.label or Path(one.path).name, f"{one.distance:.3f}", white)
                for one in similar
            ),
        ]
        for image, similar in found
    ]


def run(settings: Similar) -> None:
    """Find the images similar to those that the settings name."""
    memory.keep_freed()
    require_one_layer(settings.layer)
    address = Experiment(settings.dataset, settings.backbone, settings.layer)
    file = settings.codes or address.codes
    index = reader.read_index(file, {} if settings.codes else {"backbone": settings.backbone, "layer": settings.layer})
    validate_dataset(file, address.data, index)
    spec = index.spec.with_white(settings.range)
    network = rebuild_network(spec, settings.weights).to(choose_device(settings.device))
    known = read_depths(address.data) if settings.range is None else None
    validate = decoding.depth_validator(known, spec.transform.max_value)
    engine, threads = Engine(network, validate=validate), settings.threads or parallel.default_threads()
    with open_images(settings.images, command_line.stdin_lines()) as opened:
        images = list(opened)
        found = readable(find_similar(engine, index, images, settings.count, threads))
        if not found:
            raise errors.PipelineError(
                f"None of {errors.counted(len(images), 'image')} can be read." if images else "No images found."
            )
        command_line.pass_any_text(sys.stdout)
        write_csv(sys.stdout, found)
        out = settings.out or address.reports / f"{settings.layer}-similar.png"
        draw_sheet(out, sheet_rows(found, address.data, settings.range))
    left_out = f" (the first {MOST_ROWS} of {len(found)} images)" if len(found) > MOST_ROWS else ""
    print(f"The contact sheet: {out}{left_out}", file=sys.stderr)


def readable(
    results: Iterable[tuple[NewImage, list[SimilarImage] | str]],
) -> list[tuple[NewImage, list[SimilarImage]]]:
    """Return what was found for the images that can be read, and name the others on stderr."""
    found = []
    for image, result in results:
        if isinstance(result, str):
            print(f"Skipped {image.name!r}: {result}", file=sys.stderr)
        else:
            found.append((image, result))
    return found
