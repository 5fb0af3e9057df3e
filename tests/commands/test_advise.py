"""advise: layers are measured on the training images, and the recommendation says why, and if the data suffice."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, write_photos
from helpers import count_forwards, make_manifest, mistake
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from pipeline import advise
from pipeline.analysis import recommendation, source_distance
from pipeline.analysis.gain import Gain
from pipeline.analysis.layer_measures import LayerMeasures
from pipeline.codes import reader
from pipeline.data.manifest import read_manifest
from pipeline.networks import backbones

Run = Callable[..., Outcome]
LAYERS = ("pool3", "conv7", "fc7")


def write_crops(folder: Path, per_class: int) -> Path:
    """Write crops of two photographs, of a temple and a flower, which are similar to the network's source."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            side = int(rng.integers(120, 400))
            top, left = (int(rng.integers(0, length - side)) for length in photo.shape[:2])
            part = Image.fromarray(photo[top : top + side, left : left + side]).resize((96, 96))
            part.save(folder / name / f"{number:03}.png")
    return folder


def write_some_digits(folder: Path, per_class: int) -> Path:
    """Write handwritten digits, which look like no photograph."""
    digits = load_digits()
    for label in range(6):
        (folder / str(label)).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:per_class]):
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / str(label) / f"{number:03}.png")
    return folder


def advised(path: str = "reports/some/tinyvgg/advice/advice.json") -> Any:
    return json.loads(Path(path).read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "similar"), [(write_crops, True), (write_some_digits, False)], ids=["similar", "different"]
)
@pytest.mark.parametrize(("per_class", "large"), [(20, False), (80, True)], ids=["small", "large"])
def test_the_four_cases(
    run: Run, project: Path, write: Callable[[Path, int], Path], similar: bool, per_class: int, large: bool
) -> None:
    assert run("prepare", "--dataset", write(project / "some", per_class)).code == 0
    flags = ("--large", 50, "--folds", 3, "--images", 60)
    outcome = run("advise", "--dataset", "some", "--layer", *LAYERS, *flags)
    assert outcome.code == 0, outcome.err
    result = advised()
    advice = result["advice"]
    assert ("measured on 60 of " in outcome.out) == (large or not similar), "the whole dataset counts, not the sample"
    assert (result["dataset"]["source_distance"] < source_distance.FAR_FROM_SOURCE) == similar
    assert advice["case"] == recommendation.RULES[large, similar][0] and advice["fine_tune"] == large
    assert ("Fine-tune the network" in outcome.out) == large and ("Freeze the network" in outcome.out) != large
    accuracy = {layer["layer"]: layer["accuracy"] for layer in result["layers"]}
    best = next(layer for layer in result["layers"] if layer["layer"] == advice["layer"])
    if similar:
        assert accuracy["fc7"] >= best["low"]
        assert "the last layer is as accurate as the best, as the rule says" in outcome.out
    else:
        assert advice["layer"] != "fc7" and accuracy["fc7"] < accuracy["pool3"]


# What it measures


@pytest.fixture
def measured(run: Run, project: Path) -> Outcome:
    """Advice on a few digits, with curves."""
    assert run("prepare", "--dataset", write_some_digits(project / "some", 16)).code == 0
    flags = ("--layer", "pool3", "conv4", "fc7", "--folds", 2, "--curve", 1, 4, "--relu", "both")
    return run("advise", "--dataset", "some", *flags)


def test_what_is_written(measured: Outcome) -> None:
    assert measured.code == 0, measured.err
    folder = Path("reports/some/tinyvgg/advice")
    rows = list(csv.DictReader((folder / "layers.csv").open()))
    assert [row["layer"] for row in rows] == ["conv4", "pool3", "fc7"], (
        "in the order in which the network computes them"
    )
    for row in rows:
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
    points = list(csv.DictReader((folder / "curve.csv").open()))
    kinds = {(point["layer"], point["relu"], point["shots"]) for point in points}
    assert kinds == {
        (layer, relu, shots)
        for layer, relu in [("conv4", "post"), ("pool3", "post"), ("fc7", "post"), ("conv4", "pre"), ("fc7", "pre")]
        for shots in "14"
    }, "a pooling layer has no ReLU to read before"
    few, more = (np.mean([float(p["accuracy"]) for p in points if p["shots"] == shots]) for shots in "14")
    assert few < more
    Image.open(folder / "layers.png").verify()
    facts = advised()["dataset"]
    assert facts["training"] == {"n_images": 72, "n_classes": 6, "smallest_class": 12} and facts["n_images"] == 72
    assert facts["leep"] < 0 and facts["nce"] <= 0
    assert 0 < facts["prediction_entropy"] <= facts["mean_prediction_entropy"] <= 1


def test_the_report_shows_it(run: Run, measured: Outcome) -> None:
    address = ("--dataset", "some", "--layer", "fc7")
    assert run("extract", *address).code == 0
    assert run("classify", *address, "--folds", 2, "--grid", "{l2: {C: [10]}}").code == 0
    assert run("evaluate", *address).code == 0 and run("report").code == 0
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert "Which layer, and freeze or fine-tune?" in page and "<li>Take " in page
    assert page.count("few images, after the ReLU") >= 1 and "few images, before the ReLU" in page


def test_test_images_are_not_measured(measured: Outcome) -> None:
    manifest = read_manifest(Path("data/some"))
    codes = reader.read(Path("features/some/.advice/tinyvgg/post-one/fc7.h5"), {})
    training = {manifest.paths[row] for row, split in enumerate(manifest.splits) if split == "train"}
    assert set(codes.paths) == training and set(codes.splits) == {"train"}


def test_training_images_are_counted_without_copies_and_without_the_other_splits() -> None:
    splits = ("train", "train", "train", "train", "test", "val", "unlabelled")
    labels, digests = np.array([0, 0, 0, 1, 1, 1, -1]), ("a", "a", "b", "c", "d", "e", "f")
    manifest = make_manifest("x", digests, labels, splits, ("0", "1", "2"), digests)
    assert recommendation.count_training_images(manifest) == recommendation.TrainingImages(4, 2, 1)
    crowded = make_manifest("x", ("",) * 9, np.array([0] * 4 + [1] * 5), ("train",) * 9, ("0", "1"), tuple("aabcdefgg"))
    assert recommendation.count_training_images(crowded) == recommendation.TrainingImages(9, 2, 3)


def test_the_distance_to_the_source_is_near_0_for_the_source_itself_alone() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 20))
    mean, cov = rng.normal(size=20), root @ root.T
    own = rng.multivariate_normal(mean, cov, 300)
    assert abs(source_distance.distance_to_source(own, mean, cov)) < 0.1
    assert source_distance.distance_to_source(3 * own + 20, mean, cov) > 1


def test_entropies_are_shares_of_the_highest() -> None:
    y, units = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    known = recommendation.DatasetFacts.of(units, TRAINING, 0.3)
    assert known == recommendation.DatasetFacts(4, 3, TRAINING, source_distance=0.3)
    facts = known.with_predictions(100.0 * np.eye(4)[[0, 0, 1, 1]], y)
    assert facts.prediction_entropy == pytest.approx(0, abs=1e-9) and facts.source_distance == 0.3
    assert facts.mean_prediction_entropy == pytest.approx(0.5)
    assert known.with_predictions(np.zeros((4, 4)), y).prediction_entropy == pytest.approx(1)


# What it recommends


TRAINING = recommendation.TrainingImages(n_images=200, n_classes=2, smallest_class=50)
FACTS = recommendation.DatasetFacts(n_images=200, n_units=200, training=TRAINING, source_distance=0.4)


def layer(name: str, accuracy: float, half: float = 0.02, log_me: float = 0.0, h_score: float = 0.0) -> LayerMeasures:
    return LayerMeasures(name, 10, accuracy, accuracy - half, min(accuracy + half, 1), log_me, h_score, {})


def advise_on(layers: Sequence[LayerMeasures], facts: recommendation.DatasetFacts) -> recommendation.Advice:
    return recommendation.recommend(layers, facts, {"svm": 0.9, "softmax": 0.8}, large=100)


def test_it_names_where_measures_disagree() -> None:
    layers = [layer("a", 0.8, log_me=2, h_score=1), layer("b", 0.9, log_me=1, h_score=1.5), layer("c", 0.89, h_score=3)]
    text = " ".join(advise_on(layers, FACTS).measures)
    assert "LogME disagrees: it would take a, at 0.8000 below it" in text
    assert "H-score disagrees: it would take c, within the interval" in text
    assert "disagrees" not in " ".join(advise_on([layer("a", 0.5), layer("b", 0.9, 0.02, 1, 1)], FACTS).measures)


def test_the_advice_itself_needs_no_knowledge_of_the_measures() -> None:
    facts = replace(FACTS, leep=-1.0, nce=-1.0, prediction_entropy=0.5, mean_prediction_entropy=0.9)
    advice = advise_on([layer("a", 0.89, log_me=2, h_score=1), layer("b", 0.9)], facts)
    for jargon in ("LogME", "H-score", "LEEP", "NCE", "entropy", "Fréchet"):
        assert jargon in " ".join(advice.measures) and jargon not in " ".join(advice.sentences)


def test_it_says_when_the_measurement_contradicts_the_rule() -> None:
    early, late = [layer("a", 0.95), layer("b", 0.7)], [layer("a", 0.7), layer("b", 0.95)]
    assert "against the rule" in " ".join(advise_on(early, FACTS).measures)
    assert "as the rule says" in " ".join(advise_on(late, FACTS).measures)
    assert "as the rule says" in " ".join(advise_on(early, replace(FACTS, source_distance=1.9)).measures)


def test_it_says_on_how_many_of_the_training_images_it_measured_and_what_is_a_rule_of_thumb() -> None:
    large = replace(FACTS, training=recommendation.TrainingImages(2000, 2, 1000))
    advice = advise_on([layer("a", 0.8), layer("b", 0.9)], large)
    assert advice.fine_tune and advice.case == "large and similar to the source"
    assert "measured on 200 of 2,000 training images" in advice.sentences[0]
    assert "by the rule of thumb, which was not measured here" in advice.sentences[-1]
    copied = advise_on([layer("a", 0.8), layer("b", 0.9)], replace(large, n_units=150))
    assert "200 of 2,000 training images (n = 150; copies" in copied.sentences[0]


@pytest.mark.parametrize(
    ("low", "high", "fine_tune", "words"),
    [
        (0.01, 0.05, True, "Fine-tune the network, as was measured. With 5 epochs on 150 training images (60 s)"),
        (-0.01, 0.05, False, "Freeze the network: fine-tuning was tried, and no difference from chance was found."),
        (-0.05, -0.01, False, "Freeze the network, as was measured: fine-tuning it did worse."),
    ],
)
def test_where_fine_tuning_was_tried_the_measurement_counts(
    low: float, high: float, fine_tune: bool, words: str
) -> None:
    gain = Gain(0.9, 0.9 + (low + high) / 2, (low + high) / 2, low, high, n_images=50, n_units=40)
    tried = recommendation.Tried(gain, n_train=150, epochs=5, seconds=60.0)
    advice = recommendation.recommend([layer("a", 0.8), layer("b", 0.9)], FACTS, {"svm": 0.9}, 100, tried)
    assert advice.fine_tune == fine_tune and words in advice.sentences[-1]
    assert "paired, n = 40 (50 images" in advice.sentences[-1] and "rule of thumb" not in " ".join(advice.sentences)


def test_it_says_when_the_data_do_not_suffice() -> None:
    assert advise_on([layer("a", 0.8), layer("b", 0.9)], FACTS).sufficient
    for layers in ([layer("a", 0.89), layer("b", 0.9)], [layer("a", 0.5, 0.2), layer("b", 0.9, 0.2)]):
        advice = advise_on(layers, FACTS)
        assert not advice.sufficient and "do not suffice" in advice.sentences[-2]


def test_without_statistics_of_the_source_the_last_layer_decides() -> None:
    unknown = replace(FACTS, source_distance=None)
    early, late = [layer("a", 0.9), layer("b", 0.7)], [layer("a", 0.7), layer("b", 0.9)]
    for layers, case in ((early, "different from"), (late, "similar to")):
        advice = advise_on(layers, unknown)
        assert advice.case == f"small and {case} the source"
        assert "The distance to the source is not known" in " ".join(advice.measures)


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--layer", "fc9"), ("Unknown layer 'fc9' for tinyvgg", "fc7")),
        (("--images", "0"), ("--images is '0', but it must be 1 or more",)),
        (("--curve", "0", "2"), ("--curve is '0', but it must be 1 or more",)),
        (("--curve", "9"), ("the smallest class has 9 of the training images",)),
        (("--models", "svn"), ("Unknown model 'svn'",)),
        (("--layer", "fc7", "--folds", "30"), ("fewer than the 30 folds",)),
    ],
)
def test_mistakes(run: Run, photos: Path, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    run("prepare", "--dataset", photos)
    mistake(run("advise", "--dataset", "photos", *flags), *words)
    assert not Path("reports").exists()


def test_weights_that_are_not_there(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos)
    mistake(run("advise", "--dataset", "photos", "--layer", "fc7", "--weights", "nowhere.pth"), "nowhere.pth")


def test_one_pass_gives_all_layers(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("prepare", "--dataset", photos)
    seen = count_forwards(monkeypatch)
    assert run("advise", "--dataset", "photos", "--folds", 2).code == 0
    assert sum(seen) == 27, "each training image once, for thirteen layers and the head"
    seen.clear()
    assert run("advise", "--dataset", "photos", "--folds", 3).code == 0 and not seen


def test_it_tells_what_the_pretrained_network_sees_in_each_class(run: Run, project: Path) -> None:
    assert run("prepare", "--dataset", write_crops(project / "some", 8)).code == 0
    assert run("advise", "--dataset", "some", "--layer", "fc7", "--folds", 2).code == 0
    views = advised()["source_classes"]
    assert [(view["label"], view["n"]) for view in views] == [("flower", 6), ("temple", 6)]
    assert all(0 < share <= 1 for view in views for _, share in view["seen"])
    assert "Of 200 classes of the source, these images look most like" in advised()["advice"]["measures"][-1]
    with Path("reports/some/tinyvgg/advice/source_classes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["source_class"]) for row in rows] == [
        (view["label"], name) for view in views for name, _ in view["seen"]
    ]


def test_weights_without_a_head_are_measured_without_their_own_classes(run: Run, project: Path) -> None:
    assert run("prepare", "--dataset", write_crops(project / "some", 8)).code == 0
    state = backbones.load(backbones.TINYVGG, "default")[0].state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("classifier.6")}, "net.pth")
    outcome = run("advise", "--dataset", "some", "--layer", "fc7", "--folds", 2, "--weights", "net.pth")
    assert outcome.code == 0, outcome.err
    assert advised()["dataset"]["leep"] is None and advised()["source_classes"] == []


def test_codes_before_a_relu_that_is_not_there_are_refused_at_the_start(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("prepare", "--dataset", write_crops(project / "some", 8)).code == 0
    forwards = count_forwards(monkeypatch)
    flags = ("--dataset", "some", "--weights", "random", "--curve", 1, "--relu")
    outcome = run("advise", "--backbone", "timm/test_vit", "--layer", "block2", "norm", *flags, "pre")
    mistake(outcome, "No layer of timm/test_vit ends in a ReLU that stands alone", "block2, norm end otherwise")
    assert not forwards
    outcome = run("advise", "--folds", 2, "--layer", "pool3", "fc7", *flags, "both")
    assert outcome.code == 0 and "Codes before the ReLU: of fc7; none of pool3" in outcome.err


# Where there is no advice, or of some layers only


def test_no_advice_ends_no_run_and_the_page_says_why(run: Run, photos: Path) -> None:
    rows = [f"{path},{'red;all' if 'red' in str(path) else 'all'}" for path in sorted(photos.glob("*/*"))]
    Path("many.csv").write_text("\n".join(["path,labels", *rows]), encoding="utf-8")
    assert run("prepare", "--dataset", "photos").code == 0 and run("prepare", "--dataset", "many.csv").code == 0
    address = ("--dataset", "photos", "--layer", "fc7")
    assert run("advise", *address, "--folds", 2).code == 0
    Path("data/photos/manifest.csv").write_text(Path("data/many/manifest.csv").read_text(encoding="utf-8"))
    outcome = run("advise", *address)
    assert outcome.code == 0 and "No advice: The images have several labels each" in outcome.out
    folder = Path("reports/photos/tinyvgg/advice")
    assert [path.name for path in folder.iterdir()] == ["advice.json"], "nothing is left of the advice of before"
    assert run("prepare", "--dataset", "photos", "--overwrite").code == 0
    assert run("extract", *address).code == 0
    assert run("classify", *address, "--folds", 2, "--grid", "{l2: {C: [10]}}").code == 0
    assert run("evaluate", *address).code == 0 and run("report").code == 0
    assert "<li>No advice: The images have several labels each" in Path("reports/index.html").read_text(
        encoding="utf-8"
    )


def test_layers_that_do_not_suit_the_settings_are_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    backbone, native = backbones.TINYVGG, backbones.native_transform(backbones.TINYVGG)
    small = replace(native, crop=30, resize=30)
    assert advise.find_layers(backbone, None, small, "avg", 10_000)[-1] == "pool4"
    assert "Left out: layer fc7. tinyvgg cannot run that far at 30x30 pixels." in caplog.text
    assert advise.find_layers(backbone, None, native, "flatten", 10_000)[0] == "pool3"
    assert "Left out: layer conv1. Its codes have 131,072 numbers per image." in caplog.text
    assert advise.find_layers(backbone, ["conv1"], native, "flatten", 10_000) == ["conv1"], "it was asked for"
    none = advise.find_layers(backbone, None, replace(native, crop=1, resize=1), "cls", 10_000)
    manifest = make_manifest("", ("a",), np.zeros(1, np.int64), ("train",), ("a",), ("a",))
    assert none == [] and advise.reason_against(manifest, "tinyvgg", none).startswith("No layer of tinyvgg")


def test_small_classes_are_left_out_where_classify_leaves_them_out(run: Run, project: Path) -> None:
    run("prepare", "--dataset", write_photos(project / "photos", {"red": 12, "green": 12, "blue": 1}))
    flags = ("--dataset", "photos", "--layer", "fc7")
    mistake(run("advise", *flags), "'blue' has 1 training image, fewer than the 5 folds")
    Path("params.yaml").write_text("classify: {drop_small_classes: true}", encoding="utf-8")
    outcome = run("advise", *flags)
    assert outcome.code == 0 and "Left out: class 'blue', with 1 training images or groups." in outcome.err
    assert advised("reports/photos/tinyvgg/advice/advice.json")["dataset"]["training"]["n_classes"] == 2


def test_a_sample_has_enough_images_of_each_class_for_the_folds(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos)
    assert run("advise", "--dataset", "photos", "--layer", "fc7", "--images", 1).code == 0


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "mobilenet_v3_small"])
def test_networks_of_torchvision_have_layers_to_measure(run: Run, project: Path, backbone: str) -> None:
    run("prepare", "--dataset", write_photos(project / "photos", {"red": 4, "green": 4}), "--test", 0)
    flags = ("--weights", "random", "--images", 8, "--folds", 2, "--models", "svm")
    outcome = run("advise", "--dataset", "photos", "--backbone", backbone, *flags)
    assert outcome.code == 0, outcome.err
    content = advised(f"reports/photos/{backbone}/advice/advice.json")
    layers = [row["layer"] for row in content["layers"]]
    assert len(layers) >= 4 and content["advice"]["layer"] in layers
