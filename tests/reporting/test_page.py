"""The page in a browser: what its script does, that it fits the screen, and that nothing is fetched."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Listing, Outcome, make_spec, put_codes, write_scored_project
from helpers import (
    CODES,
    NASTY_NAMES,
    PAGE,
    read_page_data,
    train_and_evaluate,
    write_listed_codes,
    write_nasty_report,
    write_scores,
)

from pipeline import command_line, evaluate
from pipeline.classifiers import scoring
from pipeline.codes.reader import Codes
from pipeline.texts import Texts

Run = Callable[..., Outcome]
Visit = Callable[..., Any]
CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST: playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("NO BROWSER TEST OF THE REPORT: chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=SWITCHES)
        yield opened
        opened.close()


def command(stage: str, *arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    return command_line.run_command(stage, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `scored` gives it, with its page."""
    folder = tmp_path_factory.mktemp("photos")
    with contextlib.chdir(folder):
        write_scored_project(command)
        assert command("report") == 0
    return folder


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open the page of a project; check at the end that there were no errors, and no requests but for the page."""
    problems: list[str] = []
    contexts = []

    def call(project: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        contexts.append(context)
        own = (project / PAGE).resolve().as_uri()
        allowed = ("data:", "blob:", own)
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(allowed) else None)
        page.goto(own)
        return page

    yield call
    for context in contexts:
        context.close()
    assert problems == []


def width_of(image: Any) -> int:
    """Wait for an image to load, and return its width in pixels."""
    return int(image.evaluate("node => node.decode().then(() => node.naturalWidth)"))


def download(page: Any, button: Any) -> list[dict[str, str]]:
    """Click a button, and return the rows of the CSV file that it gives."""
    with page.expect_download() as file:
        button.click()
    text = Path(file.value.path()).read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_sorting_by_clicks(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    rows = "#experiments tbody tr td:nth-child(5) > bdi"
    first = page.locator(rows).all_inner_texts()
    page.get_by_role("button", name="model").click()
    ascending = page.locator(rows).all_inner_texts()
    assert ascending == sorted(first) == ["softmax", "svm"]
    page.get_by_role("button", name="model").click()
    assert page.locator(rows).all_inner_texts() == ascending[::-1]
    page.locator("#per-class button", has_text="F1").click()
    values = [float(text.strip("%")) for text in page.locator("#per-class tbody td:nth-child(4)").all_inner_texts()]
    assert values == sorted(values, reverse=True) and len(values) == 3


def test_a_confusion_cell_opens_its_images(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    cell = page.locator("#confusion [data-cell]").first
    number = int(cell.inner_text())
    cell.click()
    dialog = page.locator("dialog#cell")
    assert dialog.is_visible() and dialog.locator(".card").count() == min(number, 12)
    assert width_of(dialog.locator("img").first) == 40
    dialog.get_by_role("button", name="close").click()
    assert not dialog.is_visible()
    page.locator("#confusion [data-listed]").first.click()
    assert dialog.is_visible()
    page.keyboard.press("Escape")


def test_an_image_is_enlarged_by_a_click_or_by_keys(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    dialog, thumb = page.locator("dialog#large"), page.locator("#mistakes button.thumb").first
    thumb.click()
    shown = dialog.locator(".words").inner_text()
    assert dialog.locator("img").bounding_box()["width"] > 300 and dialog.locator("img").get_attribute("alt") in (
        thumb.locator("img").get_attribute("alt"),
    )
    page.keyboard.press("ArrowRight")
    assert dialog.locator(".words").inner_text() != shown and "predicted" in dialog.locator(".words").inner_text()
    page.keyboard.press("ArrowLeft")
    assert dialog.locator(".words").inner_text() == shown
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    thumb.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible() and dialog.locator(".words").inner_text() == shown
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def places_on_map(page: Any, project: Path) -> Iterator[tuple[float, float]]:
    """Scroll to the map and yield where each of its points is on the screen."""
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for x, y, _ in read_page_data(project)["datasets"]["digits"]["study"]["code_map"]["points"]:
        yield tuple(box[axis] + 14 + place / 1000 * (box["width"] - 28) for axis, place in (("x", x), ("y", y)))


def test_hovering_over_the_map_shows_the_image(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    page.mouse.move(*next(places_on_map(page, photos_project)))
    tip = page.locator("#tip")
    assert tip.is_visible() and tip.locator("img").count() == 1
    assert tip.locator("bdi").last.inner_text() in [image[0] for image in read_page_data(photos_project)["images"]]
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_drawing_around_points_of_the_map_lists_their_images(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    places = list(places_on_map(page, photos_project))
    (left, top), (right, bottom) = (tuple(edge(axis) for axis in zip(*places, strict=True)) for edge in (min, max))
    middle = (left + right) / 2
    inside = sum(x < middle for x, _ in places)
    page.mouse.move(left - 6, top - 6)
    page.mouse.down()
    for corner in ((middle, top - 6), (middle, bottom + 6), (left - 6, bottom + 6), (left - 6, top - 3)):
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    chosen = page.locator("#chosen")
    assert 0 < inside < len(places) and chosen.locator("h3").inner_text().startswith(f"{inside} image")
    assert chosen.locator("button.thumb").count() == inside
    rows = download(page, chosen.get_by_role("button", name="chosen images as CSV"))
    assert len(rows) == inside and {row["label"] for row in rows} <= {"blue", "green", "red"}
    chosen.get_by_role("button", name="clear").click()
    assert chosen.locator("button.thumb").count() == 0


def test_keys_choose_a_rectangle_of_the_map(photos_project: Path, visit: Visit) -> None:
    page, points = (
        visit(photos_project),
        read_page_data(photos_project)["datasets"]["digits"]["study"]["code_map"]["points"],
    )
    page.locator("#map canvas").focus()
    for key in ["ArrowLeft"] * 4 + ["ArrowUp"] * 4 + ["Shift+ArrowRight"] * 8 + ["Shift+ArrowDown"] * 8:
        page.keyboard.press(key)
    inside = sum(340 < x < 660 and 340 < y < 660 for x, y, _ in points)
    assert inside and page.locator("#chosen h3").inner_text().startswith(f"{inside} image")
    page.keyboard.press("Escape")
    assert page.locator("#chosen h3").count() == 0


def test_another_experiment_can_be_picked(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    before = page.locator("#scores").inner_text()
    page.locator("[data-pick='1']").click()
    assert page.locator("#picker").input_value() == "1"
    assert page.locator("#scores").inner_text() != before


def test_a_long_gallery_shows_its_first_cards_and_all_on_a_click(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    cards = page.locator("#outliers .card")
    assert cards.count() == 8
    page.locator("#outliers").get_by_role("button", name="show all 24").click()
    assert cards.count() == 24 and page.locator("#outliers").get_by_role("button", name="show all").count() == 0


def test_images_are_loaded_when_they_come_into_view(photos_project: Path, visit: Visit) -> None:
    page = visit(photos_project)
    assert page.locator("#outliers img").count() == 0
    page.locator("#outliers .card").first.scroll_into_view_if_needed()
    assert width_of(page.locator("#outliers img").first) == 40


def test_lists_are_given_as_csv_files(photos_project: Path, visit: Visit) -> None:
    page, data = visit(photos_project), read_page_data(photos_project)
    experiment = data["experiments"][0]
    first, *_ = download(page, page.locator("[data-csv=experiments]"))
    assert float(first["top1"]) == experiment["top1"] and first["model"] == experiment["model"]
    rows = download(page, page.get_by_role("button", name="mistakes as CSV"))
    assert len(rows) == experiment["lists"]["mistakes"]["found"]
    assert all(row["label"] != row["predicted"] and row["split"] == "test" for row in rows)
    assert float(rows[0][experiment["confidence_kind"]]) == experiment["lists"]["mistakes"]["cards"][0]["confidence"]
    assert len(download(page, page.get_by_role("button", name="outliers as CSV"))) == 24


def test_a_csv_file_holds_no_formula_and_any_name(run: Run, project: Path, visit: Visit) -> None:
    names = ("=HYPERLINK(1)", "+1", "-1", "@SUM", "\tx", 'a "quoted", name', "two\nlines", "שלום")
    write_scores("digits/tinyvgg/fc7-svm", [False] * 16, classes=names)
    assert run("report").code == 0
    rows = download(page := visit(project), page.get_by_role("button", name="mistakes as CSV"))
    labels = [row["label"] for row in rows[:8]]
    assert labels == [f"'{name}" for name in names[:4]] + ["\\tx", names[5], "two\\nlines", names[7]]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_verdict_and_its_command_come_first(photos_project: Path, visit: Visit, width: int) -> None:
    page = visit(photos_project, width)
    data = read_page_data(photos_project)["experiments"][0]
    headline = page.locator(".headline").inner_text()
    assert headline.startswith(
        f"tinyvgg, fc7, {data['model']}: {100 * data['top1']:.1f}% of 24 test images correct (95%"
    )
    assert page.locator("section").first.get_attribute("id") == "verdict" and page.locator(".verdict li").count() == 3
    code = page.locator(".command code")
    assert code.inner_text().startswith("python -m pipeline.") and code.bounding_box()["y"] < 900
    page.get_by_role("button", name="copy").click()
    assert page.evaluate("getSelection().toString()") == code.inner_text()


# Pages of other kinds, on a wide screen and on a phone


def write_many(run: Run) -> None:
    """Ten backbones with long names, and two layers of each."""
    rng = np.random.default_rng(0)
    for number in range(10):
        for layer in ("conv_head", "blocks.11.attn.proj"):
            name = f"digits/unknown/vit_small_patch14_reg{number:02}.lvd142m/{layer}-softmax"
            write_scores(name, (rng.random(60) < 0.5 + number / 25).tolist(), held_out=0.5 + number / 25)


def write_perfect(run: Run) -> None:
    """One experiment without a mistake, without codes and without a classifier."""
    write_scores("digits/tinyvgg/fc7-svm", [True] * 30)


def write_thousand_classes(run: Run) -> None:
    """A thousand classes with long names."""
    names = [f"{number:04} a class whose name is rather long, as those of ImageNet are" for number in range(1000)]
    correct = np.random.default_rng(0).random(3000) < 0.7
    write_scores("digits/resnet18/avgpool-softmax", correct.tolist(), classes=names, held_out=0.7)


def write_two_datasets(run: Run) -> None:
    """Two datasets, of which one has codes, and no image file."""
    write_listed_codes([f"{n}.png" for n in range(60)], [0, 1] * 30, ["train"] * 40 + ["test"] * 20, ["a", "b"])
    train_and_evaluate(run, "svm")
    write_scores("flowers/tinyvgg/fc7-svm", [True] * 20 + [False] * 20, held_out=0.6)


def write_several_labels(run: Run) -> None:
    """An experiment on multi-label images, without codes and classifier."""
    folder, names = PAGE.parent / "mixed/tinyvgg/fc7-svm", ("a label", "x" * 40)
    truth = np.random.default_rng(0).random((40, 2)) < 0.5
    margins = truth + np.random.default_rng(1).normal(size=(40, 2)) - 0.5
    paths, none = Texts.of(f"{n}.png" for n in range(40)), Texts.of([])
    test = Codes(margins, truth.astype(np.uint8), paths, none, none, names, make_spec())
    scores = scoring.score_multi_label(test.labels, margins, names)
    scores.metrics.update(related=0, validation=None)
    evaluate.write(folder, scores, margins, test, np.arange(40))


def write_pile(run: Run) -> None:
    """Images without labels: four groups, two copies, an outlier, and names that look like code."""
    values = 2 * np.eye(16)[np.arange(60) % 4] + 0.3 * np.random.default_rng(0).random((60, 16))
    values[59] = np.eye(16)[15]
    names = [f"{number}/{NASTY_NAMES[number % len(NASTY_NAMES)]}" for number in range(60)]
    digests = [f"{number % 59:064x}" for number in range(60)]
    put_codes(CODES, values, Listing(names, [-1] * 60, ["unlabelled"] * 60, digests, []))


def write_some_labels(run: Run) -> None:
    """A dataset with labelled and unlabelled images, and one without any label."""
    labels, splits = [0, 1] * 20 + [-1] * 20, ["train"] * 30 + ["test"] * 10 + ["unlabelled"] * 20
    values = 2 * np.eye(16)[np.arange(60) % 4] + 0.3 * np.random.default_rng(0).random((60, 16))
    write_listed_codes([f"{n}.png" for n in range(60)], labels, splits, ["a", "b"], values)
    train_and_evaluate(run, "svm", grid="{l2: {C: [1]}}")
    others = Listing([f"{n}.png" for n in range(60)], [-1] * 60, ["unlabelled"] * 60, ["0" * 64] * 60, [])
    put_codes(Path("features/pile/tinyvgg/fc7.h5"), values, others)


KINDS = {
    "several labels": write_several_labels,
    "many experiments": write_many,
    "no mistakes": write_perfect,
    "a thousand classes": write_thousand_classes,
    "two datasets": write_two_datasets,
    "nasty names": write_nasty_report,
}


def fits_the_screen(page: Any, width: int) -> None:
    """See that nothing is wider than the screen, and that no column of the experiments is cut off."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
    cut_off = "[...document.querySelectorAll('.scroll:has(.experiments)')].filter(e => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{cut_off}.length") == 0, width


@pytest.mark.parametrize("kind", KINDS)
def test_any_page_fits_the_screen(run: Run, project: Path, visit: Visit, kind: str) -> None:
    KINDS[kind](run)
    assert run("report").code == 0
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")):
        page = visit(project, width, scheme)
        fits_the_screen(page, width)
        row = page.locator(".experiments tbody tr").first
        assert row.locator(".score").bounding_box()["x"] < width / 4
        if kind != "several labels":
            row.get_by_role("button").click()
        assert page.locator("img[src='x']").count() == 0
    for width in (820, 900, 1050, 1100):
        page.set_viewport_size({"width": width, "height": 900})
        fits_the_screen(page, width)
    if kind == "nasty names":
        assert NASTY_NAMES[0] in page.locator("#per-class td").all_text_contents()


def test_a_page_of_images_without_labels(run: Run, project: Path, visit: Visit) -> None:
    write_pile(run)
    assert "digits: 60 images, no scores" in run("report").out
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = visit(project, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
    assert page.locator(".headline").inner_text().startswith("60 images without labels, and no scores")
    assert "1 group of images with the same bytes" in page.locator(".verdict").inner_text()
    names = page.locator("nav a").all_inner_texts()
    assert names == ["In short", "Map", "Clusters", "Nearest", "Duplicates", "Outliers", "Provenance"]
    assert page.locator("#clusters .card").count() == 5 == page.locator("#map .chips button").count()
    assert page.locator("#neighbours .card").first.locator(".near figure").count() == 5
    rows = download(page, page.get_by_role("button", name="clusters as CSV"))
    assert len(rows) == 60 and {row["group"] for row in rows} == set("12345") and rows[0]["split"] == "unlabelled"
    rows = download(page, page.get_by_role("button", name="neighbours as CSV"))
    assert len(rows) == 60 and all(row["nearest image 1"] != row["path"] for row in rows)
    assert page.locator("#outliers .card .path").first.inner_text().startswith("59/")


def test_a_picked_dataset_has_only_its_own_sections(run: Run, project: Path, visit: Visit) -> None:
    write_some_labels(run)
    assert run("report").code == 0
    page = visit(project)
    assert "10 test images correct" in page.locator(".headline").first.inner_text()
    assert "40 images" not in page.locator("header").inner_text() and page.locator("#mistakes").is_visible()
    assert page.locator("#map-note").inner_text().startswith("All 60 images, coloured by class")
    page.locator("#picker").select_option(label="pile")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.locator("#mistakes").is_visible() and not page.locator("#labels").is_visible()
    assert not page.locator("nav a", has_text="Labels").is_visible() and page.locator("#clusters").is_visible()
    assert page.locator("#map-note").inner_text().startswith("All 60 images, coloured by cluster")
    assert "same bytes" in page.locator("#duplicates [data-dataset=pile] h3").first.inner_text()


def test_a_canvas_of_forty_classes_opens_cells_too(run: Run, project: Path, visit: Visit) -> None:
    labels = [number % 40 for number in range(400)]
    values = 0.9 * np.eye(48)[np.array(labels)] + np.random.default_rng(0).random((400, 48))
    names = [f"class {number:02}" for number in range(40)]
    write_listed_codes([f"{n}.png" for n in range(400)], labels, ["train"] * 240 + ["test"] * 160, names, values)
    train_and_evaluate(run, "softmax", grid="{l2: {C: [10]}}")
    run("report")
    page = visit(project)
    label, predicted, *_ = read_page_data()["experiments"][0]["confusion_cells"][0]
    canvas = page.locator("canvas.fields")
    size = canvas.bounding_box()["width"] / 40
    canvas.click(position={"x": (predicted + 0.5) * size, "y": (label + 0.5) * size})
    assert page.locator("dialog#cell h3").inner_text().startswith(names[label])
