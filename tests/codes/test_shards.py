"""Shards are read as one file would be; a shard that is gone, cut off or another one is an error, never zeros."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Listing, make_spec, put_codes

from pipeline import verify
from pipeline.codes import reader, shards, stored
from pipeline.codes.spec import CodesSpec
from pipeline.errors import PipelineError

INDEX = Path("fc7.h5")
ROWS = (5, 1, 0, 7)


def write_shards(**other: object) -> np.ndarray:
    """Write shards of some rows each, whose paths have different lengths, and their index; return all values."""
    values = np.random.default_rng(0).random((sum(ROWS), 6), np.float32)
    names, start = [], 0
    for number, count in enumerate(ROWS):
        rows = range(start, start + count)
        listing = Listing(
            [f"{'x' * number}{row}.png" for row in rows],
            [row % 2 for row in rows],
            ["test" if row % 3 == 0 else "train" for row in rows],
            [f"{row:064x}" for row in rows],
            ["ant", "bee"],
            [f"{number}.png: the file is empty"],
        )
        name = shards.shard_name(number, len(ROWS), "ab")
        put_codes(shards.folder_of(INDEX) / name, values[rows.start : rows.stop], listing, **(other if number else {}))
        names.append(name)
        start += count
    shards.write_index(INDEX, names)
    return values


def test_shards_are_read_as_one_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    monkeypatch.setattr(stored, "BLOCK_BYTES", 4 * 4 * 6)  # 4 rows a block
    values = write_shards()
    codes, index = reader.read(INDEX, {}), reader.read_index(INDEX, {})
    np.testing.assert_array_equal(codes.values, values)
    assert (
        codes.paths == index.paths == tuple(f"{x}{row}.png" for row, x in enumerate(["", *[""] * 4, "x", *["xxx"] * 7]))
    )
    assert codes.labels.tolist() == [row % 2 for row in range(13)] and index.width == 6
    assert index.bad == tuple(f"{number}.png: the file is empty" for number in range(4))
    test = np.arange(0, 13, 3)
    np.testing.assert_array_equal(reader.read(INDEX, {}, "test").values, values[test])
    with reader.open_codes(INDEX, {}, "test", memory=1) as part:
        np.testing.assert_array_equal(part.values[1:4], values[test[1:4]])
        np.testing.assert_array_equal(part.values[1:5], values[test[1:5]])
    with reader.open_stream(INDEX, {}) as stream:
        np.testing.assert_array_equal(np.concatenate([block.values for block in stream.blocks]), values)
    chosen = np.array([0, 4, 5, 12])
    np.testing.assert_array_equal(np.concatenate([block for _, block in reader.blocks(INDEX, chosen)]), values[chosen])
    with reader.open_file(INDEX, {}) as file:
        assert len(file.opened) <= 2 and file["values"][5:5].shape == (0, 6) and len(file["paths"][6:6]) == 0


def first_file() -> Path:
    """Return the file of the first shard."""
    return min(shards.folder_of(INDEX).glob("*.h5"))


def remove() -> None:
    first_file().unlink()


def cut_off() -> None:
    first_file().write_bytes(first_file().read_bytes()[:-1000])


def replace_by_another() -> None:
    shutil.copy(max(shards.folder_of(INDEX).glob("*.h5")), first_file())


def change_a_number() -> None:
    with h5py.File(first_file(), "r+") as file:
        file["values"][2, 1] += 1


def change_rows_and_their_checksums() -> None:
    with h5py.File(first_file(), "r+") as file:
        file["values"][2, 1] += 1
        file["checksums"][2] = stored.row_checksums(file["values"][2:3], stored.RowMetadata.read(file, 2, 3))[0]


def change_the_index() -> None:
    with h5py.File(INDEX, "r+") as file:
        file["rows"][:2] = file["rows"][:2][::-1]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            remove,
            "is an index of 4 shards, of which 1 cannot be found in fc7.shards; the first is shard-00000-of-00004",
        ),
        (cut_off, "shard-00000-of-00004-ab.h5 cannot be read"),
        (replace_by_another, "is not the file that fc7.h5 names"),
        (change_a_number, "is damaged: 1 of its rows do not fit their checksums, the first is row 2"),
        (change_rows_and_their_checksums, "is not the file that fc7.h5 names"),
        (change_the_index, "its list of shards does not fit its checksum"),
    ],
)
def test_what_is_wrong_with_a_shard_is_said(project: Path, harm: Callable[[], None], words: str) -> None:
    write_shards()
    harm()
    with pytest.raises(PipelineError, match=words):
        reader.read(INDEX, {})


def test_shards_of_other_specs_are_no_set(project: Path) -> None:
    with pytest.raises(PipelineError, match="has another spec or other classes"):
        write_shards(precision="bf16")
    assert isinstance(make_spec(), CodesSpec) and not INDEX.exists()


def test_large_shards_are_checked_in_several_processes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards()
    monkeypatch.setattr(verify, "LARGE", 0)
    assert list(verify.value_problems(INDEX, 2)) == []
    change_a_number()
    with pytest.raises(PipelineError, match=r"shard-00000-of-00004-ab.h5 is damaged: 1 of its rows"):
        list(verify.value_problems(INDEX, 2))
