"""compare: the same test images for all, a reference chosen without them, a paired test, and measured costs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, write_photos
from helpers import mistake

from pipeline.analysis import comparison, predictions

Run = Callable[..., Outcome]


def contender(
    correct: np.ndarray, name: str = "fc7", accuracy: float = 0.9, seconds: float = 2.0
) -> comparison.Contender:
    costs = [comparison.Cost(seconds, 5_000_000, None)] * len(correct)
    return comparison.Contender(name, "svm", correct, np.arange(correct.shape[1]), accuracy, costs)


def test_with_one_seed_the_test_is_mcnemars() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((1, 80)) < 0.9, rng.random((1, 80)) < 0.7
    units = np.arange(80)
    assert comparison.paired_test(one, other, units) == predictions.mcnemar(one[0], other[0], units)


def test_with_several_seeds_the_test_finds_true_differences_alone() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    better, worse = (rng.random((5, 200)) < share - 0.3 * hard for share in (1.1, 0.95))
    units = np.arange(200)
    assert comparison.paired_test(better, worse, units) < 0.001
    assert comparison.paired_test(better, better, units) == 1.0
    equal = [comparison.paired_test(*(rng.random((2, 5, 100)) < 0.8), np.arange(100)) for _ in range(60)]
    assert 0 <= np.mean(np.array(equal) <= 0.05) <= 0.15, "one in twenty equal pairs is called different"


def test_the_reference_is_chosen_without_the_test_images() -> None:
    lucky, good = np.ones((2, 50), bool), np.arange(100).reshape(2, 50) % 10 != 0
    frozen = [contender(lucky, "pool4", 0.8), contender(good, "fc7", 0.9)]
    tuned = contender(lucky, "fc7", seconds=20)
    assert comparison.best(frozen).layer == "fc7"
    rows = comparison.rows(frozen, tuned)
    assert [row["p"] is None for row in rows] == [False, True, False]
    assert rows[2]["difference"] == pytest.approx(0.1) and rows[2]["top1"] == 1
    assert rows[0]["seconds"] == 2 and rows[2]["seconds"] == 20 and rows[0]["memory_mb"] == 5


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        (0.99, ("Take the fine-tuned network", "it gains +", "10.0 times the time")),
        (0.80, ("Take the frozen codes with fc7-svm", "nothing beyond chance")),
        (0.50, ("Take the frozen codes with fc7-svm", "fine-tuning loses")),
    ],
)
def test_the_verdict_says_which_to_take(tuned: float, words: tuple[str, ...]) -> None:
    numbers = np.arange(200)
    frozen = contender(np.stack([numbers < 160] * 3))
    other = contender(np.stack([numbers < 200 * tuned] * 3), seconds=20)
    verdict = comparison.verdict([frozen], other)
    assert all(word in verdict for word in words), verdict


@pytest.mark.parametrize("seeds", [1, 3])
def test_copies_of_test_images_are_no_further_evidence(seeds: int) -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random((seeds, 50)) < 0.9, rng.random((seeds, 50)) < 0.75
    units = np.arange(50)
    copies = np.repeat(one, 4, 1), np.repeat(other, 4, 1)
    p = comparison.paired_test(*copies, np.repeat(units, 4))
    assert p == pytest.approx(comparison.paired_test(one, other, units))
    assert p > comparison.paired_test(*copies, np.arange(200))
    contenders = [replace(contender(np.repeat(one, 4, 1)), units=np.repeat(units, 4)), contender(one)]
    rows = [comparison.rows([each], each)[0] for each in contenders]
    assert [(row["n"], row["images"]) for row in rows] == [(50, 200), (50, 50)]
    assert rows[0]["top1_low"] == rows[1]["top1_low"] and rows[0]["top1_high"] == rows[1]["top1_high"]
    assert "200 test images (n = 50; copies" in comparison.verdict(contenders[:1], contenders[0])


def test_costs_add_up() -> None:
    assert comparison.Cost(1, 5, 2.0) + comparison.Cost(2, 3, 1.0) == comparison.Cost(3, 5, 3.0)
    assert (comparison.Cost(1, 5, None) + comparison.Cost(2, 3, 1.0)).joules is None


@pytest.mark.slow
def test_compare_writes_a_table_and_a_verdict(run: Run, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", dict.fromkeys("abcd", 16))
    run("prepare", "--dataset", tmp_path / "photos", "--val", 0.2)
    flags = ("--layer", "fc7", "--model", "softmax", "--seeds", 1)
    outcome = run("compare", "--dataset", "photos", *flags, "--", "--epochs", 1, "--augment", "none")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(Path("reports/photos/tinyvgg/comparison.csv").read_text().splitlines()))
    assert [(row["layer"], row["model"], row["seeds"], row["n"]) for row in rows] == [
        ("fc7", "softmax", "1", "16"),
        ("fc7", "finetuned", "1", "16"),
    ]
    frozen, tuned = rows
    assert float(tuned["seconds"]) > float(frozen["seconds"]) > 0 and float(tuned["memory_mb"]) > 50
    verdict = json.loads(Path("reports/photos/tinyvgg/comparison.json").read_text())["verdict"]
    assert verdict.startswith("Take the ") and verdict in outcome.out
    assert not Path("models").exists(), "the runs that are compared leave no files but the figures"
    wrong = ("--layer", "fc9", "--model", "softmax")
    mistake(run("compare", "--dataset", "photos", *wrong), "pipeline.extract failed: Unknown layer 'fc9'")


def test_mistakes(run: Run) -> None:
    mistake(run("compare", "--seeds", 0), "--seeds is '0', but it must be 1 or more")
    mistake(run("compare", "--layer", "pool3", "--tuned-layer", "fc7"), "Fine-tuning starts from fc7-softmax")
    mistake(run("compare", "--dataset", "nothing"), "no prepared dataset at data/nothing")
