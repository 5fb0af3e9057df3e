"""One set with all that spoils figures, from prepare to predict: each figure is right, and nothing is lost unnamed.

What an image shows tells its class: how light it is, or which way its stripes run. Reading 12 bits as 16 turns light
into dark, and ignoring the orientation turns the stripes, so that every such mistake shows in the scores.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import PAGE, encode_image, read_page_data
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from pipeline.images.decoding import BadImage, decode

Run = Callable[..., Outcome]
ROWS = unicodedata.normalize("NFD", "rayé")
LIGHT, DARK, STRIPES, COLUMNS = "light", "dark", unicodedata.normalize("NFC", ROWS), "columns"
N_TRAIN, N_TEST = 8, 5
ADDRESS = ("--dataset", "brain", "--layer", "pool3", "--model", "svm")
JUNK = b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0\x1a\1\5\0\1\0\0\0\x26\0\0\0\0\0\0\0" + bytes(
    [72, *[0] * 7]
)
"""EXIF data: orientation 6 beside a resolution of 72/0."""


def pixels(name: str, seed: int) -> np.ndarray:
    """Return (64, 64) uint8 that show a class, with noise."""
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    stripes = 120 + 80 * np.sign(np.sin({COLUMNS: across, STRIPES: down}.get(name, across) * np.pi / 4))
    grey = {LIGHT: 210, DARK: 12}.get(name, stripes)
    return np.clip(grey + np.random.default_rng(seed).normal(0, 12, (64, 64)), 0, 255).astype(np.uint8)


def deep_tiff(grey: np.ndarray) -> bytes:
    """Return a TIFF file of 12-bit values in 16 bits."""
    return encode_image(Image.fromarray(np.round(grey / 255 * 4095).astype(np.uint16)), "TIFF")


def turned_jpeg(grey: np.ndarray) -> bytes:
    """Return a JPEG file that is stored lying on its side, with its orientation beside junk."""
    data = encode_image(Image.fromarray(np.rot90(grey)), "JPEG", quality=95)
    return data[:20] + b"\xff\xe1" + (len(JUNK) + 2).to_bytes(2, "big") + JUNK + data[20:]


def plain_png(grey: np.ndarray) -> bytes:
    return encode_image(Image.fromarray(grey), "PNG")


FORMS = {LIGHT: deep_tiff, DARK: plain_png, STRIPES: turned_jpeg, COLUMNS: turned_jpeg}
SUFFIXES = {deep_tiff: "tif", turned_jpeg: "jpg", plain_png: "png"}


def heic(grey: np.ndarray) -> bytes:
    """Return a HEIC file, or what begins like one where nothing here can write it."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        return encode_image(Image.fromarray(grey).convert("RGB"), "HEIF", quality=90)
    except (ImportError, KeyError, RuntimeError):
        return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def write_class(folder: Path, name: str, count: int, seed: int, forms: dict[str, Callable[..., bytes]]) -> None:
    """Write images of a class, every second one in its odd form, under names that are not composed."""
    folder.mkdir(parents=True)
    for number in range(count):
        form = forms.get(name, heic) if number % 2 == 0 or name not in forms else plain_png
        path = folder / unicodedata.normalize("NFD", f"thé {number}.{SUFFIXES.get(form, 'heic')}")
        path.write_bytes(form(pixels(name, seed + number)))


@pytest.fixture
def brain(project: Path) -> Path:
    """A poisoned set; see the constants for the classes that it shows."""
    root = project / "brain"
    for split, count, seed in (("Training", N_TRAIN, 0), ("Testing", N_TEST, 1000)):
        for place, name in enumerate((LIGHT, DARK, STRIPES, COLUMNS, "heic")):
            odd = unicodedata.normalize("NFD", name) if split == "Training" else name
            write_class(root / split / odd, name, count, seed + 100 * place, FORMS)
    training, testing = root / "Training", root / "Testing"
    shutil.copy(sorted((training / LIGHT).iterdir())[0], training / DARK / "wrong.tif")
    shutil.copy(sorted((training / ROWS).iterdir())[0], testing / COLUMNS / "wrong.jpg")
    (training / LIGHT / "@eaDir").mkdir()
    shutil.copy(sorted((training / DARK).iterdir())[0], training / LIGHT / "@eaDir" / "thumb.png")
    (testing / DARK / "cut.png").write_bytes(plain_png(pixels(DARK, 1))[:200])
    (testing / DARK / "empty.jpg").write_bytes(b"")
    shutil.copy(sorted((training / DARK).iterdir())[0], training / "loose.png")
    (root / "README.txt").write_text("mri")
    return root


def rows(path: Path | str) -> list[dict[str, str]]:
    text = path if isinstance(path, str) else path.read_text("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def shown(path: Path) -> str:
    """Return the class that an image shows, whatever its label is: here, that of the folder that it was copied from."""
    if path.name == "wrong.jpg":
        return STRIPES
    return LIGHT if path.name == "wrong.tif" else unicodedata.normalize("NFC", path.parent.name)


def files_of(root: Path) -> Iterator[Path]:
    return (Path(parent, name) for parent, _, names in os.walk(root) for name in names)


def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.slow
def test_every_figure_of_a_poisoned_set_is_right(run: Run, brain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_heif(monkeypatch)
    prepared = run("prepare", "--dataset", brain)
    assert prepared.code == 0, prepared.err
    for words in (
        f"brain: 54 images, 4 classes ({4 * N_TRAIN + 1} train, {4 * N_TEST + 1} test)",
        f"{len(list(files_of(brain)))}  files found",
        "15  bad files skipped",
        "13  skipped, a HEIC file, which the package pillow-heif reads",
        "1  skipped, damaged or truncated",
        "1  skipped, the file is empty",
        "1  skipped, hidden or system file",
        "1  skipped, lies in no class folder",
        "1  skipped, lies beside the class folders",
        "1  classes lost, since none of their files can be used: 'heic'",
        "2  of these are copies of others",
        "2  of the copies have another label",
        "1  images in several splits",
        "12-bit images: 4095 is white",
    ):
        assert words in prepared.out, (words, prepared.out)
    named = {row["path"] for name in ("manifest", "bad", "skipped") for row in rows(Path(f"data/brain/{name}.csv"))}
    assert all(str(file) in named or str(file.parent) in named for file in files_of(brain))

    assert run("extract", *ADDRESS[:4]).code == 0
    trained = run("classify", *ADDRESS, "--folds", 2, "--grid", "{standard: {C: [0.001]}}", "--nested")
    assert trained.code == 0 and f"{4 * N_TRAIN + 1} images" in trained.out, trained
    # One training image is labelled dark and shows light; it is a copy of another, with which it counts once.
    nested = f"n = {4 * N_TRAIN} ({4 * N_TRAIN + 1} images"
    assert f"{1 - 1 / (4 * N_TRAIN + 1):.4f}" in trained.out and nested in trained.out, trained.out

    scored = run("evaluate", *ADDRESS)
    n = 4 * N_TEST + 1
    assert scored.code == 0 and f"top-1 {1 - 1 / n:.4f}" in scored.out and f"n = {n}" in scored.out, scored.out
    folder = Path("reports/brain/tinyvgg/pool3-svm")
    predictions = rows(folder / "predictions.csv")
    assert len(predictions) == n and all(row["predicted"] == shown(Path(row["path"])) for row in predictions)
    labels, predicted = [row["label"] for row in predictions], [row["predicted"] for row in predictions]
    recalls = {row["class"]: float(row["recall"]) for row in rows(folder / "per_class.csv")}
    assert recalls == {LIGHT: 1, DARK: 1, STRIPES: 1, COLUMNS: pytest.approx(N_TEST / (N_TEST + 1), abs=1e-3)}

    reported = run("report")
    assert reported.code == 0 and f"{1 - 1 / n:.4f}" in reported.out
    (experiment,) = read_page_data()["experiments"]
    assert experiment["n"] == n and experiment["top1"] == pytest.approx(1 - 1 / n)
    assert experiment["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    page = PAGE.read_text(encoding="utf-8")
    assert all(name in page for name in ("wrong.jpg", "cut.png", "empty.jpg", "heic"))

    answered = run("predict", *ADDRESS, brain / "Testing")
    named_classes = {row["path"]: row["class"] for row in rows(answered.out)}
    assert named_classes == {row["path"]: row["predicted"] for row in predictions}
    for file in files_of(brain / "Testing"):
        assert str(file) in named_classes or repr(str(file)) in answered.err
    assert f"{n} images, {N_TEST + 2} skipped" in answered.err


def test_a_csv_of_cp1252_gives_the_same_set(run: Run, brain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_heif(monkeypatch)
    splits = {"Training": "Train", "Testing": "TEST"}
    lines = ["Path;Label;Split"]
    for file in sorted(files_of(brain)):
        split, *inner = file.relative_to(brain).parts
        if len(inner) == 2:
            path = unicodedata.normalize("NFC", "\\".join((split, *inner)))
            lines.append(f"{path}; {unicodedata.normalize('NFC', inner[0])} ;{splits[split]}")
    (brain / "list.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    outcome = run("prepare", "--dataset", brain / "list.csv", "--out", "data/list")
    assert outcome.code == 0, outcome.err
    assert "read as Windows-1252" in outcome.out and "54 images" in outcome.out
    assert run("prepare", "--dataset", brain, "--out", "data/folder").code == 0
    assert Path("data/list/manifest.csv").read_bytes() == Path("data/folder/manifest.csv").read_bytes()


def test_the_class_of_heic_files_is_there_with_a_decoder(run: Run, brain: Path) -> None:
    pytest.importorskip("pillow_heif")
    try:
        decode(next((brain / "Testing" / "heic").iterdir()).read_bytes())
    except BadImage:
        pytest.skip("this pillow-heif cannot write HEIC files")
    outcome = run("prepare", "--dataset", brain)
    assert f"brain: {54 + N_TRAIN + N_TEST} images, 5 classes" in outcome.out and "classes lost" not in outcome.out
    counts = Counter(row["label"] for row in rows(Path("data/brain/manifest.csv")))
    assert counts["heic"] == N_TRAIN + N_TEST
