"""Columns of text read like tuples of str, whatever the texts are, and know which are the same."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipeline import texts
from pipeline.texts import Texts

WORDS = ("", "train", "b\udcff.jpg", "ümläut", "train", "trail", "nul\0", "", "test\n")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", 2)


def test_a_column_reads_like_a_tuple() -> None:
    column = Texts.of(WORDS)
    assert column == WORDS and tuple(column) == WORDS and len(column) == len(WORDS)
    assert [column[row] for row in range(-9, 9)] == [*WORDS, *WORDS]
    for part in (slice(2, 5), slice(None, None, -1), slice(4, 2), slice(-3, None), slice(20, 30)):
        assert column[part] == WORDS[part]
    with pytest.raises(IndexError):
        column[9]
    assert column != WORDS[:-1] and column != Texts.of(WORDS[:-1]) and column != 3 and "ümläut" in column
    assert pickle.loads(pickle.dumps(column)) == column  # noqa: S301 - made here


def test_rows_are_taken_and_columns_joined() -> None:
    column, rows = Texts.of(WORDS), np.array([8, 0, 0, 3, -1])
    assert column.take(rows) == tuple(WORDS[row] for row in rows)
    assert Texts.joined([column, Texts.of([]), column]) == WORDS + WORDS
    assert Texts.joined([]) == Texts.of([]) == () and Texts.of_column(np.array(["a", "bcd"], "S")) == ("a", "bcd")


def test_equal_texts_have_one_number_even_where_hashes_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    column = Texts.of(WORDS)
    for _ in range(2):
        assert column.numbers().tolist() == [0, 1, 2, 3, 1, 4, 5, 0, 6]
        assert column.distinct() == ["", "train", "b\udcff.jpg", "ümläut", "trail", "nul\0", "test\n"]
        assert column.rows_of(Texts.of(["trail", "tra", "train", ""])).tolist() == [5, -1, 4, 7]
        monkeypatch.setitem(vars(texts), "hash", lambda text: len(text))


def test_texts_are_found() -> None:
    assert np.flatnonzero(Texts.of(WORDS).isin(("train", "", "b\udcff.jpg", "none"))).tolist() == [0, 1, 2, 4, 7]
    assert not Texts.of([]).isin(["a"]).any()
    long = Texts.of(["a" * 300, "b"])  # offsets of two bytes
    assert long.isin(["b"]).tolist() == [False, True] and long[1] == "b"
