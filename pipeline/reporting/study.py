"""What the codes of one layer tell of a dataset's images: a map, and lists of images that are worth a look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline import files
from pipeline.codes.reader import CodesIndex
from pipeline.data.manifest import PARTS, SPLITS, UNLABELLED
from pipeline.reporting import image_lists, unlabelled_lists
from pipeline.reporting.image_lists import Gallery
from pipeline.reporting.page_data import DatasetSummary, ImageList, ImageStudy
from pipeline.reporting.thumbnails import Album

OF_ALL: dict[str, Callable[[Gallery], ImageList]] = {
    "rare_types": image_lists.files_of_rare_types,
    "outliers": image_lists.outliers,
}
OF_LABELS: dict[str, Callable[[Gallery], ImageList]] = {
    "copies": image_lists.copies_across_splits,
    "near_duplicates": image_lists.near_duplicates_across_splits,
    "conflicting_duplicates": image_lists.conflicting_duplicates,
}
OF_UNLABELLED = {
    "clusters": unlabelled_lists.list_clusters,
    "neighbours": unlabelled_lists.list_neighbours,
    "unlabelled_copies": unlabelled_lists.list_copies,
    "unlabelled_near_duplicates": unlabelled_lists.list_near_duplicates,
}
"""The lists of a dataset by name, and what makes them: of all images, of those with labels, of those without."""


def study_dataset(data: Path, index: CodesIndex, album: Album) -> DatasetSummary:
    """Return what a file of codes tells of a prepared dataset in a folder; its images go into the album."""
    gallery = Gallery(data, index, album)
    study: ImageStudy = {
        "layer": f"{index.spec.backbone}, {index.spec.layer}",
        "split_sizes": {part: len(gallery.rows(part)) for part in PARTS},
        "code_map": image_lists.code_map(gallery),
    }
    return {
        "classes": index.classes,
        "folder": image_lists.common_folder(index.paths),
        "bad_files": list(dict.fromkeys([*read_bad_files(data / "bad.csv"), *index.bad])),
        "study": study,
        "lists": list_images(gallery),
    }


def describe_dataset(data: Path) -> DatasetSummary:
    """Return what is known of a prepared dataset without codes."""
    return {"classes": (), "folder": "", "bad_files": read_bad_files(data / "bad.csv"), "study": None, "lists": {}}


def list_images(gallery: Gallery) -> dict[str, ImageList]:
    """Return {name: images worth a look}, of the lists that the dataset can have."""
    lists = {name: make(gallery) for name, make in OF_ALL.items()}
    if len(gallery.rows(*SPLITS)):
        lists |= {name: make(gallery) for name, make in OF_LABELS.items()}
    if len(gallery.rows("train")):
        lists["suspected_label_errors"] = image_lists.suspected_label_errors(gallery)
    if len(unlabelled := gallery.rows(UNLABELLED)):
        lists |= {name: make_list(gallery, unlabelled) for name, make_list in OF_UNLABELLED.items()}
    return lists


def read_bad_files(path: Path) -> list[str]:
    """Return "path: reason" of each file that `prepare` skipped, as it is listed in bad.csv."""
    return [f"{row['path']}: {row['reason']}" for row in files.read_csv(path)] if path.exists() else []
