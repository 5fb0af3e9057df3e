"""CSV files of images, as people have them: any usual encoding, separator and spelling of the header."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.addresses import without_secrets
from pipeline.data.doubts import doubts_of_cells, doubts_of_names
from pipeline.data.listing import UNLABELLED_NAMES, Listing, clean_name, is_text, split_of
from pipeline.data.lookup import FileFinder, exists
from pipeline.data.manifest import PARTS, RESERVED_COLUMNS, UNLABELLED, ListedImage, parse_labels
from pipeline.data.remote_rows import FetchedCell
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


Fetch = Callable[[Sequence[str]], Mapping[str, FetchedCell]]
"""A function that brings the files which some cells name, and tells what became of those that are elsewhere."""


def fetch_nothing(cells: Sequence[str]) -> Mapping[str, FetchedCell]:
    """Take all cells for files on this disk."""
    return {}


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


def list_csv(path: Path, fetch: Fetch = fetch_nothing, tasks: Sequence[str] = ()) -> Listing:
    """List the images of a CSV file with the columns path, label or labels and, if it likes, split.

    Relative paths start at its folder. A column `labels` names any number of classes per image, with semicolons between
    them; so do several rows with the same path and different labels. Other columns are kept as metadata. An empty
    label means that the image has none.

    fetch: brings the files that are elsewhere; tasks: columns of labels, of which the first is read as label, where an
    image that has any of them is listed as labelled.
    """
    rows, notes = read_table(path, tasks=tasks)
    named = [_with_label(row, tasks) for row in rows] if tasks else rows
    return _list_fetched(named, notes, path, fetch, partial(_read_row, tasks=tasks or ("label",)))


def _with_label(row: Row, tasks: Sequence[str]) -> Row:
    """Return a row whose label is that of the first task."""
    cells = {name: value for name, value in row.cells.items() if name != "labels"}
    return replace(row, cells={**cells, "label": row.cells[tasks[0]]})


def list_unlabelled_csv(path: Path, fetch: Fetch = fetch_nothing) -> Listing:
    """List the images of a CSV file with the column path as images without labels; other columns are metadata."""
    rows, notes = read_table(path, labelled=False)
    return _list_fetched(rows, notes, path, fetch, _read_unlabelled_row)


def _list_fetched(
    rows: Sequence[Row],
    notes: Sequence[str],
    path: Path,
    fetch: Fetch,
    read: Callable[[Row, Path, FileFinder], ListedImage],
) -> Listing:
    """List the images of rows; those that cannot be fetched are bad files."""
    fetched = fetch([row.cells["path"] for row in rows])
    finder = FileFinder(path.parent, {cell: file.path for cell, file in fetched.items()})
    images = [_with_url(read(row, path, finder), fetched.get(row.cells["path"])) for row in rows]
    failed = {file.path: (without_secrets(file.url), file.reason) for file in fetched.values() if file.reason}
    if failed and all(image.path in failed for image in images):
        url, reason = next(iter(failed.values()))
        raise PipelineError(f"None of the {len(failed)} files of {path} can be fetched, the first is {url}: {reason}.")
    listing = _list_rows([image for image in images if image.path not in failed], notes, path)
    offered, there = ({name for image in some for name in image.classes} for some in (images, listing.images))
    return replace(listing, bad=list(failed.values()), empty=sorted(offered - there))


def _with_url(image: ListedImage, fetched: FetchedCell | None) -> ListedImage:
    """Return an image with its address in a column."""
    return replace(image, metadata={"url": without_secrets(fetched.url), **image.metadata}) if fetched else image


def _list_rows(images: Sequence[ListedImage], notes: Sequence[str], path: Path) -> Listing:
    if len({image.split is None for image in images if image.split != UNLABELLED}) > 1:
        raise PipelineError(f"{path}: some lines have a split and some have none. Fill in all of them, or none.")
    merged, merge_notes = _merge_rows(images, path)
    if not any(exists(image.path) for image in merged):
        first = merged[0].path
        raise PipelineError(
            f"None of the {len(merged)} files of {path} exists, the first is {str(first)!r}. Relative paths start at "
            f"the folder of the CSV file.{_suffix_hint(first)}"
        )
    doubts = [*doubts_of_names(merged), *doubts_of_cells(merged)]
    return Listing(merged, (), [*notes, *merge_notes, *_unlabelled_notes(merged, path), *doubts])


def _suffix_hint(path: Path) -> str:
    """Say that a file is there under its name with a suffix, if that is so."""
    found = next((file for file in _siblings(path) if file.stem == path.name), None)
    return f" There is {str(found)!r}: write the names with their suffix." if found else ""


def _siblings(path: Path) -> list[Path]:
    return sorted(path.parent.iterdir()) if exists(path.parent) and path.parent.is_dir() else []


def _read_row(row: Row, path: Path, finder: FileFinder, *, tasks: Sequence[str]) -> ListedImage:
    multi_label = "labels" in row.cells
    split = _read_split(row.cells.get("split", ""), f"{path}, line {row.line}")
    if split == UNLABELLED or not (multi_label or any(clean_name(row.cells[name]) for name in tasks)):
        return _read_unlabelled_row(row, path, finder)
    names = [clean_name(name) for name in parse_labels(row.cells["labels"])] if multi_label else []
    label = ";".join(sorted(set(names))) if multi_label else clean_name(row.cells["label"])
    if not all(is_text(row.cells[name]) for name in row.cells if name in ("label", "labels", *tasks)):
        raise PipelineError(
            f"{path}, line {row.line}: the label is neither valid UTF-8 nor Windows-1252. Save the file as UTF-8."
        )
    return ListedImage(_file_of(row, path, finder), label, split, multi_label, _metadata_of(row))


def _read_unlabelled_row(row: Row, path: Path, finder: FileFinder) -> ListedImage:
    return ListedImage(_file_of(row, path, finder), "", UNLABELLED, "labels" in row.cells, _metadata_of(row))


def _file_of(row: Row, path: Path, finder: FileFinder) -> Path:
    where = f"{path}, line {row.line}"
    if not row.cells["path"].strip():
        raise PipelineError(f"{where}: the path is missing. Fill it in, or drop the line.")
    if "\0" in row.cells["path"]:
        raise PipelineError(f"{where}: the path contains a zero byte. Save the file as UTF-8.")
    return finder.find(row.cells["path"])


def _metadata_of(row: Row) -> dict[str, str]:
    return {name: value for name, value in row.cells.items() if name and name not in RESERVED_COLUMNS}


def _read_split(name: str, where: str) -> str | None:
    if not name.strip():
        return None
    if name.strip().lower() in UNLABELLED_NAMES:
        return UNLABELLED
    if (split := split_of(name)) is None:
        raise PipelineError(f"{where}: unknown split {name!r}. Choose from: {', '.join(PARTS)}.")
    return split


def _merge_rows(images: Sequence[ListedImage], path: Path) -> tuple[list[ListedImage], list[str]]:
    """Return one image for each path, with the labels of all its rows, and notes on what was merged."""
    rows: dict[str, list[ListedImage]] = {}
    for image in images:
        rows.setdefault(os.path.normpath(image.path.absolute()), []).append(image)
    several = [same for same in rows.values() if len(same) > 1]
    for same in several:
        _validate_same_split(same, path)
    different = [same for same in several if len({image.label for image in same}) > 1]
    notes = _merge_notes(several, different, len(rows), path)
    if not different:
        return [same[0] for same in rows.values()], notes
    _validate_no_semicolons(images, path)
    return [replace(same[0], label=_joined(same), multi_label=True) for same in rows.values()], notes


def _joined(same: Sequence[ListedImage]) -> str:
    return ";".join(sorted({name for image in same for name in image.classes}))


def _validate_same_split(same: Sequence[ListedImage], path: Path) -> None:
    splits = sorted({str(image.split) for image in same})
    if len(splits) > 1 and UNLABELLED in splits:
        raise PipelineError(
            f"{path} lists {str(same[0].path)!r} with a label and without one. Take one of these lines out."
        )
    if len(splits) > 1:
        raise PipelineError(
            f"{path} lists {str(same[0].path)!r} in the splits {' and '.join(splits)}. Take it out of one of them."
        )


def _validate_no_semicolons(images: Sequence[ListedImage], path: Path) -> None:
    """Refuse class names with semicolons where these must separate the labels of an image."""
    for image in images:
        if not image.multi_label and ";" in image.label:
            raise PipelineError(
                f"{path} has several rows per image, and the label {image.label!r} has a semicolon, which separates "
                "labels. Rename that class."
            )


def _merge_notes(
    several: Sequence[Sequence[ListedImage]], different: Sequence[Sequence[ListedImage]], count: int, path: Path
) -> list[str]:
    repeated = sum(len(same) - len({image.label for image in same}) for same in several)
    metadata = [same for same in several if any(image.metadata != same[0].metadata for image in same)]
    notes = []
    if different:
        names = ", ".join(sorted({image.label for image in different[0]}))
        notes.append(
            f"{len(different)} of {count} files of {path} have rows with different labels, the first is "
            f"{str(different[0][0].path)!r} ({names}): they are read as several labels per image. If each file should "
            "have one label, correct these rows."
        )
    if repeated:
        notes.append(f"{repeated} rows of {path} repeat the path and label of an earlier row, and count once.")
    if metadata:
        notes.append(
            f"{len(metadata)} files of {path} have rows with different values in other columns, the first is "
            f"{str(metadata[0][0].path)!r}: the values of the first row are kept."
        )
    return notes


def _unlabelled_notes(images: Sequence[ListedImage], path: Path) -> list[str]:
    unlabelled = [image for image in images if image.split == UNLABELLED]
    if not unlabelled:
        return []
    return [
        f"{len(unlabelled)} of {len(images)} files of {path} have no label, the first is {str(unlabelled[0].path)!r}: "
        "they get codes, but take no part in training and scores."
    ]
