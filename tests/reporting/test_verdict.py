"""verdict: the best is chosen without the test images, and what to do next is a command that runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome
from helpers import write_scores

from pipeline import files
from pipeline.analysis import predictions
from pipeline.reporting.experiments import find_experiments, rank
from pipeline.reporting.page_data import Summary, Verdict
from pipeline.reporting.summary import summarise
from pipeline.reporting.verdict import compare_with_first

REPORTS = Path("reports")
HALF, MOST = [True] * 20 + [False] * 20, [True] * 36 + [False] * 4


def summarise_all() -> tuple[Summary, Verdict]:
    summary = summarise(REPORTS, find_experiments(REPORTS), 0)
    return summary, summary["datasets"]["digits"]["verdict"]


def test_held_out_training_images_choose_the_best_and_not_the_test_images(project: Path) -> None:
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.9)
    write_scores("digits/tinyvgg/fc6-svm", MOST, held_out=0.8)
    summary, verdict = summarise_all()
    assert [row["layer"] for row in summary["experiments"]] == ["fc7", "fc6"]
    assert verdict["validated"] and verdict["compared"] == 2 and verdict["left_out"] == 0
    assert verdict["difference"] == predictions.paired_difference(np.array(HALF), np.array(MOST), np.arange(40))
    assert verdict["difference"].difference == pytest.approx(-0.4) and verdict["apart"] == verdict["comparable"] == 1
    assert verdict["most_frequent"] == 0.5


def test_luck_on_few_validation_images_chooses_nothing(project: Path) -> None:
    write_scores("digits/tinyvgg/fc7-finetuned", HALF, held_out=1.0, n=20)
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.97, n=1000)
    assert [scores["model"] for scores in rank(find_experiments(REPORTS))] == ["svm", "finetuned"]


def test_equal_validation_accuracies_are_not_told_apart_by_the_test_images(project: Path) -> None:
    write_scores("digits/tinyvgg/fc6-svm", HALF, held_out=0.9)
    write_scores("digits/tinyvgg/fc7-svm", MOST, held_out=0.9)
    assert [scores["layer"] for scores in rank(find_experiments(REPORTS))] == ["fc6", "fc7"]


def test_without_validation_accuracies_the_verdict_says_that_test_images_chose(project: Path) -> None:
    write_scores("digits/tinyvgg/fc7-svm", HALF)
    write_scores("digits/tinyvgg/fc6-svm", MOST)
    summary, verdict = summarise_all()
    assert summary["experiments"][0]["layer"] == "fc6" and not verdict["validated"] and verdict["left_out"] == 0
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.3)
    summary, verdict = summarise_all()
    assert summary["experiments"][0]["layer"] == "fc7" and verdict["compared"] == verdict["left_out"] == 1


def test_experiments_on_other_images_are_not_compared(project: Path) -> None:
    correct, units = np.array([True] * 20), np.arange(20)
    comparisons = compare_with_first([(1, correct, units), (1, ~correct, units), (2, correct, units)])
    assert [comparison["best"] for comparison in comparisons] == [True, False, False]
    assert comparisons[1]["differs"] is True and comparisons[2]["p"] is None
    (_, grouped) = compare_with_first([(1, correct, units), (1, ~correct, units // 10)])
    assert grouped["p"] == 0.5, "what is one unit in either experiment counts once"
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.9)
    write_scores("digits/tinyvgg/fc6-svm", MOST[:30], held_out=0.8)
    _, verdict = summarise_all()
    assert verdict["difference"] is None and verdict["comparable"] == 0


def test_the_interval_of_a_difference_covers_it_in_about_95_of_100_samples() -> None:
    rng, covered = np.random.default_rng(0), []
    for _ in range(1000):
        shared, one, other = rng.random(80) < 0.8, rng.random(80) < 0.3, rng.random(80) < 0.1
        _, low, high = predictions.paired_difference(shared | one, shared | other, np.arange(80))
        covered.append(low <= 0.2 * 0.2 <= high)
    assert 0.93 <= np.mean(covered) <= 0.985
    once = predictions.paired_difference(shared | one, shared | other, np.arange(80))
    copied = [np.repeat(correct, 4) for correct in (shared | one, shared | other, np.arange(80))]
    assert predictions.paired_difference(*copied) == pytest.approx(once), "copies are no further evidence"


def write_advice(backbone: str, best: str, *layers: str, fine_tune: bool = False) -> None:
    """Write the advice to take a layer: the others' accuracies are below its interval."""
    measures = {"log_me": 0.0, "h_score": 0.0}
    rows = [
        {"layer": name, "accuracy": accuracy, "low": accuracy - 0.05, "high": 1.0, **measures}
        for name, accuracy in ((best, 0.9), *((layer, 0.5) for layer in layers))
    ]
    advice = {"layer": best, "fine_tune": fine_tune, "sentences": ["Take it."], "measures": ["LogME agrees."]}
    seen = [{"label": "<b>ants", "n": 8, "seen": [["ant", 0.75], ["bee", 0.25]]}]
    content = {"advice": advice, "layers": rows, "curve": [], "source_classes": seen, "finetuning": None}
    files.write_json(REPORTS / "digits" / backbone / "advice" / "advice.json", content)


def test_what_to_do_next_depends_on_what_was_done(project: Path) -> None:
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.5)
    assert "--backbone efficientnet_lite0 --layer avgpool" in summarise_all()[1]["next_step"]["commands"][0]
    write_scores("digits/efficientnet_lite0/stage6-svm", MOST, held_out=0.9)
    (command,) = summarise_all()[1]["next_step"]["commands"]
    assert command.startswith("python -m pipeline.advise --dataset digits --backbone efficientnet_lite0")
    assert "--layer" not in command and "--size 64x64" in command, "all layers, of images as the experiment saw them"
    write_advice("efficientnet_lite0", "avgpool", "stage6")
    assert "--layer avgpool --model svm" in summarise_all()[1]["next_step"]["commands"][1]
    write_advice("efficientnet_lite0", "stage6", "avgpool", fine_tune=True)
    (command,) = summarise_all()[1]["next_step"]["commands"]
    assert command.startswith("python -m pipeline.finetune") and "--layer stage6 --model svm" in command
    write_scores("digits/efficientnet_lite0/stage6-finetuned", HALF, held_out=0.5)
    (command,) = summarise_all()[1]["next_step"]["commands"]
    assert "pipeline.predict --classifier models/digits/efficientnet_lite0/stage6-svm.skops" in command


def test_the_next_command_works_on_the_same_network(project: Path) -> None:
    write_scores("digits/resnet18/avgpool-svm", HALF, held_out=0.5)
    metadata = Path("models/digits/resnet18/avgpool-svm.json")
    metadata.write_text(metadata.read_text().replace('"weights": "default"', '"weights": "my weights.pth"'))
    (command,) = summarise_all()[1]["next_step"]["commands"]
    assert "--backbone resnet18 --weights 'my weights.pth'" in command


def test_the_commands_that_try_another_layer_run(scored: Callable[..., Outcome]) -> None:
    write_advice("tinyvgg", "pool4", "fc7")
    for name in ("svm", "softmax"):
        metrics = REPORTS / "digits/tinyvgg" / f"fc7-{name}/metrics.json"
        metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"top1": 0.97}))
    assert scored("prepare", "--dataset", "data/digits", "--out", "data/digits").code == 0
    commands = summarise_all()[1]["next_step"]["commands"]
    assert len(commands) == 4
    for command in commands:
        _, _, module, *flags = shlex.split(command)
        assert (outcome := scored(module.removeprefix("pipeline."), *flags)).code == 0, outcome
    assert any(row["layer"] == "pool4" for row in find_experiments(REPORTS))


def test_damaged_advice_is_one_sentence_with_the_command_that_repairs_it(
    run: Callable[..., Outcome], project: Path
) -> None:
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.5)
    write_advice("tinyvgg", "fc7")
    path = REPORTS / "digits/tinyvgg/advice/advice.json"
    path.write_text(path.read_text().replace("measures", "reasons"))
    outcome = run("report")
    assert outcome.code == 2 and "python -m pipeline.advise --dataset digits --backbone tinyvgg" in outcome.err


def test_the_page_shows_what_the_pretrained_network_sees(run: Callable[..., Outcome], project: Path) -> None:
    write_scores("digits/tinyvgg/fc7-svm", HALF, held_out=0.5)
    write_advice("tinyvgg", "fc7")
    assert run("report").code == 0
    page = (REPORTS / "index.html").read_text(encoding="utf-8")
    row = '<th scope="row"><bdi>&lt;b&gt;ants</bdi></th><td class="n">8</td><td>ant 75%, bee 25%</td>'
    assert row in page and "of 8 training images in all" in page
