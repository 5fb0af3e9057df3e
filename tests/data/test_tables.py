"""CSV files as people have them: encodings, separators, headers, paths; each mistake is one sentence."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.data.listing import Listing
from pipeline.data.lookup import FileFinder
from pipeline.data.tables import list_csv

HEADER = "path,label\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(folder: Path, content: str | bytes) -> Listing:
    (folder / "list.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return list_csv(folder / "list.csv")


def labels(listing: Listing) -> dict[str, str]:
    return {image.path.name: image.label for image in listing.images}


CAFE = "path,label\na.png,café\nb.png,thé\n"


@pytest.mark.parametrize(
    "data",
    [
        CAFE.encode(),
        CAFE.encode("utf-8-sig"),
        CAFE.encode("utf-16"),
        CAFE.encode("utf-16-le"),
        CAFE.encode("utf-16-be"),
        CAFE.encode("utf-32"),
        CAFE.encode("cp1252"),
        CAFE.replace("\n", "\r\n").encode("cp1252"),
        CAFE.replace(",", ";").encode("cp1252"),
        CAFE.replace(",", "\t").encode("utf-16"),
        CAFE.replace("\n", "\r").encode("cp1252"),
        ("sep=;\r\n" + CAFE.replace(",", ";")).encode("cp1252"),
        CAFE.replace(",", " | ").encode(),
        unicodedata.normalize("NFD", CAFE).encode(),
        b"\xef\xbb\xbf" + b'"Path" , " Label "\n\n' + 'a.png, "café "\n b.png ,thé\n'.encode(),
    ],
)
def test_encodings_separators_and_headers(folder: Path, data: bytes) -> None:
    if b'" ,' in data:
        data = data.replace(b'" ,', b'",')
    assert labels(listed(folder, data)) == {"a.png": "café", "b.png": "thé"}


def test_what_was_guessed_is_said(folder: Path) -> None:
    assert (
        "2 of its lines were read as Windows-1252, the first is 'a.png,café'"
        in listed(folder, CAFE.replace("\n", "\r").encode("cp1252")).notes[0]
    )
    assert not listed(folder, CAFE).notes
    mixed = CAFE.encode() + "c.png,rosé\n".encode("cp1252")
    assert labels(listed(folder, mixed)) == {"a.png": "café", "b.png": "thé", "c.png": "rosé"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("is empty", "path,label")),
        (" \n\n", ("is empty",)),
        (",,,\n", ("lacks the column 'path'",)),
        ("path,label\n", ("lists no images",)),
        ("file,label\na.png,x\n", ("lacks the column 'path'", "'file', 'label'")),
        ("path,label,labels\na.png,x,y\n", ("both columns",)),
        ("path,label,Label\na.png,x,y\n", ("two columns 'label'",)),
        ("path,label\na.png,x,y\n", ("line 2", "3 cells where the first line has 2")),
        ('path,label\n"a.png,x\nb.png,y\n', ("line 3", "quotation mark")),
        (b"path,label\na.png,\x81\x8d\n", ("line 2", "neither valid UTF-8 nor Windows-1252")),
        ("path,label\na.png,x\nb\0.png,y\n".encode("utf-16"), ("line 3", "zero byte")),
        (b"\xff\xfep\0a\0t", ("not valid UTF-16-LE",)),
        (bytes(range(256)), ()),
        ("path,label\na.png,x\n,y\n", ("line 3", "missing")),
        ("path,label\nnone/a.png,x\nnone/b.png,y\n", ("None of the 2 files", "none/a.png", "start at the folder")),
        ("path,label\na,x\nb,y\n", ("None of the 2 files", "There is", "a.png", "with their suffix")),
        (b"PK\3\4" + bytes(100), ("is an Excel or ZIP file", "Save the table as CSV")),
        ("path,label,split\na.png,x,train\na.png,y,test\n", ("in the splits test and train",)),
        ("path,label,split\na.png,x,holdout\n", ("line 2", "'holdout'", "train, val, test")),
        ("path,label\na.png,x;y\na.png,z\n", ("'x;y' has a semicolon",)),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, content: str | bytes, words: tuple[str, ...]) -> None:
    with pytest.raises(errors.PipelineError) as refused:
        listed(folder, content)
    for word in words:
        assert word in str(refused.value)


def test_split_names_of_any_usual_kind(folder: Path) -> None:
    content = "PATH,LABEL,SPLIT,Patient\na.png,x,Training,1\nb.png,y, DEV ,2\nc.png,x,Testing,3\n"
    images = listed(folder, content).images
    assert [image.split for image in images] == ["train", "val", "test"]
    assert [image.metadata for image in images] == [{"Patient": "1"}, {"Patient": "2"}, {"Patient": "3"}]


def test_one_row_per_label_is_several_labels_per_image(folder: Path) -> None:
    listing = listed(folder, "path,label\na.png,cat\nb.png,dog\na.png,dog\n./a.png,cat\n")
    assert [(image.path.name, image.label, image.multi_label) for image in listing.images] == [
        ("a.png", "cat;dog", True),
        ("b.png", "dog", True),
    ]
    assert "1 of 2 files" in listing.notes[0] and "several labels per image" in listing.notes[0]
    assert "1 rows" in listing.notes[1] and "count once" in listing.notes[1]


def test_equal_rows_count_once_and_keep_the_single_label(folder: Path) -> None:
    listing = listed(folder, "path,label,who\na.png,x,1\na.png,x,2\nb.png,y,1\n")
    assert [(image.path.name, image.label, image.multi_label) for image in listing.images] == [
        ("a.png", "x", False),
        ("b.png", "y", False),
    ]
    assert "repeat the path and label" in listing.notes[0] and "first row are kept" in listing.notes[1]


def test_a_column_of_labels_has_them_with_semicolons_between(folder: Path) -> None:
    listing = listed(folder, "path,labels\na.png,dog; cat ;dog\nb.png,\n")
    assert [(image.label, image.classes) for image in listing.images] == [("cat;dog", ["cat", "dog"]), ("", [])]
    assert "one class" in listed(folder, "path,label\na.png,dog;cat\nb.png,dog\n").notes[0]


def test_classes_that_differ_by_case_are_warned_of(folder: Path) -> None:
    assert "'Cat', 'cat' differ only by case" in listed(folder, "path,label\na.png,cat\nb.png,Cat\n").notes[0]


def test_paths_are_found_as_people_write_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    names = [unicodedata.normalize("NFD", "é.png"), os.fsdecode(b"\xfc.png"), " space.png", "~tilde.png"]
    (folder / "sub").mkdir()
    for name in (*names, "sub/x.png"):
        (folder / name).write_bytes(b"x")
    find = FileFinder(folder).find
    assert find("é.png").name == names[0] and find("ü.png").name == names[1]
    assert find(" space.png").exists() and find(" a.png ") == folder / "a.png"
    assert FileFinder(folder / "sub").find("~/a.png") == find(str(folder / "a.png")) == folder / "a.png"
    assert find("sub\\x.png") == folder / "sub" / "x.png"
    assert find("~tilde.png").exists() and find("~nobody-here/x.png").name == "x.png"
    assert find("x" * 5000).name == "x" * 5000
    assert find("\u732ba.png").name == "\u732ba.png"  # not a.png, which is another image


def test_folders_and_files_may_be_composed_each_in_its_own_way(folder: Path) -> None:
    path = folder / "café" / unicodedata.normalize("NFD", "thé") / os.fsdecode(b"\xfc.png")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    for form in ("NFC", "NFD"):
        assert FileFinder(folder).find(unicodedata.normalize(form, "café/thé/ü.png")) == path
        assert FileFinder(Path("/")).find(unicodedata.normalize(form, f"{folder}/café/thé/ü.png")) == path


def test_names_that_are_not_utf_8_keep_their_bytes(folder: Path) -> None:
    (folder / os.fsdecode(b"latin-\xe9.png")).write_bytes(b"x")
    for encoding in ("cp1252", "utf-8"):
        (image,) = listed(folder, HEADER.encode() + "latin-é.png,x\n".encode(encoding)).images
        assert os.fsencode(image.path.name) == b"latin-\xe9.png" and image.path.exists()


def test_missing_files_are_left_to_be_named(folder: Path) -> None:
    assert [image.path.exists() for image in listed(folder, HEADER + "a.png,x\ngone.png,y\n").images] == [True, False]
