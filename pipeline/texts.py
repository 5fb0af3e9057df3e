"""Columns of text that take little memory: millions of paths and digests are no Python objects."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import overload

import numpy as np

BLOCK = 1 << 16
"""Number of rows that are Python objects at a time."""

ENCODE: Callable[[str], bytes] = operator.methodcaller("encode", "utf-8", "surrogateescape")
DECODE: Callable[[bytes], str] = operator.methodcaller("decode", "utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Texts(Sequence[str]):
    """A column of n texts, read like a tuple of str: the bytes of all, and where each begins.

    A text takes its bytes and 1 to 8 more; a str takes 49 more, and 8 for the place that refers to it. File names that
    are not valid UTF-8 keep their bytes (surrogateescape).

    data: the texts in UTF-8, one after the other; offsets: (n + 1,) unsigned integers, text i is
    data[offsets[i] : offsets[i + 1]].
    """

    data: bytes
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Return the column of some texts."""
        return cls.of_bytes(map(ENCODE, texts))

    @classmethod
    def of_bytes(cls, encoded: Iterable[bytes]) -> Texts:
        """Return the column of texts that are encoded already."""
        data, lengths, rest = [], [np.zeros(1, np.int64)], iter(encoded)
        while block := list(islice(rest, BLOCK)):
            data.append(b"".join(block))
            lengths.append(np.fromiter(map(len, block), np.int64, len(block)))
        offsets = np.concatenate(lengths).cumsum()
        return cls(b"".join(data), offsets.astype(np.min_scalar_type(offsets[-1])))

    @classmethod
    def of_column(cls, column: np.ndarray) -> Texts:
        """Return the column of an array of bytes of a fixed length, (n,), as HDF5 stores it."""
        starts = range(0, len(column), BLOCK)
        return cls.of_bytes(chain.from_iterable(column[start : start + BLOCK].tolist() for start in starts))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Return the rows of several columns, one column after the other."""
        data = b"".join(part.data for part in parts)
        starts = np.cumsum([0, *(len(part.data) for part in parts)])
        ends = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1].astype(np.uint64), strict=True)]
        return cls(data, np.concatenate([np.zeros(1, np.uint64), *ends]).astype(np.min_scalar_type(len(data))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int | np.integer, /) -> str: ...
    @overload
    def __getitem__(self, row: slice, /) -> Texts: ...
    def __getitem__(self, row: int | np.integer | slice, /) -> str | Texts:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            return self._between(start, max(start, stop)) if step == 1 else self.take(np.arange(start, stop, step))
        number = range(len(self))[operator.index(row)]
        return DECODE(self.data[self.offsets[number] : self.offsets[number + 1]])

    def __iter__(self) -> Iterator[str]:
        return map(DECODE, self.encoded())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self.data == other.data and np.array_equal(self.offsets, other.offsets)
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:3])
        return f"<Texts {shown}{', …' if len(self) > 3 else ''}; {len(self)} in all>"

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each text."""
        for start in range(0, len(self), BLOCK):
            offsets = self.offsets[start : start + BLOCK + 1].tolist()
            yield from map(self.data.__getitem__, map(slice, offsets, offsets[1:]))

    def _between(self, start: int, stop: int) -> Texts:
        offsets = self.offsets[start : stop + 1]
        return Texts(self.data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, rows: np.ndarray) -> Texts:
        """Return some of the texts; rows: (m,) integers."""
        blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
        bounds = ((self.offsets[:-1][block].tolist(), self.offsets[1:][block].tolist()) for block in blocks)
        parts = chain.from_iterable(map(slice, starts, ends) for starts, ends in bounds)
        return Texts.of_bytes(map(self.data.__getitem__, parts))

    def isin(self, texts: Collection[str]) -> np.ndarray:
        """Return which rows hold one of some texts, (n,) bool."""
        starts, lengths = self.offsets[:-1].astype(np.int64), np.diff(self.offsets.astype(np.int64))
        data, found = np.frombuffer(self.data, np.uint8), np.zeros(len(self), bool)
        for text in map(ENCODE, texts):
            rows = np.flatnonzero(lengths == len(text))
            for place, byte in enumerate(text):
                rows = rows[data[starts[rows] + place] == byte]
            found[rows] = True
        return found

    def numbers(self) -> np.ndarray:
        """Return a number (n,) int64 for each text, equal for equal texts, in the order in which these first occur."""
        hashes = np.fromiter(map(hash, self.encoded()), np.int64, len(self))
        _, first, places = np.unique(hashes, return_index=True, return_inverse=True)
        first_rows = first[places]
        others = np.flatnonzero(first_rows != np.arange(len(self)))
        if self.take(others) != self.take(first_rows[others]):  # different texts have the same hash
            return number_values(self.encoded())
        return np.unique(first_rows, return_inverse=True)[1]

    def distinct(self) -> list[str]:
        """Return the different texts, in the order in which they first occur."""
        return list(self.take(np.unique(self.numbers(), return_index=True)[1]))

    def rows_of(self, texts: Texts) -> np.ndarray:
        """Return the row (m,) int64 where each of some texts stands in this column, -1 where it stands in none.

        Where it stands in several, the last of them.
        """
        numbers = Texts.joined([self, texts]).numbers()
        rows = np.full(len(numbers), -1, np.int64)
        rows[numbers[: len(self)]] = np.arange(len(self))
        return rows[numbers[len(self) :]]


def number_values(values: Iterable[Hashable]) -> np.ndarray:
    """Return the number (n,) int64 of each value, in the order in which the values first occur."""
    if isinstance(values, Texts):
        return values.numbers()
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64)
