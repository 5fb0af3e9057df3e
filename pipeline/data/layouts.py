"""How images lie in a folder: which layout the names of its folders tell, and which can be read in two ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.data.listing import Skipped, clean_name, split_of, split_within
from pipeline.data.manifest import SPLITS
from pipeline.data.tree import FolderContent, read_folder
from pipeline.errors import PipelineError

LAYOUTS = {
    "auto": "as the names of the folders suggest; where they can be read in two ways, you are asked",
    "classes": "<class>/<image>",
    "splits": "<split>/<class>/<image>",
    "class-splits": "<class>/<split>/<image>",
}
"""How images may lie in a folder, by the values of --layout."""

LOOSE_BELOW = {
    "splits": "lies in no class folder, so its class is unknown",
    "class-splits": "lies in no split folder, so its split is unknown",
}

SHOWN = 3
"""How many names a sentence shows."""


def class_folders(folders: Sequence[Path], layout: str) -> Iterator[tuple[Path, Path, str | None]]:
    """Yield each folder whose files have one class and split, the folder that names the class, and the split."""
    for folder in folders:
        if layout == "classes":
            yield folder, folder, None
        elif layout == "splits":
            split = _require_split(folder)
            yield from ((inner, inner, split) for inner in read_folder(folder).folders)
        else:
            yield from ((inner, folder, _require_split(inner)) for inner in read_folder(folder).folders)


def _require_split(folder: Path) -> str:
    if (split := split_within(folder.name)) is None:
        raise PipelineError(
            f"{folder} stands beside the splits but is no split. Name it one of {', '.join(SPLITS)}, move it away, or "
            "take --layout classes if all folders are classes."
        )
    return split


def loose_below(folders: Sequence[Path], layout: str) -> list[Skipped]:
    """Return what is skipped in the outer folders themselves, where images lie two folders down."""
    if layout == "classes":
        return []
    contents, reason = [read_folder(folder) for folder in folders], LOOSE_BELOW[layout]
    loose = [Skipped(str(file), reason) for content in contents for file in content.files]
    return [*(skipped for content in contents for skipped in content.skipped), *loose]


def joined_notes(root: Path, folders: Sequence[Path], layout: str) -> list[str]:
    """Say which folders are read as the same split or class though their names differ."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        key = split_within(folder.name) if layout == "splits" else clean_name(folder.name)
        groups.setdefault(str(key), []).append(folder)
    return [
        f"The folders {' and '.join(repr(folder.name) for folder in same)} of {root} are both read as {key!r}."
        for key, same in groups.items()
        if len(same) > 1
    ]


def guess_layout(root: Path, folders: Sequence[Path]) -> str:
    """Return the layout that the names of folders have; refuse folders that can be read in two ways.

    folders: those in `root`.
    """
    contents = {folder: read_folder(folder) for folder in folders}
    splits = [folder for folder in folders if split_of(folder.name)]
    others = [folder for folder in folders if folder not in splits]
    if not splits:
        _refuse_single_class(root, contents)
        _refuse_words_of_splits(root, contents)
        _refuse_class_splits(root, contents)
        _refuse_same_inside(root, contents)
        return "classes"
    if not any(contents[folder].folders for folder in splits):
        _refuse_flat_splits(root, splits, others)
        return "classes"
    if others:
        verb = "is a split" if len(splits) == 1 else "are splits"
        raise PipelineError(
            f"{root} can be read in two ways: {_names(splits)} {verb}, and {others[0]} stands beside but is no split "
            "(move it away, or name it train, val or test); or all folders are classes (--layout classes)."
        )
    if not any(split_of(folder.name) == "train" for folder in splits):
        raise PipelineError(
            f"{root} has {_names(splits)} but no train/. Add the training images, or take --layout classes if these "
            "are classes."
        )
    return "splits"


def _names(folders: Sequence[Path]) -> str:
    return " and ".join(f"{folder.name}/" for folder in folders)


def _refuse_single_class(root: Path, contents: Mapping[Path, FolderContent]) -> None:
    """Refuse a single folder with folders in it: the dataset probably starts further down."""
    if len(contents) == 1 and (below := next(iter(contents.values())).folders):
        (folder,) = contents
        raise PipelineError(
            f"{root} has one class only, {folder.name!r}. If {below[0].name!r} and its neighbours are the classes or "
            f"splits, prepare {folder} instead; if the images have no labels, take --unlabelled {root}."
        )


def _refuse_words_of_splits(root: Path, contents: Mapping[Path, FolderContent]) -> None:
    """Refuse folders whose names all hold the word of a split, as long as nobody says that they are classes."""
    if len(contents) < 2 or not all(split_within(folder.name) for folder in contents):
        return
    if not any(content.folders for content in contents.values()):
        _refuse_flat_splits(root, list(contents), [])
    raise PipelineError(
        f"{root} can be read in two ways: {_names(list(contents))} are splits (--layout splits), or classes "
        "(--layout classes)."
    )


def _refuse_class_splits(root: Path, contents: Mapping[Path, FolderContent]) -> None:
    """Refuse classes whose folders hold splits, as long as nobody says that they do."""
    inner = [content.folders for content in contents.values()]
    if inner and all(below and all(split_of(folder.name) for folder in below) for below in inner):
        first = next(iter(contents))
        raise PipelineError(
            f"{root} can be read in two ways: {first.name}/{inner[0][0].name}/ is the split of a class "
            f"(--layout class-splits), or just a folder of the class {first.name!r} (--layout classes)."
        )


def _refuse_same_inside(root: Path, contents: Mapping[Path, FolderContent]) -> None:
    """Refuse folders without images that hold the same folders, as long as nobody says which ones are the classes."""
    names = {tuple(folder.name for folder in content.folders) for content in contents.values()}
    if len(names) != 1 or len(inner := names.pop()) < 2 or any(content.files for content in contents.values()):
        return
    shown = ", ".join(map(repr, inner[:SHOWN])) + (", …" if len(inner) > SHOWN else "")
    raise PipelineError(
        f"{root} can be read in two ways: {_names(list(contents)[:2])} are classes (--layout classes), or {shown} "
        "within each of them are. In the second case, list the images in a CSV file with the columns path and label."
    )


def _refuse_flat_splits(root: Path, splits: Sequence[Path], others: Sequence[Path]) -> None:
    """Refuse splits without class folders; one folder called train may be a class among others."""
    if not others:
        raise PipelineError(
            f"{root} has {_names(splits)} without class folders, so the classes are unknown. Sort the images into "
            "train/<class>/<image>, or list them in a CSV file with the columns path, label and split; or, if these "
            "folders are the classes, take --layout classes."
        )
    if len(splits) > 1:
        raise PipelineError(
            f"{root} can be read in two ways: {_names(splits)} are splits without class folders (then sort their "
            f"images into train/<class>/<image>), or classes like {others[0].name}/ (--layout classes)."
        )
    if split_of(splits[0].name) != "train":
        raise PipelineError(
            f"{root} can be read in two ways: {_names(splits)} is a split beside the classes (then move it away, and "
            f"prepare or predict its images by themselves), or a class like {others[0].name}/ (--layout classes)."
        )
