"""export: one ONNX file whose outputs in onnxruntime equal ours, and whose metadata say what it is."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Outcome, make_spec, write_photos
from helpers import smooth_image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from pipeline.classifiers import persistence
from pipeline.codes.spec import join_codes
from pipeline.data.manifest import read_manifest
from pipeline.exporting import end_to_end, onnx_file
from pipeline.images import transforms
from pipeline.networks import onnx
from pipeline.networks.frozen import rebuild_network

onnxruntime = pytest.importorskip("onnxruntime", reason="NO TEST OF THE EXPORT: pip install -e '.[export]'")
Run = Callable[..., Outcome]


def trained(
    run: Run, layer: str, model: str, grid: str, *extraction: str, backbone: str = "tinyvgg", **flags: bool
) -> Path:
    """Train on `photos`, on codes in fp32 where nothing else is asked for; return where the classifier lies."""
    address = ("--dataset", "photos", "--backbone", backbone, "--layer", layer)
    assert run("extract", *address[:-1], *layer.split("+"), "--precision", "fp32", *extraction).code == 0
    outcome = run(
        "classify", *address, "--model", model, "--folds", 2, "--grid", grid, *(f"--{flag}" for flag in flags)
    )
    assert outcome.code == 0, outcome.err
    return Path("models/photos", backbone, f"{layer}-{model}.skops")


def compare(file: Path, classifier: persistence.SavedClassifier, images: np.ndarray) -> float:
    """See that margins, probabilities and top-1 are those of our own code; return how far off the margins are."""
    network, layers = rebuild_network(classifier.spec).at(precision="fp32"), classifier.spec.layer.split("+")
    parts = network.codes(images)
    codes = join_codes([parts[layer].astype(np.float32) for layer in layers], classifier.spec)
    margins, shares = persistence.margins(classifier, codes), persistence.probabilities(classifier, codes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = dict(zip((it.name for it in session.get_outputs()), session.run(None, {"images": images}), strict=True))
    assert set(outputs) == ({"margins"} if shares is None else {"margins", "probabilities"})
    np.testing.assert_array_equal(outputs["margins"].argmax(1), margins.argmax(1))
    np.testing.assert_allclose(outputs["margins"], margins, rtol=1e-3, atol=1e-4)
    if shares is not None:
        np.testing.assert_allclose(outputs["probabilities"], shares, atol=1e-4)
    finite = np.isfinite(margins)
    return float(np.abs(outputs["margins"][finite] - margins[finite]).max())


def images_in(folder: Path, transform: transforms.Transform) -> np.ndarray:
    """Return all PNG files below a folder as the network wants them."""
    return np.stack([transforms.load_image(path, transform) for path in sorted(folder.glob("**/*.png"))])


def test_digits_of_the_test_split_get_our_answer(run: Run, project: Path) -> None:
    assert run("extract", "--layer", "fc7", "--batch-size", 256).code == 0
    manifest = read_manifest(Path("data/digits"))
    paths = [path for path, split in zip(manifest.files(), manifest.splits, strict=True) if split == "test"][::3]
    grid = "{standard: {C: [0.01]}}"
    assert run("classify", "--layer", "fc7", "--model", "softmax", "--folds", 2, "--grid", grid).code == 0
    assert run("export", "--layer", "fc7", "--model", "softmax").code == 0
    classifier = persistence.load(Path("models/digits/tinyvgg/fc7-softmax.skops"))
    transform = rebuild_network(classifier.spec).transform
    images = np.stack([transforms.load_image(path, transform) for path in paths])
    assert len(images) == 150
    assert compare(Path("models/digits/tinyvgg/fc7-softmax.onnx"), classifier, images) < 1e-4


@pytest.mark.parametrize(
    ("layer", "model", "grid", "extraction"),
    [
        ("fc7", "ridge", "{standard: {alpha: [10]}}", ("--pool", "avg")),
        ("pool4", "softmax", "{standard: {C: [0.1]}}", ("--pool", "max")),
        ("conv2", "svm", "{standard: {C: [0.01]}}", ("--pool", "max3")),
        ("conv7", "ncm", "{centred: {}}", ("--pool", "flatten")),
        ("logits", "source-map", "{probabilities: {}}", ()),
        ("logits", "source-map", "{one-hot: {}}", ("--views", "flips")),
        ("pool4", "svm", "{sqrt: {C: [10]}}", ("--size", "96x64", "--views", "flips")),
        ("fc6", "softmax", "{l2: {C: [10]}}", ("--relu", "pre", "--size", "96")),
        ("pool4+fc7", "svm", "{standard: {C: [0.1]}}", ("--views", "flips")),
        ("fc7", "softmax", "{l2: {C: [10]}}", ("--precision", "bf16", "--dtype", "float16")),
    ],
)
def test_models_scalings_poolings_and_views(
    run: Run, photos: Path, layer: str, model: str, grid: str, extraction: tuple[str, ...]
) -> None:
    """Cells that do not divide the map's side included: 3 × 3 of 8 × 8 and of 32 × 32."""
    assert run("prepare", "--dataset", photos).code == 0
    path = trained(run, layer, model, grid, *extraction)
    outcome = run("export", "--classifier", path, "--out", "made/one.onnx")
    assert outcome.code == 0 and outcome.out.startswith("made/one.onnx (")
    assert outcome.err == f"classifier: {path} (--classifier)\n"
    assert ("computes in fp32, while the classifier was trained on codes of bf16" in outcome.out) == (
        "bf16" in extraction
    )
    classifier = persistence.load(path)
    compare(Path("made/one.onnx"), classifier, images_in(photos, rebuild_network(classifier.spec).transform))
    assert [path.name for path in Path("made").iterdir()] == ["one.onnx"]


def test_a_residual_network(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    path = trained(run, "layer2", "svm", "{l2: {C: [1]}}", "--weights", "random", backbone="resnet18")
    assert run("export", "--classifier", path).code == 0
    classifier = persistence.load(path)
    compare(
        path.with_suffix(".onnx"), classifier, images_in(photos / "red", rebuild_network(classifier.spec).transform)
    )


@pytest.mark.parametrize("model", ["svm", "softmax"])
def test_two_classes_and_one_that_was_never_trained(run: Run, project: Path, model: str) -> None:
    """Two classes share one vector; of the third the only training image is lost before it is read."""
    photos = write_photos(project / "photos" / "train", {"red": 8, "green": 8, "blue": 1}).parent
    write_photos(photos / "test", {"red": 2, "green": 2, "blue": 2})
    assert run("prepare", "--dataset", photos).code == 0
    (photos / "train" / "blue" / "00.png").write_bytes(b"")
    path = trained(run, "fc7", model, "{l2: {C: [10]}}")
    assert run("export", "--classifier", path).code == 0
    classifier = persistence.load(path)
    assert classifier.classes == ("blue", "green", "red") and classifier.pipeline.classes_.tolist() == [1, 2]
    compare(
        path.with_suffix(".onnx"), classifier, images_in(photos / "test", rebuild_network(classifier.spec).transform)
    )


def test_a_calibrated_svm_gives_probabilities(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    path = trained(run, "fc7", "svm", "{l2: {C: [10]}}", calibrate=True)
    assert run("export", "--classifier", path).code == 0
    classifier = persistence.load(path)
    assert persistence.probabilities(classifier, np.zeros((1, 1024), np.float32)) is not None
    compare(path.with_suffix(".onnx"), classifier, images_in(photos, rebuild_network(classifier.spec).transform))


def test_the_file_says_what_it_is_and_the_lines_of_the_documentation_use_it(
    run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    path = trained(run, "fc7", "svm", "{l2: {C: [1]}}")
    assert run("export", "--dataset", "photos", "--layer", "fc7", "--model", "svm").code == 0
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts == {
        **{"classes": ["blue", "green", "red"], "spec": description["spec"]},
        **{"resize": 64, "crop": [64, 64], "interpolation": "bilinear"},
    }
    assert "blue, green, red" in session.get_modelmeta().description
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [3, 64, 64])
    assert isinstance(given.shape[0], str)
    image = smooth_image(301, 207)
    image.getexif()[0x0112] = 6  # turned on its side
    image.save("new.jpg", exif=image.getexif())
    path.with_suffix(".onnx").rename("photos.onnx")
    (predicted,) = csv.DictReader(io.StringIO(run("predict", "--classifier", path, "new.jpg").out))
    text = (ROOT / "docs" / "new-images.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?onnxruntime.*?)```", text, re.DOTALL)
    exec(compile(lines, "new-images.md", "exec"), {})  # noqa: S102 - ours
    name, margin = capsys.readouterr().out.split()
    assert name == predicted["class"] and float(margin) == pytest.approx(float(predicted["margin"]), abs=1e-5)


def test_resizing_that_torchvision_does_not_know_is_not_claimed() -> None:
    def said(**framing: object) -> object:
        spec = make_spec()
        spec = replace(spec, transform=replace(spec.transform, **framing))
        return json.loads(onnx_file.metadata(persistence.SavedClassifier(Pipeline([]), spec, ("a", "b")))["resize"])

    assert said(resize=72) == 72 and said(fit="whole", crop_width=80) == [64, 80]
    assert said(crop_width=80) is None and said(views="flips") is None


def test_a_head_that_scales_nothing_as_fine_tuning_leaves_it(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    found = persistence.load(trained(run, "fc7", "softmax", "{l2: {C: [1]}}"))
    bare = persistence.SavedClassifier(Pipeline([("classify", found.pipeline[-1])]), found.spec, found.classes)
    network = rebuild_network(found.spec)
    assert onnx_file.check(onnx_file.export(bare, network), bare, network) < 1e-4


def test_what_cannot_be_exported_is_refused(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    path = trained(run, "fc7", "knn", "{l2: {n_neighbors: [3]}}")
    outcome = run("export", "--classifier", path)
    assert outcome.code == 2 and "KNeighborsClassifier is no linear classifier" in outcome.err
    path = trained(run, "fc7", "svm", "{l2: {C: [1]}}")
    other = run("export", "--classifier", path, "--weights", "random")
    assert other.code == 2 and "weights_sha256" in other.err
    monkeypatch.setattr(onnx, "MAX_BYTES", 1000)
    large = run("export", "--classifier", path)
    assert large.code == 2 and "2 GB" in large.err
    monkeypatch.setattr(onnx, "MAX_BYTES", 2**31)
    monkeypatch.setattr(persistence, "margins", lambda *given: np.ones((onnx_file.CHECKED, 3)))
    wrong = run("export", "--classifier", path)
    assert wrong.code == 2 and "nothing was written" in wrong.err
    assert not list(Path("models").rglob("*.onnx*"))


def test_without_the_extra_it_says_how_to_get_it(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    outcome = run("export")
    assert outcome.code == 2 and outcome.err.endswith(
        "\nError: To export, onnxscript must be installed: pip install -e '.[export]'.\n"
    )


def test_ridge_of_two_classes_has_two_rows_of_weights() -> None:
    X, y = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), np.arange(20) % 2
    pipeline = make_pipeline(Normalizer(), RidgeClassifier()).fit(X, y)
    classifier = persistence.SavedClassifier(pipeline, make_spec(), ("ant", "bee"))
    weights, bias = end_to_end.linear(classifier)
    margins = Normalizer().transform(X) @ weights.T + bias
    np.testing.assert_allclose(margins, persistence.margins(classifier, X), atol=1e-5)
