"""The rows of CSV files as people write them: any usual encoding, separator and spelling of the header."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.manifest import RESERVED_COLUMNS
from pipeline.errors import PipelineError, unknown

SEPARATORS = ",;\t|"
FIRST_LINE = "Its first line must read: path,label[,split]."
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and the encodings that they stand for, the longer ones first."""

OTHER_STARTS = (b"PK\3\4", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
"""How Excel's files begin, the new ones and the old."""


@dataclass(frozen=True)
class Row:
    """A row of a CSV file: the number of its last line, and its cells by column."""

    line: int
    cells: Mapping[str, str]


def decode_text(data: bytes, path: Path) -> tuple[str, list[str]]:
    """Return the text of a file, and notes if it had to be guessed: UTF-8, UTF-16, UTF-32, or else Windows-1252."""
    encoding, mark = next(((name, mark) for mark, name in MARKS if data.startswith(mark)), ("", b""))
    if not encoding and b"\0" in data[:1000]:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    try:
        return data[len(mark) :].decode(encoding or "utf-8"), []
    except UnicodeDecodeError as error:
        if encoding.startswith(("utf-16", "utf-32")):
            reason = f"{path} is not valid {encoding.upper()} ({error.reason})"
            raise PipelineError(f"{reason}. Save it as UTF-8.") from error
    lines = [_decode_line(line) for line in data[len(mark) :].splitlines(keepends=True)]
    guessed = [text.strip() for text, certain in lines if not certain]
    note = (
        f"{path} is not valid UTF-8: {len(guessed)} of its lines were read as Windows-1252, the first is "
        f"{guessed[0]!r}. If that is wrong, save the file as UTF-8."
    )
    return "".join(text for text, _ in lines), [note]


def _decode_line(line: bytes) -> tuple[str, bool]:
    """Return the text of a line, and whether it is UTF-8; bytes that no encoding knows are kept (surrogateescape)."""
    try:
        return line.decode("utf-8"), True
    except UnicodeDecodeError:
        pass
    try:
        return line.decode("cp1252"), False
    except UnicodeDecodeError:
        return line.decode("utf-8", "surrogateescape"), False


def read_table(path: Path, labelled: bool = True, tasks: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """Return the rows of a CSV file, and notes on how it was read.

    It must have the column path and, if `labelled`, label or labels, or the columns that are named as `tasks`.
    """
    records, notes = _read_records(path, FIRST_LINE)
    _, first = next(records, (0, []))
    header = _read_header(first, path, labelled and not tasks)
    for name in tasks:
        if name not in header:
            raise unknown("column", name, filter(None, header), where=f"--labels in {path}")
    rows = [Row(line, _named(cells, header, path, line)) for line, cells in records]
    if not rows:
        raise PipelineError(f"{path} lists no images. It needs a line path,label for each.")
    return rows, notes


def read_columns(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a CSV file that lists no images, and must have some columns."""
    records, _ = _read_records(path, f"Its first line must read: {','.join(columns)}.")
    _, first = next(records, (0, []))
    header = [_column(cell) for cell in first]
    for name in columns:
        if name not in header:
            raise unknown("column", name, filter(None, header), where=str(path))
    return [Row(line, _named(cells, header, path, line)) for line, cells in records]


def _read_records(path: Path, first_line: str) -> tuple[Iterator[tuple[int, list[str]]], list[str]]:
    """Return the records of a CSV file as `_parse` does, and notes on how it was read; first_line: what it needs."""
    data = path.read_bytes()
    if data.startswith(OTHER_STARTS):
        raise PipelineError(f"{path} is an Excel or ZIP file, in spite of its name. Save the table as CSV.")
    text, notes = decode_text(data, path)
    if not text.strip():
        raise PipelineError(f"{path} is empty. {first_line}")
    text, separator = _take_separator_line(text)
    return _parse(text, separator or _find_separator(text), path), notes


def _take_separator_line(text: str) -> tuple[str, str]:
    """Return a text whose first line is blank if Excel wrote sep=; there, and the separator, "" where it did not."""
    match = re.match(r"sep=(.)(?=\s*?[\r\n])", text, re.IGNORECASE)
    return (text[match.end() :], match[1]) if match else (text, "")


def _find_separator(text: str) -> str:
    """Return the separator with which the first line has the columns that are needed, or else the most columns."""
    first = next(line for line in text.splitlines() if line.strip())

    def fitness(separator: str) -> tuple[bool, int]:
        names = [_column(cell) for cell in first.split(separator)]
        return "path" in names and not {"label", "labels"}.isdisjoint(names), len(names)

    return max(SEPARATORS, key=fitness)


def _column(cell: str) -> str:
    """Return the name of a column: without quotes and spaces, and in lower case if it is one that the program reads."""
    name = cell.replace("\ufeff", "").strip().strip('"').strip()
    return name.lower() if name.lower() in RESERVED_COLUMNS else name


def _parse(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise PipelineError(
            f"{path}, line {reader.line_num}: not a valid CSV file ({error}). Look for a quotation mark without its "
            "pair."
        ) from error


def _read_header(cells: Sequence[str], path: Path, labelled: bool) -> list[str]:
    names = [_column(cell) for cell in cells]
    while names and not names[-1]:
        names.pop()
    if {"label", "labels"} <= set(names):
        raise PipelineError(f"{path} has both columns 'label' and 'labels'. Take one of them out.")
    for name in ("path", "labels" if "labels" in names else "label")[: 2 if labelled else 1]:
        if name not in names:
            shown = ", ".join(map(repr, names))[:200] or "none"
            raise PipelineError(f"{path} lacks the column {name!r}; its columns are: {shown}. {FIRST_LINE}")
    for name in names:
        if name and names.count(name) > 1:
            raise PipelineError(f"{path} has two columns {name!r}. Take one of them out.")
    return names


def _named(cells: Sequence[str], header: Sequence[str], path: Path, line: int) -> dict[str, str]:
    if any(cell.strip() for cell in cells[len(header) :]):
        raise PipelineError(
            f"{path}, line {line}: {len(cells)} cells where the first line has {len(header)}. Put quotation marks "
            "around cells that contain the separator."
        )
    return dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=False))
