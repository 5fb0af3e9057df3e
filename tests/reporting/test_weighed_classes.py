"""The page shows which source classes are like the images of a dataset, where `weigh` has said so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Outcome, write_photos
from helpers import PAGE, mistake, train_and_evaluate, write_training

from pipeline import files, weigh
from pipeline.analysis import source_weights
from pipeline.analysis.source_weights import SourceWeights


def test_the_page_shows_heavy_and_light_classes_and_their_effective_number(run: Callable[..., Outcome]) -> None:
    write_training()
    train_and_evaluate(run, "svm")
    names = ("<b>bee", *(f"class {number}" for number in range(24)))
    weights = SourceWeights(names, None, np.r_[0.52, np.full(24, 0.02)])
    folder = Path("reports/digits/tinyvgg/source_weights")
    source_weights.write(folder / "weights.csv", weights)
    weigh.draw(folder / "weights.png", weights)
    facts = {
        "judge": "the head of tinyvgg",
        "source": "",
        "n_images": 45,
        "effective_classes": weights.effective_classes,
    }
    files.write_json(folder / "weights.json", facts)
    files.write_json(Path("reports/other/tinyvgg/source_weights/weights.json"), facts)  # a dataset without experiments
    assert run("report").code == 0
    html = PAGE.read_text()
    assert "&lt;b&gt;bee</bdi></th><td" in html and "<b>bee" not in html
    assert "25 classes, as many as 3.6 equally weighted ones" in html and '<td class="n">13.00</td>' in html
    assert "class 8</bdi></th>" in html and "class 9</bdi></th>" not in html, "ten of the heaviest in the table"
    assert html.count('src="data:image/png;base64,') == 1
    source = write_photos(Path("many"), {names[0]: 6, "class 23": 2})
    assert run("prepare", "--dataset", source, "--test", 0).code == 0
    next(Path(source, names[0]).glob("*.png")).write_bytes(b"no image")  # it was one when it was prepared
    files.write_json(folder / "weights.json", facts | {"source": "many"})
    assert run("report").code == 0
    html = PAGE.read_text()
    assert html.count('alt="image 4 of &lt;b&gt;bee"') == 1 and "image 5 of" not in html
    assert "image 2 of class 23" in html and html.count('src="data:image/jpeg;base64,') == 6
    assert run("report", "--thumbnails", 0).code == 0 and 'src="data:image/jpeg' not in PAGE.read_text()
    (folder / "weights.csv").write_text("class,weight\nbee,1\n")
    mistake(run("report"), "damaged or of an earlier release", "pipeline.weigh --dataset digits --backbone tinyvgg")
