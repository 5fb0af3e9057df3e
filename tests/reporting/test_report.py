"""report: one page that says what the files say, shows any name as text, and works in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Listing, Outcome, put_codes, write_photos
from helpers import CODES, mistake, write_training
from PIL import Image
from sklearn.metrics import f1_score

from pipeline.analysis import predictions
from pipeline.networks import backbones
from pipeline.reporting import charts, rendering, summary, thumbnails
from pipeline.reporting.experiments import find_experiments

Run = Callable[..., Outcome]
PAGE = Path("reports/index.html")
SOFT_GRID = "{l2: {C: [1, 10, 100]}}"
CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NASTY = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(1)</script>",
    "\"quoted\" & 'single' {{ 7 * 7 }}.png",
    "two\nlines\u2028three.png",
    "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd.png",
    "x" * 196 + ".png",
    "odd bytes \udcff.png",
]


def data_of(html: str) -> Any:
    """Return what the page gives its script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def trained(run: Run, *models: str) -> None:
    for model in models or ("svm", "softmax"):
        assert run("classify", "--model", model, "--grid", SOFT_GRID).code == 0
        assert run("evaluate", "--model", model).code == 0


def write_pictured(
    paths: list[str],
    labels: list[int],
    splits: list[str],
    classes: list[str],
    values: np.ndarray | None = None,
    digests: list[str] | None = None,
) -> None:
    """Write codes of given images; by default class by class apart."""
    rng = np.random.default_rng(1)
    if values is None:
        values = np.maximum(2 * np.eye(16)[np.array(labels)] + 0.5 * rng.random((len(labels), 16)), 0)
    digests = digests or [f"{number:064x}" for number in range(len(paths))]
    bad = ["broken.png: the file is empty (zero bytes)"]
    put_codes(CODES, values, Listing(paths, labels, splits, digests, classes, bad))


@pytest.fixture
def pictured(run: Run, project: Path) -> Run:
    """Two classifiers of the colours of real pictures, some of them wrong: classes overlap."""
    write_photos(project / "data" / "digits", {"blue": 16, "green": 16, "red": 16})
    labels = [number // 16 for number in range(48)]
    paths = [f"{['blue', 'green', 'red'][label]}/{number % 16:02}.png" for number, label in enumerate(labels)]
    noise = np.random.default_rng(3).random((48, 16))
    values = 0.6 * np.eye(16)[labels] + noise
    write_pictured(paths, labels, ["train", "train", "test", "test"] * 12, ["blue", "green", "red"], values)
    trained(run)
    return run


# Figures


def test_experiments_on_other_images_are_not_compared() -> None:
    right = np.array([True] * 20)
    found = summary.compare([(1, right), (1, ~right), (2, right)])
    assert [row["best"] for row in found] == [True, False, False]
    assert found[1]["differs"] is True and found[2]["p"] is None


def test_layers_stand_in_the_networks_order() -> None:
    layers = {"fc7", "conv1", "pool3", "fc6", "features.24"}
    assert backbones.sort_layers(backbones.get("tinyvgg"), layers) == ["conv1", "pool3", "features.24", "fc6", "fc7"]
    assert summary.order_layers("unheard of", {"b", "a"}) == ["a", "b"]


def test_curves_of_few_images_are_drawn(pictured: Run) -> None:
    assert pictured("classify", "--model", "svm", "--grid", SOFT_GRID, "--shots", 1, 2, 4, "--draws", 2).code == 0
    with Path("models/digits/tinyvgg/fc7-svm-shots.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (chart,) = summary.summarise(Path("reports"), find_experiments(Path("reports")), 0)["shots"]
    (line,) = chart["series"]
    assert line["name"] == "fc7, svm" and [label for _, label in chart["x_ticks"]] == ["1", "2", "4"]
    across, down, _, _, titles, _ = zip(*line["points"], strict=True)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    for title, row in zip(titles, rows, strict=True):
        assert title.startswith(f"{row['shots']} a class: {float(row['accuracy']):.4f} ± {float(row['deviation']):.4f}")
    assert np.argsort(down).tolist() == np.argsort([-float(row["accuracy"]) for row in rows], kind="stable").tolist()
    pictured("report")
    assert "Few images" in PAGE.read_text() and titles[0] in PAGE.read_text()


@pytest.mark.parametrize(("low", "high"), [(0.977, 0.9965), (0.0, 1.0), (0.5, 0.5), (-3.2, 12.9)])
def test_ticks_are_few_and_enclose(low: float, high: float) -> None:
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7


# What the page says


def test_the_summary_says_what_the_files_say(pictured: Run) -> None:
    found_summary = summary.summarise(Path("reports"), find_experiments(Path("reports")), 10**6)
    assert len(found_summary["experiments"]) == 2 and found_summary["experiments"][0]["best"]
    for entry in found_summary["experiments"]:
        found = predictions.read_predictions(Path("reports", entry["name"]))
        assert entry["top1"] == found.correct.mean() and entry["wrong_total"] == (~found.correct).sum() > 0
        assert sum(cell[2] for cell in entry["cells"]) == 24
        f1 = f1_score(found.labels, found.predicted, average=None)
        np.testing.assert_allclose([row[2] for row in entry["per_class"]], f1, atol=1e-4)
        assert len(entry["mistakes"]) == entry["wrong_total"] and len(entry["doubts"]) == 24
        for item in entry["mistakes"]:
            path, label, split = found_summary["images"][item["image"]]
            assert split == "test" and found.classes[label] == path.split("/")[0] and item["said"] != label
            assert [found_summary["images"][near][2] for near, _ in item["near"]] == ["train"] * 5
        for measure in ("mistakes", "doubts"):
            sure = [item["sure"] for item in entry[measure]]
            assert sure == sorted(sure, reverse=measure == "mistakes")
    measures = {entry["model"]: entry for entry in found_summary["experiments"]}
    assert measures["softmax"]["measure"] == "probability" and 0 <= measures["softmax"]["calibration"]["ece"] <= 1
    assert measures["svm"]["measure"] == "lead" and measures["svm"]["calibration"] is None
    assert len(found_summary["datasets"]["digits"]["map"]["points"]) == 48 and len(found_summary["thumbs"]) == 48


def test_report_prints_the_table_and_writes_the_page(pictured: Run) -> None:
    outcome = pictured("report")
    assert outcome.code == 0 and outcome.out.startswith("dataset ") and "reports/index.html" in outcome.out
    html = PAGE.read_text()
    assert html.startswith("<!doctype html>") and "broken.png: the file is empty (zero bytes)" in html
    for text in ("ab" * 32, "chosen.parameters.C", "versions.scikit-learn", "C paths", "ECE", "source: digits"):
        assert text in html
    PAGE.write_text("as it is")
    assert "softmax" in pictured("report", "--table").out and PAGE.read_text() == "as it is"


def test_two_runs_give_the_same_page(pictured: Run) -> None:
    pictured("report", "--out", "one.html")
    pictured("report", "--out", "two.html")
    assert Path("one.html").read_bytes() == Path("two.html").read_bytes()


def test_a_page_of_one_dataset(pictured: Run) -> None:
    mistake(pictured("report", "--dataset", "other"), "no scores", "dvc repro")
    assert pictured("report", "--dataset", "digits", "--backbone", "tinyvgg").code == 0
    mistake(pictured("report", "--thumbnails", -1), "--thumbnails")


def test_scores_alone_make_a_page(run: Run) -> None:
    write_training()
    trained(run)
    shutil.rmtree("models")
    assert run("report").code == 0
    data = data_of(PAGE.read_text())
    assert "no description" in data["experiments"][0]["note"] and data["experiments"][0]["measure"] == "margin"


def test_scores_of_other_codes_are_told_apart(run: Run) -> None:
    write_training()
    trained(run, "svm")
    write_training(per_class=24)
    assert run("report").code == 0
    assert "Run pipeline.evaluate again" in data_of(PAGE.read_text())["experiments"][0]["note"]
    (Path("reports/digits/tinyvgg/fc7-svm") / "predictions.csv").write_text("path,label\na,b\n")
    mistake(run("report"), "incomplete or damaged", "pipeline.evaluate")


def test_a_copy_in_the_other_split_under_another_class_is_found(run: Run, project: Path) -> None:
    """Once with the same bytes, once saved anew: bytes differ, pictures are alike."""
    photos = write_photos(project / "photos", {"bee": 20, "ant": 20, "fly": 20})
    for kind in ("train", "test"):
        for name in ("bee", "ant", "fly"):
            (photos / kind / name).mkdir(parents=True)
    for name in ("bee", "ant", "fly"):
        for number, file in enumerate(sorted((photos / name).iterdir())):
            file.rename(photos / ("test" if number < 8 else "train") / name / file.name)
        (photos / name).rmdir()
    smooth = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    smooth.save(photos / "train" / "bee" / "gradient.png")
    smooth.save(photos / "test" / "ant" / "resaved.jpg", quality=90)
    shutil.copy(photos / "train" / "bee" / "10.png", photos / "test" / "ant" / "copy.png")
    for stage in (("prepare", "--dataset", photos, "--out", "data/digits"), ("extract", "--layer", "fc7")):
        assert run(*stage).code == 0
    trained(run, "svm")
    assert run("report").code == 0
    data = data_of(PAGE.read_text())
    leaks = data["datasets"]["digits"]["leaks"]
    pairs = [[Path(data["images"][number][0]).name for number in pair] for pair in leaks["copies"]]
    assert leaks["copies_total"] == 1 and sorted(pairs[0]) == ["10.png", "copy.png"]
    near = [{Path(data["images"][number][0]).name for number in pair[:2]} for pair in leaks["pairs"]]
    assert {"gradient.png", "resaved.jpg"} in near
    twins = data["datasets"]["digits"]["labels"]["twins"]
    assert [Path(data["images"][number][0]).name for number in twins[0]] != [] and len(twins) == 1


def test_a_wrong_label_is_suspected_and_a_stray_file_stands_out(run: Run) -> None:
    labels = [number % 2 for number in range(200)]
    values = 2 * np.eye(16)[labels] + 0.3 * np.random.default_rng(0).random((200, 16))
    values[30] = np.eye(16)[15]
    labels[10] = 1 - labels[10]
    paths = [f"{number}.jpg" for number in range(200)]
    paths[30] = "placeholder.gif"
    write_pictured(paths, labels, (["train"] * 4 + ["test"]) * 40, ["a", "b"], values)
    trained(run, "svm")
    run("report", "--thumbnails", 0)
    data = data_of(PAGE.read_text())
    found = data["datasets"]["digits"]
    assert data["images"][found["labels"]["items"][0]["image"]][0] == "10.jpg"
    assert data["images"][found["odd"]["items"][0]["image"]][0] == "placeholder.gif"
    assert [data["images"][number][0] for number in found["odd"]["types"]] == ["placeholder.gif"]


# Size


def test_thumbnails_stay_within_their_budget(pictured: Run) -> None:
    for megabytes in (0, 0.01, 8):
        pictured("report", "--thumbnails", megabytes)
        data = data_of(PAGE.read_text())
        assert sum(map(len, data["thumbs"].values())) <= megabytes * 1e6
        found = data["datasets"]["digits"]
        lists = [found["labels"]["items"], found["odd"]["items"]]
        lists += [entry[name] for entry in data["experiments"] for name in ("mistakes", "doubts")]
        listed = {item["image"] for items in lists for item in items}
        if megabytes == 0.01:
            assert 0 < len(data["thumbs"]) < 48 and set(map(int, data["thumbs"])) <= listed
    assert PAGE.stat().st_size < 300_000


def test_a_thumbnail_is_small_upright_and_absent_where_the_file_is(tmp_path: Path) -> None:
    import base64
    import io

    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "turned.jpg", exif=exif)
    album = thumbnails.Album()
    numbers = [album.add(tmp_path, name, 0, "test", 1) for name in ("turned.jpg", "gone.jpg", "turned.jpg")]
    found = album.thumbnails(10**6)
    assert numbers == [0, 1, 0] and list(found) == [0]
    assert Image.open(io.BytesIO(base64.b64decode(found[0]))).size == (32, 64)


def test_many_images_and_classes_make_a_page_of_bounded_size(run: Run) -> None:
    """More classes than a matrix has room for; what stands behind the cells is cut off and counted."""
    from pipeline.reporting import image_lists

    rng = np.random.default_rng(0)
    classes = [f"class {number:03}" for number in range(250)]
    labels = [number % 250 for number in range(1500)]
    values = rng.random((1500, 300)) + 2 * np.eye(300)[np.array(labels)]
    write_pictured([f"{n}.png" for n in range(1500)], labels, ["train"] * 500 + ["test"] * 1000, classes, values)
    assert run("classify", "--model", "softmax", "--grid", "{l2: {C: [1]}}", "--folds", 2).code == 0
    run("evaluate", "--model", "softmax")
    assert run("report").code == 0
    entry = data_of(PAGE.read_text())["experiments"][0]
    assert len(entry["cells"]) <= image_lists.LISTED_CELLS and all(cell[0] != cell[1] for cell in entry["cells"])
    assert PAGE.stat().st_size < 1_000_000


# Names


def test_any_name_is_shown_as_text(run: Run) -> None:
    labels = [number % len(NASTY) for number in range(12 * len(NASTY))]
    names = [NASTY[label] for label in labels]
    paths = [f"{number}/{name}" for number, name in enumerate(names)]
    classes = [name.replace("\udcff", "ÿ") for name in NASTY]
    write_pictured(paths, labels, ["train"] * 7 * 8 + ["test"] * 7 * 4, classes)
    trained(run, "svm")
    assert run("report").code == 0
    html = PAGE.read_text()
    assert (
        "<img src=x" not in html and "</script><script>alert" not in html and "49" not in html.split("quoted")[1][:40]
    )
    assert html.count("<script") == 2 and html.count("</script>") == 2
    assert not set("\u2028\u202e\udcff") & set(html)
    data = data_of(html)
    assert data["datasets"]["digits"]["classes"][0] == NASTY[0]
    assert {path.split("/", 1)[1] for path, *_ in data["images"]} >= {NASTY[0], NASTY[1]}


def test_legible_text_and_json_in_a_script() -> None:
    assert rendering.legible({"a\n": ["\x00b", "\udcff", 3, None]}) == {"a\\n": ["\\x00b", "\\udcff", 3, None]}
    assert rendering.legible("\u202egnp.exe שלום") == "\\u202egnp.exe שלום"
    nasty = {"name": "</script>&\u2028\u2029<!--"}
    assert json.loads(rendering.island(nasty)) == nasty and not set("<>&\u2028\u2029") & set(rendering.island(nasty))


# In a browser


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
    """Open the page as a person would, and see at the end that nothing went wrong and nothing was fetched."""
    complaints: list[str] = []
    opened = []

    def call(width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        opened.append(context)
        own = PAGE.resolve().as_uri()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("data:", own)) else None)
        page.goto(own)
        return page

    yield call
    for context in opened:
        context.close()
    assert complaints == []


def width_of(image: Any) -> int:
    """Wait for a picture, and return how many pixels wide its file is."""
    return int(image.evaluate("node => node.decode().then(() => node.naturalWidth)"))


def test_sorting_by_clicks(pictured: Run, visit: Callable[..., Any]) -> None:
    pictured("report")
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


def test_a_confusion_cell_opens_its_images(pictured: Run, visit: Callable[..., Any]) -> None:
    pictured("report")
    page = visit()
    cell = page.locator("#confusion [data-cell]").first
    number = int(cell.inner_text())
    cell.click()
    dialog = page.locator("dialog#behind")
    assert dialog.is_visible() and dialog.locator(".card").count() == min(number, 12)
    assert width_of(dialog.locator("img").first) == 40
    dialog.get_by_role("button", name="close").click()
    assert not dialog.is_visible()
    page.locator("#confusion [data-listed]").first.click()
    assert dialog.is_visible()
    page.keyboard.press("Escape")


def test_hovering_over_the_map_shows_the_picture(pictured: Run, visit: Callable[..., Any]) -> None:
    pictured("report")
    page = visit()
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    x, y, _ = data_of(PAGE.read_text())["datasets"]["digits"]["map"]["points"][0]
    side = canvas.bounding_box()["width"]
    place = {"x": 14 + x / 1000 * (side - 28), "y": 14 + y / 1000 * (side - 28)}
    canvas.hover(position=place)
    tip = page.locator("#tip")
    assert tip.is_visible() and tip.locator("img").count() == 1
    assert tip.locator("bdi").last.inner_text() in [image[0] for image in data_of(PAGE.read_text())["images"]]
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_another_experiment_can_be_picked(pictured: Run, visit: Callable[..., Any]) -> None:
    pictured("report")
    page = visit()
    before = page.locator("#said").inner_text(), page.locator("#mistakes-note").inner_text()
    page.locator("[data-pick='1']").click()
    assert page.locator("#picker").input_value() == "1"
    assert (page.locator("#said").inner_text(), page.locator("#mistakes-note").inner_text()) != before


def test_a_long_gallery_shows_its_first_cards_and_all_when_asked(pictured: Run, visit: Callable[..., Any]) -> None:
    pictured("report")
    page = visit()
    cards = page.locator("#doubts .card")
    assert cards.count() == 24 and sum(card.is_visible() for card in cards.all()) == 8
    page.locator("#doubts").get_by_role("button", name="show all 24").click()
    assert all(card.is_visible() for card in cards.all()) and page.locator("#doubts > button").count() == 0


def test_pictures_are_shown_when_they_come_into_view(pictured: Run, visit: Callable[..., Any]) -> None:
    pictured("report")
    page = visit()
    assert page.locator("#odd img").count() == 0
    page.locator("#odd .card").first.scroll_into_view_if_needed()
    assert width_of(page.locator("#odd img").first) == 40


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light"), (390, "dark")])
def test_names_are_text_and_nothing_sticks_out(run: Run, visit: Callable[..., Any], width: int, scheme: str) -> None:
    test_any_name_is_shown_as_text(run)
    page = visit(width, scheme)
    assert page.locator("img[src='x']").count() == 0
    assert NASTY[0] in page.locator("#per-class td").all_text_contents()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_canvas_of_forty_classes_opens_cells_too(run: Run, visit: Callable[..., Any]) -> None:
    labels = [number % 40 for number in range(400)]
    values = 0.9 * np.eye(48)[np.array(labels)] + np.random.default_rng(0).random((400, 48))
    names = [f"class {number:02}" for number in range(40)]
    write_pictured([f"{n}.png" for n in range(400)], labels, ["train"] * 240 + ["test"] * 160, names, values)
    assert run("classify", "--model", "softmax", "--grid", "{l2: {C: [10]}}").code == 0
    run("evaluate", "--model", "softmax")
    run("report")
    page = visit()
    truth, said, *_ = data_of(PAGE.read_text())["experiments"][0]["cells"][0]
    canvas = page.locator("canvas.fields")
    size = canvas.bounding_box()["width"] / 40
    canvas.click(position={"x": (said + 0.5) * size, "y": (truth + 0.5) * size})
    assert page.locator("dialog#behind h3").inner_text().startswith(names[truth])
