"""Source classes that look like the target weigh more, and fine-tuning draws their images."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import ROOT, Outcome, write_photos
from helpers import mistake
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import files, yaml_text

Run = Callable[..., Outcome]


def write_digits(folder: Path, rows: range, labels: np.ndarray, prefix: str, order: np.ndarray | None = None) -> None:
    """Write digits as 8×8 pixels in class folders; order: in which their pixels stand."""
    images = load_digits().images
    for row in rows:
        pixels = images[row].ravel()[slice(None) if order is None else order].reshape(8, 8)
        path = folder / f"{prefix}{labels[row]}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)


def test_digits_weigh_more_for_digits_than_noise_and_are_drawn(run: Run) -> None:
    rng, labels = np.random.default_rng(0), load_digits().target
    write_digits(Path("source"), range(900), labels, "digit")
    write_digits(Path("source"), range(300), rng.permutation(labels), "noise", rng.permutation(64))
    write_digits(Path("target"), range(900, 1000), labels, "")
    for name in ("source", "target"):
        assert run("prepare", "--dataset", name, "--test", 0.1).code == 0
        assert run("extract", "--dataset", name, "--layer", "pool3", "--precision", "fp32").code == 0
    address = ("--layer", "pool3", "--model", "softmax")
    grid = ("--grid", "{l2: {C: [10]}}", "--folds", 2)
    assert run("classify", "--dataset", "source", *address, *grid).code == 0
    outcome = run("weigh", "--dataset", "target", "--source", "source", *address)
    assert outcome.code == 0 and "20 classes by the classifier models/source" in outcome.out, outcome
    file = Path("reports/target/tinyvgg/source_weights/weights.csv")
    rows = files.read_csv(file)
    assert sum(float(row["p_target"]) for row in rows if row["class"].startswith("digit")) >= 0.9
    assert sum(int(row["n"]) for row in rows) == 1081, "training images of the source"
    facts = json.loads(file.with_name("weights.json").read_text())
    assert 2 < facts["effective_classes"] < 12 and facts["n_images"] == 90

    tune = ("--dataset", "source", "--layer", "pool3", "--head", "random", "--unfreeze", "none", "--epochs", 1)
    outcome = run("finetune", *tune, "--augment", "none", "--sample-by", file, "--draws", 16)
    assert outcome.code == 0 and "(16 per epoch), by the weights of their classes (repeat)" in outcome.out, outcome
    facts = json.loads(Path("models/source/tinyvgg/pool3-finetuned.json").read_text())
    assert facts["sampling"]["method"] == "repeat" and len(facts["sampling"]["class_weights"]) == 20
    mistake(run("finetune", *tune, "--sample-by", file, "--sampling", "exhaust"), "needs fewer --draws")
    mistake(run("finetune", "--dataset", "target", *tune[2:], "--sample-by", file), "no weight for 10 classes")
    mistake(run("weigh", "--dataset", "target", "--source", "source", "--layer", "pool3"), "pool3-svm")


def test_the_networks_own_head_weighs_its_classes(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    outcome = run("weigh", "--dataset", "photos", "--backbone", "tinyvgg")
    assert outcome.code == 0 and "200 classes by the head of tinyvgg (default weights)" in outcome.out, outcome
    rows = files.read_csv(Path("reports/photos/tinyvgg/source_weights/weights.csv"))
    assert len(rows) == 200 and rows[0]["n"] == "" and abs(sum(float(row["p_target"]) for row in rows) - 1) < 1e-6
    mistake(run("weigh", "--dataset", "photos", "--backbone", "alexnet", "--weights", "random"), "predicts no classes")


def test_the_stages_of_the_documentation_run_one_after_the_other(run: Run) -> None:
    """Each stage finds what it depends on, and leaves what it promises; DVC itself runs in the pipeline's own tests."""
    page = (ROOT / "docs" / "which-source.md").read_text(encoding="utf-8")
    (fragment,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    stages = yaml_text.load(fragment.replace("${draws}", "16"))["stages"]
    write_photos(Path("photos"), {"ants": 7, "bees": 7})
    write_photos(Path("source"), {"bee": 4, "ladybug": 4}, seed=1)
    for name in ("photos", "source"):
        assert run("prepare", "--dataset", name).code == 0
    for stage in stages.values():
        assert all(Path(path).exists() for path in stage["deps"]) and not any(
            Path(path).exists() for path in stage["outs"]
        )
        command, *arguments = shlex.split(stage["cmd"].removeprefix("python -m pipeline."))
        assert set(re.findall(r"\S+/\S+", stage["cmd"])) <= {*stage["deps"], f"{stage['deps'][-1]}/weights.csv"}
        outcome = run(command, *arguments)
        assert outcome.code == 0 and all(Path(path).exists() for path in stage["outs"]), outcome
    facts = json.loads(Path("models/photos/tinyvgg/fc7-svm.json").read_text())
    assert facts["spec"]["weights"].endswith("source/tinyvgg/fc7-finetuned.safetensors"), facts["spec"]
