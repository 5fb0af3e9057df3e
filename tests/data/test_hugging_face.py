"""Datasets of Hugging Face on disk: splits, classes and image bytes come as they are, and doubts become questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from conftest import Outcome
from helpers import encode_image, mistake, smooth_image
from pyarrow import ipc, parquet

from pipeline.data import archives
from pipeline.data.manifest import read_manifest

Run = Callable[..., Outcome]
IMAGE = {"_type": "Image"}
CLASSES = {"_type": "ClassLabel", "names": ["ant", "bee", "fly"]}
IMAGE_TYPE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
PHOTOS = [encode_image(smooth_image(9, 7, seed), kind) for seed, kind in enumerate(["PNG", "JPEG", "WEBP", "PNG"] * 4)]


def table(labels: Sequence[Any], features: Mapping[str, Any] | None = None, **columns: Any) -> pyarrow.Table:
    """Return a row per label, with images as the library `datasets` stores them; columns: further ones."""
    images = [{"bytes": data, "path": None} for data, _ in zip(PHOTOS, labels, strict=False)]
    made = pyarrow.table({"image": pyarrow.array(images, IMAGE_TYPE), "label": labels, **columns})
    features = {"image": IMAGE, "label": CLASSES} if features is None else features
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(folder: Path, name: str, rows: pyarrow.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(rows, folder / name, row_group_size=3)
    return folder


def save_to_disk(folder: Path, split: str, rows: pyarrow.Table) -> Path:
    folder.mkdir(parents=True)
    with ipc.new_stream(folder / "data-00000-of-00001.arrow", rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def labels_by_split(name: str) -> dict[str, list[str]]:
    manifest = read_manifest(Path("data", name))
    found: dict[str, list[str]] = {split: [] for split in dict.fromkeys(manifest.splits)}
    for split, label in zip(manifest.splits, manifest.labels.tolist(), strict=True):
        found[split].append(manifest.classes[label] if label >= 0 else "")
    return found


@pytest.mark.parametrize("inner", ["", "data"])
def test_parquet_files_of_splits_become_a_dataset(run: Run, project: Path, inner: str) -> None:
    write_parquet(Path("set", inner), "train-00000-of-00002.parquet", table([0, 1, 0, 1], where=list("abcd")))
    write_parquet(Path("set", inner), "train-00001-of-00002.parquet", table([2, 2, 1, -1], where=list("efgh")))
    write_parquet(Path("set", inner), "validation-00000-of-00001.parquet", table([2], where=["i"]))
    write_parquet(Path("set", inner), "test-00000-of-00001.parquet", table([1, 0], where=["j", None]))
    (project / "set" / "README.md").write_text("---")
    outcome = run("prepare", "--dataset", "set")
    assert outcome.code == 0 and "11 images, 3 classes (7 train, 1 val, 2 test, 1 unlabelled)" in outcome.out, outcome
    expected = {"train": ["ant"] * 2 + ["bee"] * 3 + ["fly"] * 2, "val": ["fly"], "test": ["ant", "bee"]}
    assert labels_by_split("set") == {**expected, "unlabelled": [""]}
    manifest = read_manifest(Path("data/set"))
    assert {path.read_bytes() for path in manifest.files()} <= set(PHOTOS)
    assert {Path(path).suffix for path in manifest.paths} == {".png", ".jpg", ".webp"}
    assert sorted(manifest.metadata["where"]) == sorted(["", *"abcdefghij"[:10]])
    assert "column 'nothing'" in run("prepare", "--dataset", "set", "--group-by", "nothing").err
    assert len(read_manifest(Path("data/set")).files()) == len({*read_manifest(Path("data/set")).files()}) == 11


def test_a_saved_dataset_and_a_single_file_are_sources(run: Run, project: Path) -> None:
    for split in ("train", "test"):
        save_to_disk(Path("saved") / split, split, table([0, 1, 2, 0, 1, 2]))
    Path("saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "12 images, 3 classes (6 train, 6 test)" in run("prepare", "--dataset", "saved").out
    save_to_disk(Path("part"), "train", table([0, 1] * 4))
    assert "8 images, 2 classes (6 train, 2 test)" in run("prepare", "--dataset", "part").out
    write_parquet(project, "photos.parquet", table([0, 1] * 4))
    assert "photos: 8 images, 2 classes (6 train, 2 test)" in run("prepare", "--dataset", "photos.parquet").out
    assert "8 images, 0 classes" in run("prepare", "--unlabelled", "photos.parquet", "--overwrite").out


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        ([0, 1] * 4, {}, {"0", "1"}),
        (["cat ", "dog"] * 4, {}, {"cat", "dog"}),
        ([[0, 2], [1], [], [2]] * 2, {"_type": "Sequence", "feature": CLASSES}, {"ant", "bee", "fly"}),
        ([True, False] * 4, {}, {"True", "False"}),
    ],
)
def test_labels_are_names_numbers_or_several(
    run: Run, project: Path, labels: list[Any], feature: Mapping[str, Any], expected: set[str]
) -> None:
    write_parquet(Path("set"), "train.parquet", table(labels, {"image": IMAGE, "label": feature}))
    outcome = run("prepare", "--dataset", "set")
    assert outcome.code == 0, outcome
    manifest = read_manifest(Path("data/set"))
    assert set(manifest.classes) == expected and (manifest.labels.ndim == 2) == isinstance(labels[0], list)


def test_a_doubt_is_a_question_that_a_flag_answers(run: Run, project: Path) -> None:
    rows = table([0, 1] * 4)
    both = rows.append_column("mask", rows["image"]).append_column("kind", rows["label"])
    features = {"image": IMAGE, "mask": IMAGE, "label": CLASSES, "kind": {"_type": "ClassLabel", "names": ["x", "y"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    write_parquet(Path("set"), "train.parquet", both.replace_schema_metadata(metadata))
    mistake(run("prepare", "--dataset", "set"), "several columns of images: 'image', 'mask'", "--image-column image")
    flags = ("prepare", "--dataset", "set", "--image-column", "mask")
    mistake(run(*flags), "several columns of labels: 'label', 'kind'", "--label-column label")
    assert run(*flags, "--label-column", "kind").code == 0
    assert read_manifest(Path("data/set")).classes == ("x", "y")
    mistake(run(*flags, "--label-column", "kinds"), "'kinds'", "Choose from: kind")
    mistake(run("prepare", "--label-column", "kind"), "is for datasets of Hugging Face, and digits is none")
    for name in ("ant", "bee"):
        Path("set", name).mkdir()
        for number, data in enumerate(PHOTOS[:4]):
            Path("set", name, f"{number}.png").write_bytes(data)
    mistake(run("prepare", "--dataset", "set"), "can be read in two ways", "set/train.parquet", "--layout classes")
    assert "8 images, 2 classes" in run("prepare", "--dataset", "set", "--layout", "classes").out
    write_parquet(Path("bare"), "train.parquet", rows.rename_columns(["image", "sort"]).replace_schema_metadata(None))
    mistake(run("prepare", "--dataset", "bare"), "no column that is declared as labels", "'sort'", "--unlabelled bare")
    assert run("prepare", "--dataset", "bare", "--label-column", "sort").code == 0


def test_what_has_no_images_or_is_damaged_is_one_sentence_and_nothing_is_lost(run: Run, project: Path) -> None:
    assert run("prepare", "--dataset", write_parquet(Path("set"), "train.parquet", table([0, 1] * 4))).code == 0
    before = read_manifest(Path("data/set")).files()
    paths_only = pyarrow.array([{"bytes": None, "path": f"/none/{n}.png"} for n in range(8)], IMAGE_TYPE)
    rows = table([0, 1] * 4)
    for made, words in [
        (rows.drop_columns(["image"]), "no column of images; its columns are: 'label'"),
        (rows.set_column(0, "image", paths_only), "None of the 8 rows of set has an image"),
        (table([0, 5] * 4), "the label 5, but names for 0 to 2"),
    ]:
        write_parquet(Path("set"), "train.parquet", made)
        mistake(run("prepare", "--dataset", "set"), words)
        assert all(path.exists() for path in before)
    whole = Path("set/train.parquet").read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"PAR1" + bytes(99)):
        Path("set/train.parquet").write_bytes(data)
        mistake(run("prepare", "--dataset", "set"), "set/train.parquet is damaged")
    assert all(path.exists() for path in before)
    save_to_disk(Path("saved"), "train", rows)
    arrow = Path("saved/data-00000-of-00001.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-700])
    mistake(run("prepare", "--dataset", "saved"), "data-00000-of-00001.arrow is damaged")
    Path("saved/state.json").write_text("{")
    mistake(run("prepare", "--dataset", "saved"), "state.json is damaged")


def test_rows_without_an_image_are_bad_and_the_rest_goes_on(run: Run, project: Path) -> None:
    rows = table([0, 1] * 4)
    images = [
        *rows["image"].to_pylist()[:5],
        None,
        {"bytes": None, "path": None},
        {"bytes": b"no image", "path": "x.jpg"},
    ]
    made = rows.set_column(0, "image", pyarrow.array(images, IMAGE_TYPE))
    outcome = run("prepare", "--dataset", write_parquet(Path("set"), "train.parquet", made))
    assert outcome.code == 0 and "5  images used" in outcome.out and "3  bad files" in outcome.out, outcome
    assert "set/train.parquet, row 5" in Path("data/set/bad.csv").read_text()
    assert np.unique(read_manifest(Path("data/set")).labels).tolist() == [0, 1]


TEXT = pyarrow.string()
NO_TEXT = pyarrow.Array.from_buffers(TEXT, 1, [None, *map(pyarrow.py_buffer, (bytes(4) + b"\2\0\0\0", b"\xff\xfe"))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.append_column("where", pyarrow.chunked_array([NO_TEXT] * 8)), "Invalid UTF8"),
        (lambda rows: rows.append_column("label", rows["label"]), "two columns 'label'"),
        (lambda rows: rows.set_column(0, "image", [[{"bytes": "text", "path": "a.png"}] * 8]), "no column of images"),
        (lambda rows: rows.append_column("where", [["long" * 10_000] * 8]), "unpacks to more than 200,000 bytes"),
        (lambda rows: rows.set_column(0, "image", [[PHOTOS[0] + bytes(99_999)] * 8]), "unpacks to more than"),
    ],
)
def test_files_of_strangers_are_one_sentence(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., pyarrow.Table], words: str
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 200_000)
    monkeypatch.setattr(archives, "MAX_RATIO", 1)
    write_parquet(Path("set"), "train.parquet", change(table([0, 1] * 4)))
    mistake(run("prepare", "--dataset", "set"), words)
    assert not Path("data/set").exists()


def test_names_of_strangers_lead_nowhere(run: Run, project: Path) -> None:
    rows = table([0, 1] * 4)
    names = ["a.\0x", "a.\x1b[2J", "../../b.png", "a." + "x" * 400, "~/c", *"de"]
    images = [{"bytes": data, "path": name} for data, name in zip(PHOTOS, names, strict=False)]
    made = rows.set_column(0, "image", pyarrow.array([*images, {"bytes": None, "path": "f" * 5000}], IMAGE_TYPE))
    outcome = run("prepare", "--dataset", write_parquet(Path("set"), "train.parquet", made))
    assert "7  images used" in outcome.out and "1  bad files" in outcome.out, outcome
    paths = sorted(read_manifest(Path("data/set")).paths)
    assert [Path(path).stem for path in paths] == [f"{number:07}" for number in range(7)]
    assert {Path(path).suffix for path in paths} <= {".png", ".jpg", ".webp"}


def test_a_place_outside_an_arrow_file_is_not_read(run: Run, project: Path) -> None:
    arrow = save_to_disk(Path("saved"), "train", table([0, 1])) / "data-00000-of-00001.arrow"
    size, whole = len(PHOTOS[0]), arrow.read_bytes()
    end = (size + len(PHOTOS[1])).to_bytes(4, "little")
    places = bytes(4) + size.to_bytes(4, "little")
    assert whole.count(places + end) == 1
    arrow.write_bytes(whole.replace(places + end, places + b"\xff\xff\xff\x7f"))
    mistake(run("prepare", "--dataset", "saved"), "data-00000-of-00001.arrow is damaged", "out of bounds")
