"""The HDF5 file: what is written is read, whole or by split; anything else is refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import make_spec, write_codes

from pipeline import errors
from pipeline.codes import reader
from pipeline.codes.writer import CodesWriter, Metadata, cache_folder, claim_folder

LABELS, SPLITS = [0, 1, 2, 0, 1, 2], ["train", "train", "test", "train", "test", "val"]
CLASSES = ["ant", "bee", "müll\nfly"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    values = write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    found = reader.read(tmp_path / "fc7.h5", {"layer": "fc7"})
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == np.float32 and found.labels.dtype == np.int64
    assert found.labels.tolist() == LABELS and found.splits == tuple(SPLITS) and found.classes == tuple(CLASSES)
    assert found.paths[3] == "3.png" and found.digests[3] == f"{3:064x}"
    assert found.spec == make_spec()


@pytest.mark.parametrize("split", ["train", "val", "test", "none such"])
def test_one_split_is_read(tmp_path: Path, split: str) -> None:
    values = write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    rows = [row for row, name in enumerate(SPLITS) if name == split]
    found = reader.read(tmp_path / "fc7.h5", {}, split)
    np.testing.assert_array_equal(found.values, values[rows].reshape(-1, 16))
    assert found.labels.tolist() == [LABELS[row] for row in rows]
    assert found.paths == tuple(f"{row}.png" for row in rows) and set(found.splits) <= {split}


def test_the_datasets_and_the_spec_are_plain_hdf5(tmp_path: Path) -> None:
    write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    with h5py.File(tmp_path / "fc7.h5") as file:
        assert {"values", "labels", "paths", "splits", "digests", "classes"} <= set(file)
        assert json.loads(file.attrs["spec"]) == make_spec().to_dict()


def test_the_same_codes_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_codes(tmp_path / name, LABELS, SPLITS, CLASSES)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_another_spec_is_refused_with_each_difference(tmp_path: Path) -> None:
    write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES, pool="max")
    with pytest.raises(
        errors.PipelineError, match=r"pool is 'max', not 'avg'; transform.resize is 64, not 256"
    ) as error:
        reader.read(tmp_path / "fc7.h5", {"backbone": "tinyvgg", "pool": "avg", "transform.resize": 256})
    assert "backbone" not in str(error.value)


def test_missing_codes_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(errors.PipelineError, match=r"python -m pipeline.extract --backbone vgg16 --layer fc7"):
        reader.read(tmp_path / "fc7.h5", {"backbone": "vgg16", "layer": "fc7"})


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, 3000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.PipelineError, match="damaged, or no file of codes"):
        reader.read(path, {})


def test_a_foreign_hdf5_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = np.zeros((3, 3))
    with pytest.raises(errors.PipelineError, match="another format"):
        reader.read(tmp_path / "other.h5", {})


@pytest.mark.parametrize("name", ["values", "labels", "digests", "paths", "splits", "checksums", "classes"])
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    with h5py.File(path) as file:
        start, size = file[name].id.get_offset(), file[name].id.get_storage_size()
    good = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, size * 8, 100):
        damaged = bytearray(good)
        damaged[start + place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(errors.PipelineError, match="damaged"):
            reader.read(path, {})
    path.write_bytes(good)
    reader.read(path, {})


def test_a_changed_spec_is_found(tmp_path: Path) -> None:
    write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    with h5py.File(tmp_path / "fc7.h5", "r+") as file:
        file.attrs["spec"] = file.attrs["spec"].replace('"pool":"none"', '"pool":"max"')
    with pytest.raises(errors.PipelineError, match="its spec does not fit"):
        reader.read(tmp_path / "fc7.h5", {})


def test_rows_that_changed_places_are_found(tmp_path: Path) -> None:
    write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    with h5py.File(tmp_path / "fc7.h5", "r+") as file:
        file["labels"][:2] = file["labels"][:2][::-1]
    with pytest.raises(errors.PipelineError, match="2 of its rows do not fit"):
        reader.read(tmp_path / "fc7.h5", {})


def columns(count: int) -> Metadata:
    names = reader.encode_texts([f"{row}.png" for row in range(count)])
    return Metadata(
        names, np.zeros(count, np.int64), reader.encode_texts(["train"] * count), reader.encode_texts(["a", "b"])
    )


def digests(count: int) -> list[str]:
    return [f"{row:064x}" for row in range(count)]


def test_an_unfinished_file_leaves_the_old_one_and_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    before = path.read_bytes()
    values = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    with pytest.raises(ZeroDivisionError), CodesWriter(path, make_spec(), 16, columns(5)) as writer:
        writer.write([0, 1], values[:2], digests(2))
        raise ZeroDivisionError
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["fc7.h5"]
    with CodesWriter(path, make_spec(), 16, columns(5)) as writer:
        assert sorted(writer.written) == [0, 1] and not writer.fresh
        writer.write([2, 3, 4], values[2:], digests(5)[2:])
        writer.commit([])
    np.testing.assert_array_equal(reader.read(path, {}).values, values)
    assert not list(cache_folder(path.parent).glob("*.partial"))


def test_a_torn_row_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    with CodesWriter(path, make_spec(), 16, columns(3)) as writer:
        writer.write([0, 1], np.ones((2, 16), np.float32), digests(2))
        writer.file["values"][1, 5] = 7
    with CodesWriter(path, make_spec(), 16, columns(3)) as writer:
        assert sorted(writer.written) == [0]


def test_half_a_layout_is_laid_out_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    with CodesWriter(path, make_spec(), 16, columns(3)) as writer:
        partial = writer.partial
    for keep in (0, 10, 500, 2000):
        partial.write_bytes(partial.read_bytes()[:keep])
        with CodesWriter(path, make_spec(), 16, columns(3)) as writer:
            assert writer.fresh


def test_codes_of_another_spec_are_no_donors(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    for changes, fresh in (({}, False), ({"weights_sha256": "cd" * 32}, True), ({"mean": (0.5, 0.5, 0.5)}, True)):
        with CodesWriter(path, make_spec(**changes), 16, columns(3)) as writer:
            assert writer.fresh == fresh


def test_rows_never_written_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    values = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    with CodesWriter(path, make_spec(), 16, columns(5)) as writer:
        writer.write([0, 2, 4], values[[0, 2, 4]], [digests(5)[row] for row in (0, 2, 4)])
        writer.commit(["1.png: bad", "3.png: bad"])
    found = reader.read(path, {})
    np.testing.assert_array_equal(found.values, values[[0, 2, 4]])
    assert found.paths == ("0.png", "2.png", "4.png")
    assert reader.read_index(path, {}).bad == ("1.png: bad", "3.png: bad")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with (
        CodesWriter(tmp_path / "fc7.h5", make_spec(), 2, columns(1)) as writer,
        pytest.raises(errors.PipelineError, match="not finite"),
    ):
        writer.write([0], np.array([[1, value]], np.float32), digests(1))


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from pipeline.codes.writer import claim_folder\n"
        "with claim_folder(pathlib.Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with claim_folder(tmp_path / "out"):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode and "Another run is writing" in other.stderr
    with claim_folder(tmp_path / "out"):
        pass
