"""report: the table, the page, and its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import BAD_FILES, Listing, Outcome, put_codes, write_photos
from helpers import CODES, PAGE, mistake, read_page_data, write_training

Run = Callable[..., Outcome]


def test_report_prints_the_table_and_writes_the_page(scored: Run) -> None:
    outcome = scored("report")
    assert outcome.code == 0 and outcome.out.startswith("dataset ") and "reports/index.html" in outcome.out
    html = PAGE.read_text()
    assert html.startswith("<!doctype html>") and BAD_FILES[0] in html
    for text in (
        "ab" * 32,
        "chosen.parameters.C",
        "versions.scikit-learn",
        "against the classifier",
        "ECE",
        "source: digits",
    ):
        assert text in html
    PAGE.write_text("as it is")
    assert "softmax" in scored("report", "--table").out and PAGE.read_text() == "as it is"


def test_two_runs_give_the_same_page(scored: Run) -> None:
    scored("report", "--out", "one.html")
    scored("report", "--out", "two.html")
    assert Path("one.html").read_bytes() == Path("two.html").read_bytes()


def test_a_page_of_one_dataset(scored: Run) -> None:
    mistake(scored("report", "--dataset", "other"), "no scores", "dvc repro")
    for name in ("digits", "data/digits", Path("data/digits").resolve()):
        assert scored("report", "--dataset", name, "--backbone", "tinyvgg").code == 0
    for flags in (("--dataset", "*"), ("--dataset", "[d]igits"), ("--backbone", "*"), ("--backbone", "../digits")):
        mistake(scored("report", *flags), "no scores")
    mistake(scored("report", "--thumbnails", -1), "--thumbnails")


def test_thumbnails_stay_within_their_budget(scored: Run) -> None:
    for megabytes in (0, 0.01, 8):
        scored("report", "--thumbnails", megabytes)
        data = read_page_data()
        assert sum(map(len, data["thumbnails"].values())) <= megabytes * 1e6
        holders = [data["datasets"]["digits"], *data["experiments"]]
        cards = [card for holder in holders for images in holder["lists"].values() for card in images["cards"]]
        listed = {image for card in cards for image in card["images"]}
        if megabytes == 0.01:
            assert 0 < len(data["thumbnails"]) < 48 and set(map(int, data["thumbnails"])) <= listed
    assert PAGE.stat().st_size < 300_000


def test_images_without_scores_have_a_page_that_claims_none(run: Run, project: Path) -> None:
    write_training(per_class=8)
    outcome = run("report")
    assert outcome.code == 0 and "24 images, no scores" in outcome.out and "top-1" not in PAGE.read_text()
    assert "python -m pipeline.classify --dataset digits" in PAGE.read_text()
    mistake(run("report", "--table"), "no scores")
    mistake(run("report", "--layer", "pool3"), "no scores")


def test_codes_that_belong_to_other_images_are_left_out(run: Run, project: Path) -> None:
    write_training(per_class=8)
    write_photos(Path("photos"), {"a": 4, "b": 4})
    assert run("prepare", "--dataset", "photos", "--out", "data/digits").code == 0
    mistake(run("report", "--dataset", "digits"), "does not belong to the dataset", "pipeline.extract")
    mistake(run("report"), "digits is left out", "no scores")
    assert run("prepare", "--dataset", "photos").code == 0
    mistake(run("report", "--dataset", "photos"), "no codes of photos", "pipeline.extract --dataset photos")


def test_images_whose_codes_are_all_the_same(run: Run, project: Path) -> None:
    listing = Listing(
        [f"{n}.png" for n in range(20)], [-1] * 20, ["unlabelled"] * 20, [f"{n:064x}" for n in range(20)], []
    )
    put_codes(CODES, np.ones((20, 16)), listing)
    assert run("report").code == 0
    data = read_page_data()["datasets"]["digits"]
    assert data["lists"]["clusters"]["cards"] == [] and data["lists"]["unlabelled_near_duplicates"]["found"] > 0
    assert {tuple(point[:2]) for point in data["study"]["code_map"]["points"]} == {(500, 500)}
