"""predict: evaluate's answers on the same images, bad files named and passed over, data alone on stdout."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Outcome, spawn, write_photos

from pipeline import predict
from pipeline.classifiers import persistence
from pipeline.data.local import NewImage
from pipeline.data.manifest import read_manifest
from pipeline.extraction.engine import Engine
from pipeline.networks import backbones
from pipeline.networks.frozen import rebuild_network

Run = Callable[..., Outcome]
MODELS = Path("models/photos/tinyvgg")


@pytest.fixture
def trained(run: Run, photos: Path) -> Path:
    """The project's folder with `photos` prepared and both models trained and evaluated."""
    assert run("prepare", "--dataset", photos).code == 0
    assert run("extract", "--dataset", "photos", "--layer", "pool3", "fc7", "--pool", "max").code == 0
    for layer, model in (("fc7", "svm"), ("fc7", "softmax"), ("pool3", "svm")):
        address = ("--dataset", "photos", "--layer", layer, "--model", model)
        assert run("classify", *address, "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
        assert run("evaluate", *address).code == 0
    return photos.parent


def rows_of(text: str) -> list[dict[str, str]]:
    """Parse a CSV."""
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(("layer", "model"), [("fc7", "svm"), ("fc7", "softmax"), ("pool3", "svm")])
def test_the_test_images_get_evaluates_predictions(run: Run, trained: Path, layer: str, model: str) -> None:
    report = Path(f"reports/photos/tinyvgg/{layer}-{model}/predictions.csv")
    evaluated = rows_of(report.read_text(encoding="utf-8"))
    paths = [str(Path("data/photos", row["path"])) for row in evaluated]
    outcome = run("predict", "--classifier", MODELS / f"{layer}-{model}.skops", "--batch-size", 2, *paths)
    assert outcome.code == 0 and outcome.err.splitlines()[1:] == [f"{len(paths)} images, 0 skipped"]
    found = rows_of(outcome.out)
    assert [row["path"] for row in found] == paths
    assert [row["class"] for row in found] == [row["predicted"] for row in evaluated]
    if model == "svm":
        for row, expected in zip(found, evaluated, strict=True):
            assert float(row["margin"]) == pytest.approx(float(expected["margin"]), abs=1e-4)


def test_digits_get_evaluates_predictions(run: Run, project: Path) -> None:
    assert run("extract", "--layer", "fc7", "--batch-size", 256).code == 0
    assert run("classify", "--folds", 2, "--layer", "fc7", "--model", "svm", "--grid", "{l2: {C: [10]}}").code == 0
    assert run("evaluate", "--layer", "fc7", "--model", "svm").code == 0
    manifest = read_manifest(Path("data/digits"))
    evaluated = rows_of(Path("reports/digits/tinyvgg/fc7-svm/predictions.csv").read_text(encoding="utf-8"))
    classifier = persistence.load(Path("models/digits/tinyvgg/fc7-svm.skops"))
    paths = [path for path, split in zip(manifest.files(), manifest.splits, strict=True) if split == "test"][::3]
    predictor = predict.with_classifier(classifier, rebuild_network(classifier.spec))
    images = [NewImage(str(path), path) for path in paths]
    results = predict.predict(predictor, Engine(predictor.network, 64), images, top=1, threads=2)
    found = [result.classes[0] for result in results if isinstance(result, predict.Prediction)]
    assert len(found) == 150 and found == [row["predicted"] for row in evaluated[::3]]


def test_json_lines_of_the_best_classes(run: Run, trained: Path) -> None:
    outcome = run("predict", "--classifier", MODELS / "fc7-softmax.skops", "--top", 9, "--format", "json", "photos")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(lines) == 36 and lines[0]["path"] == "photos/blue/00.png"
    for line in lines:
        shares = [entry["probability"] for entry in line["top"]]
        assert {entry["class"] for entry in line["top"]} == {"red", "green", "blue"}
        assert sum(shares) == pytest.approx(1, abs=1e-5) and shares == sorted(shares, reverse=True)


def test_the_classifier_is_found_by_its_address(run: Run, trained: Path) -> None:
    outcome = run("predict", "--dataset", "photos", "--layer", "pool3", "--model", "svm", "photos/red")
    assert outcome.code == 0 and len(rows_of(outcome.out)) == 12


def test_images_in_an_archive_are_named_by_their_place_in_it(run: Run, trained: Path) -> None:
    shutil.make_archive("new", "zip", trained, "photos/red")
    address = ("--dataset", "photos", "--layer", "pool3", "--model", "svm")
    expected = run("predict", *address, "photos/red").out
    outcome = run("predict", *address, "new.zip")
    assert outcome.out == expected.replace("photos/", "new.zip/photos/") and outcome.err.endswith(
        "12 images, 0 skipped\n"
    )
    assert run("predict", *address, "new.zip/photos/red/03.png").out.count("\nnew.zip/photos/red/03.png,1,red") == 1


def test_bad_images_are_named_and_the_rest_goes_on(run: Run, trained: Path) -> None:
    folder = write_photos(trained / "new", {"red": 3}) / "red"
    (folder / "empty.png").write_bytes(b"")
    (folder / ".hidden.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "no\nte.txt").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "00.png").read_bytes()[:300])
    outcome = run("predict", "--classifier", MODELS / "fc7-svm.skops", folder, "missing.png")
    assert outcome.code == 0 and len(rows_of(outcome.out)) == 3
    lines = outcome.err.splitlines()[1:]
    assert len(lines) == 6 and lines[-1] == "3 images, 4 skipped" and "hidden or system file" in outcome.err
    for word in ("empty.png': the file is empty", "cut.png': damaged", "no\\nte.txt'", "'missing.png': unreadable: No"):
        assert any(word in line for line in lines), word


def test_nothing_readable_is_a_mistake(run: Run, trained: Path) -> None:
    outcome = run("predict", "--classifier", MODELS / "fc7-svm.skops", "missing.png")
    assert outcome.code == 2 and outcome.err.splitlines()[-1] == "Error: None of 1 image can be read."
    Path("nothing").mkdir()
    assert "No images" in run("predict", "--classifier", MODELS / "fc7-svm.skops", "nothing").err
    outcome = run("predict", "--classifier", MODELS / "fc7-svm.skops", "--top", 0, "photos")
    assert "--top is '0', but it must be 1 or more" in outcome.err


def test_other_weights_are_refused_and_the_same_ones_elsewhere_are_not(run: Run, trained: Path) -> None:
    classifier = MODELS / "fc7-svm.skops"
    model, _ = backbones.load(backbones.get("tinyvgg"), "default")
    torch.save(model.state_dict(), "moved.pth")
    same = run("predict", "--classifier", classifier, "--weights", "moved.pth", "photos/red")
    assert same.code == 0 and same.out == run("predict", "--classifier", classifier, "photos/red").out
    other = run("predict", "--classifier", classifier, "--weights", "random", "photos/red")
    assert other.code == 2 and other.out == ""
    assert re.search(r"weights_sha256 is '\w{64}', not '\w{64}'", other.err) and "--weights" in other.err


def test_paths_come_from_stdin_with_any_name(trained: Path) -> None:
    name = os.fsdecode(b'caf\xe9, "x".png')
    (trained / name).write_bytes((trained / "photos/red/00.png").read_bytes())
    script = [sys.executable, "-m", "pipeline.predict", "--classifier", str(MODELS / "fc7-svm.skops"), "-"]
    fed = os.fsencode(f"photos/red/00.png\n\n{name}\r\nmissing.png\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(script, cwd=trained, input=fed, capture_output=True, env=environment, check=True)
    found = rows_of(os.fsdecode(ended.stdout))
    assert [row["path"] for row in found] == ["photos/red/00.png", name]
    assert found[0]["class"] == found[1]["class"] and b"missing.png" in ended.stderr


def test_a_pipe_that_breaks_elsewhere_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(predict, "run", broken)
    outcome = run("predict", "photo.png")
    assert outcome.code == 2 and "Broken pipe" in outcome.err


def test_a_reader_that_leaves_early_is_no_error(trained: Path) -> None:
    process = spawn("predict", "--classifier", MODELS / "fc7-svm.skops", *["photos"] * 60, "--top", 3, cwd=trained)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "path,rank,class,margin\n"
    process.stdout.close()
    assert process.stderr.read().splitlines()[1:] == [] and process.wait() == 0
    process.stderr.close()
