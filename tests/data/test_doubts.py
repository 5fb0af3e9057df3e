"""What can be read, but looks like a mistake, is said in a sentence; what does not, is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.doubts import doubts_of_cells, doubts_of_names, nested_notes
from pipeline.data.manifest import ListedImage


def images(*labels: str, multi_label: bool = False, **metadata: str) -> list[ListedImage]:
    return [
        ListedImage(
            Path(f"{n}.png"), label, None, multi_label, {key: value.split()[n] for key, value in metadata.items()}
        )
        for n, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("cat", "Cat"), ("'Cat', 'cat' differ only by case",)),
        (("1", "1.0", "01", "2"), ("'01', '1', '1.0' are the same number",)),
        (("polar bear", "polar_bear"), ("'polar bear', 'polar_bear' look alike",)),
        (("cat\u200b", "cat", "\ufb01sh", "fish"), ("'cat', 'cat\\u200b' look alike", "'fish', 'ﬁsh' look alike")),
        (("a", "A", "b", "B", "c", "C", "d", "D", "e", "E"), ("'C', 'c' differ", "So do 2 more groups")),
        (("1", "10", "1.5", "n1", "n01"), ()),
        (("cat", "dog", "caf\u00e9"), ()),
    ],
)
def test_classes_that_look_alike_are_named(labels: tuple[str, ...], words: tuple[str, ...]) -> None:
    said = "\n".join(doubts_of_names(images(*labels)))
    assert all(word in said for word in words) and bool(said) == bool(words)


@pytest.mark.parametrize(
    ("labels", "multi_label", "words"),
    [
        (("nan", "cat"), False, ("'nan' is read as a class", "leave the cell empty")),
        (("cat;dog", "dog"), False, ("'cat;dog' is read as one class", "name the column 'labels'")),
        (("cat|dog", "dog"), False, ("'cat|dog' is read as one class",)),
        (("cat|dog", "dog"), True, ("'cat|dog' is read as one class", "write a semicolon instead")),
        (("cat dog", "cat", "dog"), True, ("'cat dog' is read as one class. If ' ' separates",)),
        (("cat, dog", "cat", "dog"), True, ("'cat, dog'", "If ',' separates")),
        (("cat, pet", "dog"), True, ("'cat, pet'", "write a semicolon instead")),
        (("polar bear", "bear", "cat;dog"), True, ()),
        (("great white shark, Carcharodon", "shark"), False, ()),
    ],
)
def test_labels_that_are_missing_or_several_are_named(
    labels: tuple[str, ...], multi_label: bool, words: tuple[str, ...]
) -> None:
    said = "\n".join(doubts_of_cells(images(*labels, multi_label=multi_label)))
    assert all(word in said for word in words) and bool(said) == bool(words)


@pytest.mark.parametrize(
    ("name", "values", "doubted"),
    [
        ("subset", "train Test VAL", True),
        ("is_valid", "True False True", True),
        ("Test", "0 1 1", True),
        ("fold", "0 1 2", False),
        ("valid", "x y z", False),
        ("patient", "a train b", False),
    ],
)
def test_columns_that_look_like_splits_are_named(name: str, values: str, doubted: bool) -> None:
    said = doubts_of_cells(images("a", "b", "a", **{name: values}))
    assert bool(said) == doubted and all(f"The column {name!r} looks like one of splits" in note for note in said)
    assert not doubts_of_cells([ListedImage(Path("1.png"), "a", "train", metadata={name: values.split()[0]})])


def test_masks_beside_images_are_named() -> None:
    paths = ["benign (1).png", "benign (1)_mask.png", "benign (1)_mask_1.png", "masked.png", "Mask.png"]
    said = doubts_of_names([ListedImage(Path(path), "benign") for path in paths])
    assert len(said) == 1 and "2 files have names of masks, the first is 'benign (1)_mask.png'" in said[0]
    assert not doubts_of_names([ListedImage(Path(path), "mask") for path in paths[1:3]])


def test_folders_within_class_folders_are_named() -> None:
    assert "'fold1' holds 'bird', 'cat', 'dog', …" in nested_notes({"x": [], "fold1": ["bird", "cat", "dog", "eel"]})[0]
    assert not nested_notes({"x": [], "y": []})
