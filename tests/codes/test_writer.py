"""Writing codes: a file appears when it is complete, and an interrupted run is resumed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_spec, write_codes

from pipeline import errors
from pipeline.codes import reader, stored
from pipeline.codes.writer import CodesWriter, Metadata, cache_folder, claim_folder, has_earlier_rows

LABELS, SPLITS = [0, 1, 2, 0, 1, 2], ["train", "train", "test", "train", "test", "val"]
CLASSES = ["ant", "bee", "fly"]


def metadata(count: int) -> Metadata:
    names = stored.encode_texts([f"{row}.png" for row in range(count)])
    return Metadata(
        names, np.zeros(count, np.int64), stored.encode_texts(["train"] * count), stored.encode_texts(["a", "b"])
    )


def digests(count: int) -> list[str]:
    return [f"{row:064x}" for row in range(count)]


def test_an_unfinished_file_leaves_the_old_one_and_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    before = path.read_bytes()
    values = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    with pytest.raises(ZeroDivisionError), CodesWriter(path, make_spec(), 16, metadata(5)) as writer:
        writer.write([0, 1], values[:2], digests(2))
        raise ZeroDivisionError
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["fc7.h5"]
    with CodesWriter(path, make_spec(), 16, metadata(5)) as writer:
        assert sorted(writer.written) == [0, 1] and not writer.fresh
        writer.write([2, 3, 4], values[2:], digests(5)[2:])
        writer.commit([])
    np.testing.assert_array_equal(reader.read(path, {}).values, values)
    assert not list(cache_folder(path.parent).glob("*.partial"))


def test_a_row_written_in_part_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
        writer.write([0, 1], np.ones((2, 16), np.float32), digests(2))
        writer.file["values"][1, 5] = 7
    with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
        assert sorted(writer.written) == [0]


def test_an_incomplete_layout_is_laid_out_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
        partial = writer.partial
    for keep in (0, 10, 500, 2000):
        partial.write_bytes(partial.read_bytes()[:keep])
        with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
            assert writer.fresh


def test_codes_of_another_spec_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    write_codes(path, LABELS, SPLITS, CLASSES)
    for changes, fresh in (({}, False), ({"weights_sha256": "cd" * 32}, True), ({"mean": (0.5, 0.5, 0.5)}, True)):
        with CodesWriter(path, make_spec(**changes), 16, metadata(3)) as writer:
            assert writer.fresh == fresh


def test_rows_never_written_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    values = np.arange(5 * 16, dtype=np.float32).reshape(5, 16)
    with CodesWriter(path, make_spec(), 16, metadata(5)) as writer:
        writer.write([0, 2, 4], values[[0, 2, 4]], [digests(5)[row] for row in (0, 2, 4)])
        writer.commit(["1.png: bad", "3.png: bad"])
    found = reader.read(path, {})
    np.testing.assert_array_equal(found.values, values[[0, 2, 4]])
    assert found.paths == ("0.png", "2.png", "4.png")
    assert reader.read_index(path, {}).bad == ("1.png: bad", "3.png: bad")


def test_rows_never_written_are_left_out_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", 7 * 16 * 4)  # 7 rows per block
    path, rows = tmp_path / "out" / "fc7.h5", [row for row in range(40) if row % 9 and not 14 <= row < 28]
    values = np.arange(40 * 16, dtype=np.float32).reshape(40, 16)
    with CodesWriter(path, make_spec(), 16, metadata(40)) as writer:
        writer.write(rows, values[rows], [digests(40)[row] for row in rows])
        writer.commit([])
    codes = reader.read(path, {})
    np.testing.assert_array_equal(codes.values, values[rows])
    assert codes.digests == tuple(digests(40)[row] for row in rows)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK])
def test_where_there_are_no_hard_links_the_cache_holds_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "out" / "fc7.h5"
    values = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
    for number in range(2):  # the second replaces the copy
        with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
            assert writer.fresh == (number == 0)
            writer.write(range(3), values, digests(3))
            writer.commit([])
    (copy,) = cache_folder(path.parent).iterdir()
    assert copy.read_bytes() == path.read_bytes() and copy.stat().st_nlink == 1
    path.unlink()
    assert has_earlier_rows(path, make_spec(), metadata(3))
    with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
        assert all(writer.find(row, digest) for row, digest in enumerate(digests(3)))
        writer.commit([])
    np.testing.assert_array_equal(reader.read(path, {}).values, values)


def test_a_complete_file_that_a_kill_left_unmoved_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fc7.h5"
    values = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
    with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
        writer.write(range(3), values, digests(3))
        partial = writer.partial
        writer.commit([])
    (cached,) = cache_folder(path.parent).iterdir()
    cached.unlink()
    path.rename(partial)
    with CodesWriter(path, make_spec(), 16, metadata(3)) as writer:
        assert all(writer.find(row, digest) for row, digest in enumerate(digests(3)))
        writer.commit([])
    np.testing.assert_array_equal(reader.read(path, {}).values, values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with (
        CodesWriter(tmp_path / "fc7.h5", make_spec(), 2, metadata(1)) as writer,
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
