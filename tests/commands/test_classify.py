"""classify: the setting comes from cross-validation on the training split alone; mistakes are explained."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Listing, Outcome, put_codes, write_codes
from helpers import CODES, GRID, MODEL, mistake, write_training
from PIL import Image

from pipeline.analysis.grouping import Grouping
from pipeline.analysis.training_images import read_units
from pipeline.classifiers import catalogue, options, persistence, search, solvers, training_data
from pipeline.classifiers.solvers import design as design_module
from pipeline.classifiers.training_data import TrainingData
from pipeline.codes import reader

Run = Callable[..., Outcome]


@pytest.mark.parametrize("model", catalogue.CLASSIFIERS)
def test_every_model_learns_and_says_how(run: Run, model: str) -> None:
    write_training(CODES.with_name("logits.h5"), layer="logits")
    outcome = run("classify", "--model", model, "--layer", "logits")
    assert outcome.code == 0 and "cross-validated accuracy" in outcome.out and "45 images" in outcome.out
    loaded = persistence.load(MODEL.with_name(f"logits-{model}.skops"))
    assert loaded.classes == ("ant", "bee", "fly") and loaded.spec.layer == "logits"
    facts = json.loads(MODEL.with_name(f"logits-{model}.json").read_text())
    assert {"sha256", "spec", "classes", "chosen", "cv", "versions", "n_train", "seed"} <= facts.keys()
    assert facts["chosen"] in facts["cv"] and len(facts["chosen"]["folds"]) == 5


def test_test_images_have_no_say(run: Run) -> None:
    """The same training rows give the same classifier, whatever stands in the other splits."""
    labels, splits = [0, 1] * 20, ["train"] * 30 + ["test"] * 10
    found = []
    for others in ([0, 1] * 5, [1, 0] * 5):
        write_codes(CODES, labels, splits, ["a", "b"])
        write_codes(CODES, labels[:30] + others, splits, ["a", "b"])
        run("classify", "--grid", GRID)
        found.append(persistence.load(MODEL).pipeline[-1].coef_)
    np.testing.assert_array_equal(*found)


def test_a_grid_grows_where_its_edge_is_best_and_says_so(run: Run) -> None:
    write_training()
    outcome = run("classify", "--grid", "{l2: {C: [1.0e-9, 1.0e-8]}}", "--extend-grid", "0")
    assert "edge of its grid: extend the grid" in outcome.out and "was extended" not in outcome.out
    outcome = run("classify", "--grid", "{l2: {C: [1.0e-7, 1.0e-6]}, standard: {C: [1.0e-9]}}", "--extend-grid", "2")
    facts = json.loads(MODEL.with_suffix(".json").read_text())
    grown = [row["parameters"]["C"] for row in facts["cv"] if row["normalisation"] == facts["chosen"]["normalisation"]]
    assert "which was extended by" in outcome.out and len(facts["extended_grid"]) == 2 == len(grown) - 2
    assert sorted(grown)[:2] == [1e-9, 1e-8] or sorted(grown)[-2:] == [1e-5, 1e-4]


def test_the_table_of_the_search_is_saved_and_drawn(run: Run) -> None:
    write_training()
    run("classify", "--grid", GRID)
    with MODEL.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    table = json.loads(MODEL.with_suffix(".json").read_text())["cv"]
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in table]
    assert [row["chosen"] for row in rows].count("1") == 1 and len(rows) >= 4
    with Image.open(MODEL.with_suffix(".png")) as picture:
        assert picture.width > 400 and len(np.unique(picture.convert("L"))) > 10


def test_nested_cross_validation_is_printed_and_saved(run: Run) -> None:
    write_training()
    outcome = run("classify", "--grid", GRID, "--nested")
    nested = json.loads(MODEL.with_suffix(".json").read_text())["nested"]
    assert "Nested" in outcome.out and nested["n"] == 45 and nested["low"] < nested["accuracy"] <= nested["high"]


def test_a_calibrated_classifier_is_saved_with_its_probabilities(run: Run) -> None:
    write_training()
    run("classify", "--grid", GRID)
    assert persistence.probabilities(persistence.load(MODEL), np.ones((2, 16), np.float32)) is None
    run("classify", "--grid", GRID, "--calibrate")
    loaded = persistence.load(MODEL)
    assert json.loads(MODEL.with_suffix(".json").read_text())["temperature"] == loaded.pipeline[-1].temperature_
    probabilities = persistence.probabilities(loaded, np.random.default_rng(0).random((9, 16)).astype(np.float32))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)


def test_codes_beyond_the_memory_are_read_in_blocks_to_the_same_classifier(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is eight times as large as what may be in memory; no read takes more than a sixteenth of it."""
    labels = np.arange(6000) % 3
    write_codes(CODES, labels, ["test"] * 1000 + ["train"] * 5000, ["ant", "bee", "fly"], width=64)
    found, reads = [], []
    read = reader.StoredRows.__getitem__
    monkeypatch.setattr(reader.StoredRows, "__getitem__", lambda *a: reads.append(value := read(*a)) or value)
    monkeypatch.setattr(design_module, "BLOCK_BYTES", 4 * 64 * 250)
    monkeypatch.setattr(options, "MIN_MEMORY", 0)
    for flags in ((), ("--memory", "160KB")):
        outcome = run("classify", "--grid", "{l2: {C: [1, 10]}, standard: {C: [0.01]}, sqrt: {C: [1]}}", *flags)
        assert outcome.code == 0, outcome.err
        assert bool(reads) == bool(flags)
        found.append((persistence.load(MODEL).pipeline, json.loads(MODEL.with_suffix(".json").read_text())))
    assert max(len(each) for each in reads) <= 1024
    (here, facts), (there, others) = found
    assert (
        facts["chosen"]["folds"] == others["chosen"]["folds"]
        and facts["chosen"]["parameters"] == others["chosen"]["parameters"]
    )
    np.testing.assert_allclose(here[-1].coef_, there[-1].coef_, atol=0.01 * abs(here[-1].coef_).max())


def test_the_setting_is_chosen_on_a_sample_and_all_images_are_learned(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing on a sample is choosing on those images alone; learning is learning from all."""
    labels = np.r_[np.arange(900) % 2, np.full(12, 2)]
    values = write_codes(CODES, labels, ["test"] * 100 + ["train"] * 812, ["ant", "bee", "fly"], width=32)
    flags = ("--grid", "{l2: {C: [0.1, 10]}}", "--extend-grid", 0, "--search-images", 200)
    monkeypatch.setattr(options, "MIN_MEMORY", 0)
    monkeypatch.setattr(training_data, "READ_BYTES", 4 * 32 * 100)
    tables = []
    for more in ((), ("--memory", "40KB")):
        outcome = run("classify", *flags, *more)
        assert (
            outcome.code == 0 and "n = 203, from which the setting was chosen; learned from 812 images" in outcome.out
        )
        facts = json.loads(MODEL.with_suffix(".json").read_text())
        assert facts["n_train"] == 812 and persistence.validation_of(facts)["n"] == facts["n_searched"] == 203
        tables.append([row["folds"] for row in facts["cv"]])
    assert tables[0] == tables[1], "the codes on disk give the same sample"
    learned = persistence.load(MODEL).pipeline
    whole = search.refit(
        TrainingData.of_independent(values[100:], labels[100:]), "svm", "l2", facts["chosen"]["parameters"]
    )
    np.testing.assert_allclose(learned[-1].coef_, whole[0][-1].coef_, atol=0.01 * abs(whole[0][-1].coef_).max())
    mistake(run("classify", "--search-images", 20), "--search-images 20 leaves too few images", "50 or more")
    mistake(run("classify", "--search-images", 100, "--nested"), "takes no --calibrate, no --nested")


def test_a_row_that_is_damaged_is_found_on_disk_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "MIN_MEMORY", 0)
    write_training(per_class=40)
    with h5py.File(CODES, "r+") as file:
        file["values"][100, 3] += 1
    mistake(run("classify", "--memory", "4KB"), "damaged", "row 100")


GROUPED = "path,label,split,digest,patient\n"


def write_patients(groups: np.ndarray) -> None:
    """Codes of 60 images, and a manifest that says whose they are."""
    write_codes(CODES, np.arange(60) % 2, ["train"] * 60, ["ant", "bee"])
    folder = Path("data/digits")
    folder.mkdir(parents=True)
    lines = [
        f"{row}.png,{'ant' if row % 2 == 0 else 'bee'},train,{row:064x},p{group}" for row, group in enumerate(groups)
    ]
    (folder / "manifest.csv").write_text(GROUPED + "\n".join(lines) + "\n")


def test_images_of_a_group_share_a_fold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, seen = np.arange(60) // 5, []
    write_patients(groups)
    real = solvers.PathSolver.cross_validate
    monkeypatch.setattr(
        solvers.PathSolver,
        "cross_validate",
        lambda self, X, y, folds, *more: seen.extend(folds) or real(self, X, y, folds, *more),
    )
    assert run("classify", "--grid", GRID, "--group-by", "patient").code == 0
    for fitted, held in seen:
        assert not set(groups[fitted]) & set(groups[held])
    assert json.loads(MODEL.with_suffix(".json").read_text())["group_by"] == "patient"
    mistake(run("classify", "--group-by", "doctor"), "Unknown column 'doctor'", "patient")


def test_images_without_a_label_and_a_group_are_no_group(run: Run) -> None:
    """They may have no value in the column, which does not make them copies of one another."""
    write_codes(CODES, [*[0, 1] * 12, *[-1] * 6], [*["train"] * 24, *["unlabelled"] * 6], ["ant", "bee"])
    lines = [f"{row}.png,{'ant' if row % 2 == 0 else 'bee'},train,{row:064x},p{row // 2}" for row in range(24)]
    lines += [f"{row}.png,,unlabelled,{row:064x}," for row in range(24, 30)]
    Path("data/digits").mkdir(parents=True)
    Path("data/digits/manifest.csv").write_text(GROUPED + "\n".join(lines) + "\n")
    _, unlabelled = read_units(CODES, Path("data/digits"), Grouping("patient"), "label-spreading")
    assert unlabelled and len(np.unique(unlabelled.data.units)) == unlabelled.n_images == 6


def test_a_class_in_too_few_groups_is_refused(run: Run) -> None:
    write_patients(np.where(np.arange(60) % 2, np.arange(60), 0))
    mistake(
        run("classify", "--group-by", "patient"), "'ant' lie in 1 group", "take the class out", "--drop-small-classes"
    )


def test_few_images_give_a_curve_without_test_images(run: Run) -> None:
    curves = []
    for others in (0, 1):
        labels, splits = [0, 1] * 40 + [others] * 20, ["train"] * 80 + ["test"] * 20
        write_codes(CODES, labels, splits, ["ant", "bee"])
        outcome = run("classify", "--shots", "4", "1", "2", "--draws", "3", "--grid", GRID)
        assert outcome.code == 0 and "20 held-out training images" in outcome.out, outcome.err
        curves.append(MODEL.with_name("fc7-svm-shots.csv").read_text())
    with MODEL.with_name("fc7-svm-shots.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["shots"]) for row in rows] == [1, 2, 4]
    assert all(0.4 < float(row["accuracy"]) <= 1 and float(row["standard_deviation"]) >= 0 for row in rows)
    assert MODEL.with_name("fc7-svm-shots.png").exists() and not MODEL.exists()


def test_four_images_per_class_give_a_curve_of_the_nearest_class_mean(run: Run) -> None:
    """They are fewer than the folds of a search, which a model without settings does not need."""
    write_codes(CODES, [0, 1, 2] * 4, ["train"] * 12, ["ant", "bee", "fly"])
    outcome = run("classify", "--model", "ncm", "--shots", 1, 3)
    assert outcome.code == 0 and "3 held-out training images" in outcome.out, outcome.err
    mistake(run("classify", "--model", "ncm"), "4 training images, fewer than the 5 folds")


def write_with_unlabelled(labelled: int = 24, classes: int = 2) -> None:
    """Write codes of some labelled training and test images, and of twelve without a label."""
    labels = [number % classes for number in range(labelled)]
    splits = ["test" if number % 4 > 1 else "train" for number in range(labelled)]
    write_codes(CODES, [*labels, *[-1] * 12], [*splits, *["unlabelled"] * 12], ["ant", "bee"][:classes])


def test_images_without_a_label_teach_a_classifier_like_any_other(run: Run) -> None:
    write_with_unlabelled()
    outcome = run("classify", "--grid", GRID, "--unlabelled", "self-training")
    facts = persistence.read_metadata(MODEL).facts
    assert "With 12 images without a label, by self-training: accuracy" in outcome.out, outcome
    assert facts["unlabelled"]["images"] == 12 == facts["unlabelled"]["gain"]["n_images"] == facts["n_train"]
    validation = persistence.validation_of(facts)
    assert validation and validation["accuracy"] == facts["unlabelled"]["accuracy"] and validation["n"] == 12
    assert "top-1" in run("evaluate").out and "n = 12" in run("evaluate").out, "they do not count in scores"


def test_copies_of_test_images_are_not_learned_from(project: Path) -> None:
    splits = ["train"] * 8 + ["test", "val"] + ["unlabelled"] * 4
    listing = Listing(
        [f"{row}.png" for row in range(14)],
        np.array([0, 1] * 5 + [-1] * 4),
        splits,
        [f"{row - 3 if row in (11, 12) else row:064x}" for row in range(14)],  # 11 and 12 are copies of 8 and 9
        ["ant", "bee"],
    )
    put_codes(CODES, np.random.default_rng(0).random((14, 3), np.float32), listing)
    units, unlabelled = read_units(CODES, Path("data/digits"), Grouping(), "label-spreading")
    assert len(units) == 8 and unlabelled and unlabelled.n_images == 2


def test_where_images_without_a_label_cannot_teach(run: Run) -> None:
    spreading = ("--grid", GRID, "--unlabelled", "label-spreading")
    write_training()
    mistake(run("classify", *spreading), "All images have labels", "--unlabelled FOLDER")
    write_with_unlabelled()
    mistake(run("classify", "--model", "knn", "--unlabelled", "label-spreading"), "knn knows no weights")
    mistake(run("classify", *spreading, "--nested"), "takes no --calibrate, no --nested")
    write_with_unlabelled(classes=1)
    mistake(run("classify", *spreading), "one class only, 'ant'")
    write_with_unlabelled(labelled=0)
    mistake(run("classify", *spreading), "no training images with a label")
    assert not MODEL.exists()


def test_columns_that_are_constant_are_counted(run: Run) -> None:
    values = np.random.default_rng(0).random((60, 5), np.float32)
    values[:, :2] = 3
    names = [f"{row}" for row in range(60)]
    put_codes(
        CODES, values, Listing(names, np.arange(60) % 2, ["train"] * 60, [f"{r:064x}" for r in range(60)], ["a", "b"])
    )
    assert "2 of 5 features of the codes are constant" in run("classify", "--grid", GRID).out


def test_fits_that_do_not_converge_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.PATH_MODELS, "svm", 1)
    monkeypatch.setitem(catalogue.CLASSIFIERS, "svm", partial(solvers.LinearSVM, max_iter=1))
    write_training()
    outcome = run("classify", "--grid", "{l2: {C: [100]}}")
    assert "5 of 5 fits of the search stopped before they converged" in outcome.out
    assert "The classifier stopped before it converged" in outcome.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "svn"), ("Unknown model 'svn'", "svm")),
        (
            ("--layer", "fc8"),
            (
                "no codes at features/digits/tinyvgg/fc8.h5",
                "pipeline.extract --dataset digits --backbone tinyvgg --layer fc8",
            ),
        ),
        (("--pool", "avg"), ("pool is 'none', not 'avg'",)),
        (("--folds", "16"), ("class 'ant' has 15 training images", "--folds 15")),
        (("--folds", "1"), ("--folds is '1'", "2 or more")),
        (("--grid", "{l2: "), ("not valid YAML",)),
        (("--grid", "{l3: {C: [1]}}"), ("--grid is 'l3'", "l2")),
        (("--grid", "{l2: {C: 1}}"), ("--grid (l2.C) is 1, but it must be a list",)),
        (("--grid", "{l2: {D: [1]}}"), ("Unknown parameter 'D' for svm", "C")),
        (("--grid", "{l2: {C: [-1]}}"), ("C=-1", "svm")),
        (("--model", "source-map"), ("the layer logits, not fc7", "pipeline.extract", "--layer logits")),
        (("--grid", "{one-hot: {C: [1]}}"), ("svm does not take the normalisation one-hot",)),
        (("--model", "source-map", "--grid", "{l2: {}}"), ("source-map does not take", "probabilities or one-hot")),
        (("--source-map", "map.csv"), ("--source-map is for --model source-map",)),
        (("--grid", "{centred: {C: [1]}}"), ("svm does not take the normalisation centred", "standard")),
        (("--memory", "much"), ("'much' is no size", "2GB")),
        (("--memory", "1MB"), ("too little", "100MB")),
        (("--memory", "9" * 400 + "GB"), ("is no size",)),
        (("--shots", "16"), ("'ant' has 15 training images", "fewer than --shots 16")),
        (("--shots", "0"), ("must be 1 or more",)),
        (("--shots", "1", "--draws", "1"), ("--draws is '1', but it must be 2 or more",)),
        (("--calibrate", "--model", "softmax"), ("--model svm",)),
        (("--calibrate", "--grid", "{l2: {C: [1], tol: [0.01]}}"), ("of C alone",)),
    ],
)
def test_mistakes(run: Run, flags: tuple[str, str], words: tuple[str, ...]) -> None:
    write_training()
    mistake(run("classify", *flags), *words)
    assert not MODEL.exists()


def test_pooling_that_suits_the_backbone_is_not_expected_of_the_codes(run: Run) -> None:
    write_training(CODES.with_name("pool4.h5"), layer="pool4", pool="avg4")
    for pool in ("auto", "avg4"):
        assert run("classify", "--layer", "pool4", "--grid", GRID, "--pool", pool).code == 0
    mistake(run("classify", "--layer", "pool4", "--pool", "max"), "pool is 'avg4', not 'max'")


def test_one_class_in_the_training_split(run: Run) -> None:
    write_codes(CODES, [0] * 10 + [1] * 5, ["train"] * 10 + ["test"] * 5, ["a", "b"])
    mistake(run("classify"), "one class only")


def test_no_training_split(run: Run) -> None:
    write_codes(CODES, [0, 1] * 5, ["test"] * 10, ["a", "b"])
    mistake(run("classify"), "no training images")


def test_a_truncated_features_file(run: Run) -> None:
    write_training()
    CODES.write_bytes(CODES.read_bytes()[:3000])
    mistake(run("classify"), "damaged", "pipeline.extract")


def test_a_mistake_leaves_the_earlier_classifier(run: Run) -> None:
    write_training()
    run("classify", "--grid", GRID)
    before = MODEL.read_bytes()
    write_training(backbone="vgg16")
    mistake(run("classify"), "backbone is 'vgg16', not 'tinyvgg'")
    assert MODEL.read_bytes() == before


# Shapes at the edge


def test_a_class_of_one_image_can_be_left_out(run: Run) -> None:
    labels = [0] * 8 + [1] * 8 + [2]
    write_codes(CODES, labels, ["train"] * 17, ["ant", "bee", "fly"])
    flags = ("--grid", "{l2: {C: [1]}}", "--folds", 2)
    mistake(run("classify", *flags), "class 'fly' has 1 training image", "--drop-small-classes")
    outcome = run("classify", *flags, "--drop-small-classes")
    assert outcome.code == 0 and "Left out: class 'fly'" in outcome.err and "16 images" in outcome.out


def test_numbers_of_neighbours_are_cut_to_what_the_folds_allow(run: Run) -> None:
    write_training(per_class=8)
    outcome = run("classify", "--model", "knn", "--folds", 2)
    assert outcome.code == 0 and "n_neighbors [10, 20] are left out: a fold has 9 images" in outcome.err


def test_codes_that_are_all_the_same(run: Run) -> None:
    put_codes(CODES, np.ones((20, 4)), Listing(*alike(20)))
    mistake(run("classify"), "All 20 training images have the same code in layer fc7")
    put_codes(CODES, np.zeros((20, 4)), Listing(*alike(20)))
    mistake(run("classify"), "have the same code")


def alike(count: int) -> tuple[list[str], list[int], list[str], list[str], list[str]]:
    """Return what stands beside the codes of two classes: paths, labels, splits, digests, classes."""
    paths, digests = ([f"{number:{shape}}" for number in range(count)] for shape in ("", "064"))
    return paths, [number % 2 for number in range(count)], ["train"] * count, digests, ["a", "b"]
