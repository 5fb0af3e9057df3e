"""The page in a browser: what its script does, and that nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from helpers import NASTY_NAMES, PAGE, read_page_data, train_and_evaluate, write_listed_codes, write_nasty_report

Run = Callable[..., Outcome]
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


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page; check at the end that there were no errors, and no requests but for the page itself."""
    problems: list[str] = []
    contexts = []

    def call(width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        contexts.append(context)
        own = PAGE.resolve().as_uri()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("data:", own)) else None)
        page.goto(own)
        return page

    yield call
    for context in contexts:
        context.close()
    assert problems == []


def width_of(image: Any) -> int:
    """Wait for an image to load, and return its width in pixels."""
    return int(image.evaluate("node => node.decode().then(() => node.naturalWidth)"))


def test_sorting_by_clicks(scored: Run, visit: Callable[..., Any]) -> None:
    scored("report")
    page = visit()
    rows = "#experiments tbody tr td:nth-child(5)"
    first = page.locator(rows).all_inner_texts()
    page.get_by_role("button", name="model").click()
    ascending = page.locator(rows).all_inner_texts()
    assert ascending == sorted(first) == ["softmax", "svm"]
    page.get_by_role("button", name="model").click()
    assert page.locator(rows).all_inner_texts() == ascending[::-1]
    page.locator("#per-class button", has_text="F1").click()
    values = [float(text) for text in page.locator("#per-class tbody td:nth-child(4)").all_inner_texts()]
    assert values == sorted(values, reverse=True) and len(values) == 3


def test_a_confusion_cell_opens_its_images(scored: Run, visit: Callable[..., Any]) -> None:
    scored("report")
    page = visit()
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


def test_hovering_over_the_map_shows_the_image(scored: Run, visit: Callable[..., Any]) -> None:
    scored("report")
    page = visit()
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    x, y, _ = read_page_data()["datasets"]["digits"]["study"]["code_map"]["points"][0]
    side = canvas.bounding_box()["width"]
    place = {"x": 14 + x / 1000 * (side - 28), "y": 14 + y / 1000 * (side - 28)}
    canvas.hover(position=place)
    tip = page.locator("#tip")
    assert tip.is_visible() and tip.locator("img").count() == 1
    assert tip.locator("bdi").last.inner_text() in [image[0] for image in read_page_data()["images"]]
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_another_experiment_can_be_picked(scored: Run, visit: Callable[..., Any]) -> None:
    scored("report")
    page = visit()
    before = page.locator("#scores").inner_text(), page.locator("#mistakes-note").inner_text()
    page.locator("[data-pick='1']").click()
    assert page.locator("#picker").input_value() == "1"
    assert (page.locator("#scores").inner_text(), page.locator("#mistakes-note").inner_text()) != before


def test_a_long_gallery_shows_its_first_cards_and_all_on_a_click(scored: Run, visit: Callable[..., Any]) -> None:
    scored("report")
    page = visit()
    cards = page.locator("#least-certain .card")
    assert cards.count() == 24 and sum(card.is_visible() for card in cards.all()) == 8
    page.locator("#least-certain").get_by_role("button", name="show all 24").click()
    assert all(card.is_visible() for card in cards.all()) and page.locator("#least-certain > button").count() == 0


def test_images_are_loaded_when_they_come_into_view(scored: Run, visit: Callable[..., Any]) -> None:
    scored("report")
    page = visit()
    assert page.locator("#outliers img").count() == 0
    page.locator("#outliers .card").first.scroll_into_view_if_needed()
    assert width_of(page.locator("#outliers img").first) == 40


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light"), (390, "dark")])
def test_names_are_text_and_fit_the_width(run: Run, visit: Callable[..., Any], width: int, scheme: str) -> None:
    write_nasty_report(run)
    page = visit(width, scheme)
    assert page.locator("img[src='x']").count() == 0
    assert NASTY_NAMES[0] in page.locator("#per-class td").all_text_contents()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_canvas_of_forty_classes_opens_cells_too(run: Run, visit: Callable[..., Any]) -> None:
    labels = [number % 40 for number in range(400)]
    values = 0.9 * np.eye(48)[np.array(labels)] + np.random.default_rng(0).random((400, 48))
    names = [f"class {number:02}" for number in range(40)]
    write_listed_codes([f"{n}.png" for n in range(400)], labels, ["train"] * 240 + ["test"] * 160, names, values)
    train_and_evaluate(run, "softmax", grid="{l2: {C: [10]}}")
    run("report")
    page = visit()
    label, predicted, *_ = read_page_data()["experiments"][0]["confusion_cells"][0]
    canvas = page.locator("canvas.fields")
    size = canvas.bounding_box()["width"] / 40
    canvas.click(position={"x": (predicted + 0.5) * size, "y": (label + 0.5) * size})
    assert page.locator("dialog#cell h3").inner_text().startswith(names[label])
