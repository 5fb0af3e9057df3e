"""Random changes to folders and CSV files: never a traceback, and never a file that is lost without being named."""

from __future__ import annotations

import csv
import os
import random
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, write_photos

Run = Callable[..., Outcome]
Change = Callable[[Path, random.Random], None]

NAMES = (
    *("train", "Training", "val", "test", "Testing", "eval", "a", "A", "b", "cat ", "caf\u00e9", "cafe\u0301", " "),
    *("@eaDir", "__MACOSX", ".hidden", "Thumbs.db", "a;b", "x,y", 'q"uote', "new\nline", "\u202e", "-x", "~", "$HOME"),
    *(os.fsdecode(b"caf\xe9"), os.fsdecode(b"\x81\x8d"), "n" * 200, "#1", "%s", "{}", "[a]", "images", "\ufeff"),
)
CELLS = (*NAMES, "", "NaN", "0", "photo.png", "../photos/red/00.png", "~/x", "~nobody/x", "C:\\x.png", "cat;dog", "\0")


def pick(root: Path, rng: random.Random, folders: bool) -> Path | None:
    """Return a random file or folder."""
    paths = [path for path in root.rglob("*") if (path.is_dir() if folders else path.is_file())]
    return rng.choice(sorted(path for path in paths if not path.is_symlink()) or [None])


def rename_folder(root: Path, rng: random.Random) -> None:
    if (folder := pick(root, rng, folders=True)) and not (target := folder.with_name(rng.choice(NAMES))).exists():
        folder.rename(target)


def rename_file(root: Path, rng: random.Random) -> None:
    if (file := pick(root, rng, folders=False)) and not (target := file.with_name(rng.choice(NAMES))).exists():
        file.rename(target)


def move_file_up(root: Path, rng: random.Random) -> None:
    if (file := pick(root, rng, folders=False)) and file.parent != root:
        file.rename(file.parent.parent / f"{rng.random()}.png")


def nest(root: Path, rng: random.Random) -> None:
    if folder := pick(root, rng, folders=True):
        inside = folder / rng.choice(NAMES)
        if not inside.exists():
            inside.mkdir()
            for path in sorted(folder.iterdir())[: rng.randrange(20)]:
                if path != inside:
                    path.rename(inside / path.name)


def copy_folder(root: Path, rng: random.Random) -> None:
    folder = pick(root, rng, folders=True)
    if folder and not (target := folder.parent / rng.choice(NAMES)).exists():
        shutil.copytree(folder, target, symlinks=True, ignore=lambda parent, names: {"pipe"} & set(names))


def link(root: Path, rng: random.Random) -> None:
    folder, target = pick(root, rng, folders=True), pick(root, rng, folders=rng.random() < 0.7) or root
    path = (folder or root) / f"link {rng.random()}"
    path.symlink_to(rng.choice([target, root, path, root / "nowhere"]))


def damage(root: Path, rng: random.Random) -> None:
    if file := pick(root, rng, folders=False):
        data = file.read_bytes()
        file.write_bytes(rng.choice([b"", data[: len(data) // 2], b"text", bytes(rng.randbytes(50))]))


def remove(root: Path, rng: random.Random) -> None:
    if path := pick(root, rng, folders=rng.random() < 0.3):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def pipe(root: Path, rng: random.Random) -> None:
    path = (pick(root, rng, folders=True) or root) / "pipe"
    if not path.exists():
        os.mkfifo(path)


FOLDER_CHANGES: tuple[Change, ...] = (
    *(rename_folder, rename_folder, rename_file, move_file_up, nest, nest, copy_folder, link, link, damage, remove),
    pipe,
)


def entries(root: Path) -> set[str]:
    """Return all files that a person sees below a folder, links to files included, links to folders not followed."""
    return {
        os.path.join(parent, name)  # noqa: PTH118 - names that are not text
        for parent, folders, files in os.walk(root)
        for name in (*files, *(f for f in folders if os.path.islink(os.path.join(parent, f))))  # noqa: PTH114, PTH118
    }


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def one_sentence(outcome: Outcome) -> None:
    """After the line that says what is prepared comes one sentence, and perhaps the command that fixes it."""
    assert outcome.code in (0, 2), outcome
    if outcome.code == 2:
        address, error = outcome.err.split("\n", 1)
        sentence, _, command = error.partition(" Run:\n  python -m pipeline.")
        assert address.startswith("dataset: ") and "\n" not in command.strip(), outcome.err
        assert sentence.startswith("Error: ") and sentence.strip().endswith("."), outcome.err


def all_named(root: Path, out: Path) -> None:
    """Every file is in the manifest, in bad.csv, or in skipped.csv, itself or its folder."""
    named = {str(out / row["path"]) for row in read(out / "manifest.csv")}
    named |= {row["path"] for table in ("bad.csv", "skipped.csv") for row in read(out / table)}
    for file in entries(root):
        path = Path(file)
        inside = path.is_dir() and any(name.startswith(f"{file}{os.sep}") for name in named)
        # A link to a folder that holds no file of its own has nothing that could be lost.
        empty = path.is_dir() and not any(entry for entry in os.walk(path) if entry[2])
        assert inside or empty or {str(each) for each in (path, *path.parents)} & named, file


def mutate_folder(root: Path, rng: random.Random) -> None:
    write_photos(root, dict.fromkeys(("red", "green", "blue")[: rng.choice((2, 3))], 3))
    if rng.random() < 0.4:
        for split in ("train", "test"):
            shutil.copytree(root, root.parent / f"{root.name}-splits" / split)
        shutil.rmtree(root)
        (root.parent / f"{root.name}-splits").rename(root)
    for _ in range(rng.randint(1, 5)):
        rng.choice(FOLDER_CHANGES)(root, rng)


@pytest.mark.slow
def test_no_change_of_a_folder_loses_files_unnamed_or_ends_in_a_traceback(run: Run, tmp_path: Path) -> None:
    codes = []
    for seed in range(400):
        rng, root, out = random.Random(seed), tmp_path / "set", tmp_path / "out"
        mutate_folder(root, rng)
        outcome = run("prepare", "--dataset", root, "--out", out, "--test", rng.choice((0, 0.25)))
        one_sentence(outcome)
        codes.append(outcome.code)
        if outcome.code == 0:
            all_named(root, out)
        for folder in (root, out):
            shutil.rmtree(folder, ignore_errors=True)
    assert codes.count(0) > 100 and codes.count(2) > 50


def change_text(lines: list[list[str]], rng: random.Random) -> None:
    """Change cells, rows or columns of a CSV file."""
    kind, row = rng.randrange(8), rng.choice(lines)
    if kind < 3 and row:
        row[rng.randrange(len(row))] = rng.choice(CELLS)
    elif kind == 3:
        lines.insert(rng.randrange(len(lines) + 1), list(row))
    elif kind == 4:
        lines.remove(row)
    elif kind == 5:
        row.insert(rng.randrange(len(row) + 1), rng.choice(CELLS))
    elif kind == 6 and row:
        row.pop()
    else:
        lines[0] = [rng.choice((cell, cell.upper(), f" {cell} ", rng.choice(CELLS))) for cell in lines[0]]
    if not lines:
        lines.append([])


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change the encoding or single bytes of a file."""
    text = data.decode("utf-8", "surrogateescape")
    kind = rng.randrange(8)
    if kind < 4:
        encoding = ("utf-16", "utf-8-sig", "cp1252", "utf-16-le")[kind]
        place = rng.randrange(len(text) + 1)
        return f"{text[:place]}{rng.choice(('', '', chr(0)))}{text[place:]}".encode(encoding, "ignore")
    if kind < 7:
        starts = [place + 1 for place, byte in enumerate(data) if chr(byte) in ",;\t\n"] or [0]
        place = rng.choice((rng.choice(starts), rng.randrange(len(data) + 1)))
        return data[:place] + rng.choice((b'"', b"\n", b"\0", rng.randbytes(rng.randint(1, 3)))) + data[place:]
    return unicodedata.normalize("NFD", text).encode("utf-8", "surrogateescape")


@pytest.mark.slow
def test_no_change_of_a_csv_loses_rows_unnamed_or_ends_in_a_traceback(run: Run, photos: Path) -> None:
    codes, table, out = [], photos / "list.csv", photos.parent / "out"
    for seed in range(600):
        rng = random.Random(seed)
        header = [["path", "label"], ["path", "labels"], ["path", "label", "split", "who"]][rng.randrange(3)]
        rows = [
            [f"{c}/{n:02}.png", c, rng.choice(("train", "test")), f"p{n}"] for c in ("red", "blue") for n in range(4)
        ]
        lines = [header, *(row[: len(header)] for row in rows)]
        for _ in range(rng.randint(0, 3)):
            change_text(lines, rng)
        with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, delimiter=rng.choice(",;\t")).writerows(lines)
        if rng.random() < 0.3:
            table.write_bytes(change_bytes(table.read_bytes(), rng))
        outcome = run("prepare", "--dataset", table, "--out", out, "--test", rng.choice((0, 0.25)))
        one_sentence(outcome)
        codes.append(outcome.code)
        if outcome.code == 0:
            written = "".join(
                (out / name).read_text("utf-8", "surrogateescape") for name in ("manifest.csv", "bad.csv")
            )
            text = table.read_bytes().replace(b"\0", b"").decode("utf-8", "replace")
            assert all(row[0] in written for row in rows if row[0] in text), seed
        shutil.rmtree(out, ignore_errors=True)
    assert codes.count(0) > 200 and codes.count(2) > 100
