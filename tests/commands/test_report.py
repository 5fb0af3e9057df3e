"""report: the table, the page, and its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import BAD_FILES, Outcome
from helpers import PAGE, mistake, read_page_data

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
