"""The HDF5 file: what is written is read, whole or by split; any other file is refused with the reason."""

from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
from conftest import make_spec, write_codes

from pipeline import errors
from pipeline.codes import reader

LABELS, SPLITS = [0, 1, 2, 0, 1, 2], ["train", "train", "test", "train", "test", "val"]
CLASSES = ["ant", "bee", "müll\nfly"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    values = write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    codes = reader.read(tmp_path / "fc7.h5", {"layer": "fc7"})
    np.testing.assert_array_equal(codes.values, values)
    assert codes.values.dtype == np.float32 and codes.labels.dtype == np.int64
    assert codes.labels.tolist() == LABELS and codes.splits == tuple(SPLITS) and codes.classes == tuple(CLASSES)
    assert codes.paths[3] == "3.png" and codes.digests[3] == f"{3:064x}"
    assert codes.spec == make_spec()


@pytest.mark.parametrize("split", ["train", "val", "test", "none such"])
def test_one_split_is_read(tmp_path: Path, split: str) -> None:
    values = write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    rows = [row for row, name in enumerate(SPLITS) if name == split]
    codes = reader.read(tmp_path / "fc7.h5", {}, split)
    np.testing.assert_array_equal(codes.values, values[rows].reshape(-1, 16))
    assert codes.labels.tolist() == [LABELS[row] for row in rows]
    assert codes.paths == tuple(f"{row}.png" for row in rows) and set(codes.splits) <= {split}


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
    assert "backbone is" not in str(error.value)


def test_missing_codes_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(errors.PipelineError, match=r"python -m pipeline.extract --layer fc7 --backbone vgg16 --out /"):
        reader.read(tmp_path / "fc7.h5", {"backbone": "vgg16", "layer": "fc7"})


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, 3000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.PipelineError, match="damaged, or no file of codes"):
        reader.read(path, {})


def test_a_lock_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codes(tmp_path / "fc7.h5", [0, 1], ["train"] * 2, ["a", "b"])
    with (tmp_path / "fc7.h5").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(errors.PipelineError, match="cannot be locked for reading: another process is writing it"):
            reader.read(tmp_path / "fc7.h5", {})
    assert len(reader.read(tmp_path / "fc7.h5", {}).labels) == 2
    without_locks = OSError(errno.ENOSYS, "unable to lock file, errno = 38, error message = 'Function not implemented'")
    monkeypatch.setattr(h5py, "File", Mock(side_effect=without_locks))
    with pytest.raises(errors.PipelineError, match="HDF5_USE_FILE_LOCKING=FALSE"):
        reader.read(tmp_path / "fc7.h5", {})


def test_an_hdf5_file_of_another_format_is_refused(tmp_path: Path) -> None:
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


def test_blocks_that_are_checked_once_are_checked_again_when_the_file_has_changed(tmp_path: Path) -> None:
    path, rows = tmp_path / "fc7.h5", np.arange(len(LABELS))
    write_codes(path, LABELS, SPLITS, CLASSES)
    first, again = (next(reader.blocks(path, rows, check_once=True))[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    with h5py.File(path, "r+") as file:
        file["values"][1, 0] += 1
    with pytest.raises(errors.PipelineError, match="damaged"):
        next(reader.blocks(path, rows, check_once=True))


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


def test_codes_larger_than_memory_are_read_when_they_are_sliced(tmp_path: Path) -> None:
    path = tmp_path / "fc7.h5"
    values = write_codes(path, LABELS, SPLITS, CLASSES)
    with reader.open_codes(path, {}, "train", 2 * 16 * 4) as codes:
        assert isinstance(codes.values, reader.StoredRows)
        assert (codes.values.shape, codes.values.dtype) == ((3, 16), np.float32)
        np.testing.assert_array_equal(codes.values[0:2], values[[0, 1]])
        np.testing.assert_array_equal(codes.values[1:3], values[[1, 3]])
        assert codes.paths == ("0.png", "1.png", "3.png") and codes.labels.tolist() == [0, 1, 0]
    with reader.open_codes(path, {}, "train", 3 * 16 * 4) as codes:
        np.testing.assert_array_equal(codes.values, values[[0, 1, 3]])


def test_errors_of_the_caller_are_not_taken_for_damage(tmp_path: Path) -> None:
    write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    for memory in (None, 1):
        with pytest.raises(KeyError), reader.open_codes(tmp_path / "fc7.h5", {}, "train", memory):
            raise KeyError


def test_a_file_of_an_older_format_is_refused(tmp_path: Path) -> None:
    write_codes(tmp_path / "fc7.h5", LABELS, SPLITS, CLASSES)
    with h5py.File(tmp_path / "fc7.h5", "r+") as file:
        file.attrs["format"] = "cnn-codes 4"
    with pytest.raises(errors.PipelineError, match=r"another format than 'cnn-codes 5'. Extract again. Run:\n  python"):
        reader.read(tmp_path / "fc7.h5", {})


def test_rows_on_disk_are_read_ahead_and_are_the_same_in_any_order(tmp_path: Path) -> None:
    path, splits = tmp_path / "fc7.h5", ["train", "test", "train"] * 20
    values = write_codes(path, np.arange(60) % 3, splits, CLASSES)[[split == "train" for split in splits]]
    blocks = [slice(start, start + 7) for start in range(0, 40, 7)]
    with reader.open_codes(path, {}, "train", 0) as codes:
        rows = codes.values
        assert isinstance(rows, reader.StoredRows)
        for part in [*blocks, *blocks, *blocks[::-1], blocks[0], slice(None), blocks[1], slice(0, 0), *blocks[1:]]:
            np.testing.assert_array_equal(rows[part], values[part])
        assert rows[blocks[2]] is rows[blocks[2]], "the last block is kept"
        rows[blocks[1]], rows[blocks[2]]
        assert rows.ahead is not None and rows.ahead[0] == blocks[3]


def test_damage_in_a_block_that_is_read_ahead_is_said(tmp_path: Path) -> None:
    path = tmp_path / "fc7.h5"
    write_codes(path, np.arange(60) % 3, ["train"] * 60, CLASSES)
    with h5py.File(path, "r+") as file:
        file["values"][50, 1] += 1
    with reader.open_codes(path, {}, "train", 0) as codes:
        for start in range(0, 40, 10):
            codes.values[start : start + 10]
        for _ in range(2):
            with pytest.raises(errors.PipelineError, match=r"damaged.*row 50"):
                codes.values[50:60]
