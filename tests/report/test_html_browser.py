"""``report.html`` in a real headless Chromium: sorting, filters, keyboard, themes, phones, no console errors."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.report.build import Report
from bench.report.recommend import MAX_LOSS, Limits, recommend
from bench.report.write.html import write_html
from tests.report.conftest import binary_scores

pytest.importorskip("playwright", reason="playwright is not installed (pip install playwright; no browser download)")
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)

HOSTILE = '</script><img src=x onerror="window.hacked=1">'
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CURVE = "epoch,train_loss,val_loss,val_auc,val_acc\n1,0.7,0.69,0.61,0.5\n2,0.5,0.6,0.71,0.6\n3,0.4,0.62,0.7,0.6\n"


def written(report: Report, out: Path) -> Path:
    return write_html(report, report.sections, out)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, full_run: Any, run_info: dict[str, Any], tmp_path: Path) -> Iterator[Page]:
    """The page of a run at desktop width; whatever it writes to the console fails the test."""
    hostile = full_run.accuracy(HOSTILE, "breastmnist", 0.6, acc=0.5, test_confusion=[[5, 1], [2, 6]])
    full_run.accuracy("resnet18", "chestmnist", 0.7, acc=0.9, test_confusion=[[[90, 3], [4, 3]], [[80, 9], [6, 5]]])
    full_run.efficiency(HOSTILE, 64, speed=50.0, memory=10.0)
    full_run.write(tmp_path)
    for folder in ("history", "logs"):
        (tmp_path / folder).mkdir()
    for record in full_run.records:
        if record["kind"] == "accuracy" and record["status"] == "ok":
            (tmp_path / "history" / f"{record['key']}.csv").write_text(CURVE)
    (tmp_path / "logs" / f"{hostile['key']}.log").write_text(f"{HOSTILE}\nthe last line")
    (tmp_path / "explain" / hostile["key"]).mkdir(parents=True)
    (tmp_path / "explain" / hostile["key"] / "test_0.png").write_bytes(PIXEL)
    path = written(Report(full_run.records, run_info, tmp_path / "predictions"), tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", offline=True)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
    opened.set_default_timeout(5000)
    opened.goto(path.as_uri())
    yield opened
    assert opened.evaluate("window.hacked") is None
    context.close()
    assert complaints == []


def column(page: Page, heading: str) -> list[str]:
    """The texts of one column of the result table."""
    heads = page.locator("#result-table thead th").all_inner_texts()
    place = next(i for i, text in enumerate(heads) if text.strip(" ▲▼") == heading)
    return page.locator(f"#result-table tbody tr > :nth-child({place + 1})").all_inner_texts()


def visit(page: Page, view: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=view).click()
    page.wait_for_selector(f"nav a[aria-current]:text-is('{view}')")


def test_sorting(page: Page):
    visit(page, "Results")
    scores = [float(v) for v in column(page, "AUC") if v != "–"]
    assert scores == sorted(scores, reverse=True) and len(scores) > 5
    assert column(page, "AUC")[-1] == "–", "what has no figure stands last"
    button = page.get_by_role("button", name="AUC", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert [float(v) for v in column(page, "AUC") if v != "–"] == sorted(scores)
    assert column(page, "AUC")[-1] == "–"
    head = page.locator("#result-table th[aria-sort]")
    assert head.count() == 1 and head.get_attribute("aria-sort") == "ascending"
    assert page.evaluate("document.activeElement.textContent") == "AUC", "the keyboard stays where it was"
    assert page.locator("#live").inner_text() == "sorted by AUC, ascending"
    page.get_by_role("button", name="model", exact=True).click()
    assert column(page, "model")[-1].startswith("vit")


def test_filters(page: Page):
    visit(page, "Results")
    everything = page.locator("#result-table tbody tr").count()
    page.get_by_label("Search").fill("MEDMAMBA retina")
    assert column(page, "model") == ["medmamba_tiny"] and column(page, "dataset") == ["retinamnist"]
    assert page.locator("#count").inner_text() == f"1 of {everything} results"
    page.get_by_label("Search").fill("")
    page.get_by_label("status", exact=True).select_option("unsupported")
    assert set(column(page, "model")) == {"swin_tiny"}
    page.get_by_role("button", name="All cells").click()
    assert page.locator("#result-table tbody tr").count() > everything
    page.get_by_label("Search").fill("5.2 GiB")
    assert column(page, "status") == ["oom"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 2 and "5.2 GiB did not fit" in lines[1]


def test_scatter_by_pointer_and_keyboard(page: Page):
    points = page.locator("#tradeoff .pt")
    assert points.count() == 2, "models with an AUC on every counted dataset and a speed"
    page.get_by_label("dataset", exact=True).select_option("breastmnist")
    assert points.count() == 4
    assert "resnet18" in page.locator("#front").inner_text()
    tip = page.locator("#tradeoff .tip")
    assert tip.is_hidden()
    points.first.hover()
    assert tip.is_visible() and "images/s" in tip.inner_text()
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    page.locator("#tradeoff .pt[tabindex='0']").focus()
    assert tip.is_visible()
    said = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") != said
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.get_by_label("x axis", exact=True).focus()
    page.get_by_label("x axis", exact=True).select_option("memory")
    assert "peak memory" in page.locator("#tradeoff figcaption").inner_text()
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    told = page.locator("#front").inner_text().split(": ", 1)[1].rstrip(".").split(", ")
    page.locator("#tradeoff summary").click()
    page.wait_for_selector("#tradeoff details table")
    lines = [line.split("\t")[:3] for line in page.locator("#tradeoff details tbody tr").all_inner_texts()]
    found = {name: (float(x.replace(",", "")), float(y)) for name, x, y in lines}
    best = {
        n for n, (x, y) in found.items() if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in found.values())
    }
    assert {name.replace("vit_tiny", "vit_tiny_patch16_224") for name in told} == best, "by comparing all pairs"
    page.get_by_role("button", name="vit").click()
    assert page.locator("#tradeoff .pt").count() == 3
    page.locator("#tradeoff summary").click()
    page.wait_for_selector("#tradeoff details table")
    assert page.locator("#tradeoff details tbody tr").count() == 3
    page.locator("#tradeoff .pt[tabindex='0']").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#cell h2")
    assert page.evaluate("document.activeElement.tagName") == "H2"


def test_every_view_and_the_page_of_a_cell(page: Page):
    for view, selector in {"Scaling": "#scaling path[data-series]", "Training": "#training path[data-series]",
                           "Errors": "#diagnosis .confusion", "All tables": "#boards table"}.items():  # fmt: skip
        visit(page, view)
        assert page.locator(selector).count() > 0, view
        assert page.locator("main > section:visible").count() == 1
        assert page.locator("nav a[aria-current]").inner_text() == view
    visit(page, "Results")
    page.locator("#result-table tr", has_text="chestmnist").get_by_role("link").click()
    page.wait_for_selector("#cell h2")
    labels = [row.split("\t") for row in page.locator("#cell .confusion tbody tr").all_inner_texts()]
    assert labels == [["0", "90", "3", "4", "3"], ["1", "80", "9", "6", "5"]]
    visit(page, "Results")
    page.get_by_role("link", name=HOSTILE).click()
    page.wait_for_selector("#cell img")
    page.wait_for_selector("#cell h2")
    cell = page.locator("#cell")
    assert cell.locator("h2").inner_text() == f"{HOSTILE} on breastmnist"
    assert cell.locator("pre").inner_text() == f"{HOSTILE}\nthe last line"
    assert cell.locator(".confusion td").all_inner_texts() == ["5", "1", "2", "6"]
    picture = cell.locator("img")
    assert picture.get_attribute("alt") == f"test 0, {HOSTILE}" and picture.evaluate("e => e.naturalWidth") == 1
    assert "Some CPU" in cell.inner_text() and "learning_rate" in cell.inner_text()
    assert page.title().startswith(HOSTILE)
    page.go_back()
    page.wait_for_selector("#results", state="visible")


def test_themes(page: Page):
    def colour() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert colour() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert colour() == "rgb(20, 24, 29)"
    button = page.locator("#theme")
    page.wait_for_selector("#theme:text-is('Light theme')")
    button.click()
    assert colour() == "rgb(255, 255, 255)" and button.inner_text() == "Dark theme"
    page.reload()
    assert colour() == "rgb(255, 255, 255)", "the choice is kept"


def test_readable_on_a_phone(page: Page):
    page.set_viewport_size({"width": 360, "height": 740})
    for view in ("Overview", "Results", "Scaling", "Training", "Errors", "All tables"):
        visit(page, view)
        page.wait_for_timeout(60)  # figures are drawn anew for the width
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
    visit(page, "Overview")
    assert page.locator("#tradeoff svg").last.bounding_box()["width"] <= 340


def test_boards_are_sorted_and_labelled(page: Page):
    visit(page, "All tables")
    table = page.locator("#boards table").first
    place = table.locator("thead th").all_inner_texts().index("AUC")
    before = table.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()
    table.get_by_role("button", name="AUC", exact=True).click()
    after = table.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()
    numbers = [float(v) for v in after if v != "–"]
    assert sorted(before) == sorted(after) and numbers == sorted(numbers, reverse=True)
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, a, select, input, svg[role], [role=link]')]
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)""")
    assert unnamed == []


def test_the_axis_title_stands_beside_the_numbers(browser: Browser, run: Any, tmp_path: Path):
    """Six digits are wider than the room that four need."""
    for resolution, speed in ((64, 126_149.0), (128, 75_256.0), (224, 32_609.0)):
        for model, factor in (("resnet18", 1.0), ("vit_tiny", 0.6)):
            run.efficiency(model, resolution, speed=factor * speed)
    run.write(tmp_path)
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(written(Report(run.records, {}, tmp_path / "predictions"), tmp_path).as_uri() + "#/scaling")
    title = opened.locator("svg g[aria-hidden] text[transform]").first.bounding_box()
    numbers = opened.locator("svg g[aria-hidden] text[text-anchor=end]").all()
    assert title is not None and len(numbers) >= 2
    for number in numbers:
        box = number.bounding_box()
        assert box is not None and box["x"] >= title["x"] + title["width"], number.text_content()
    opened.close()


def opened(browser: Browser, run: Any, out: Path, width: int = 1280, info: dict[str, Any] | None = None) -> Page:
    run.write(out)
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(written(Report(run.records, info or {}, out / "predictions"), out).as_uri())
    return page


LIMITS: tuple[dict[str, float], ...] = (
    {}, {"max_latency_ms": 20}, {"max_latency_ms": 10}, {"max_latency_ms": 1}, {"min_images_per_s": 50},
    {"max_memory_mib": 200, "min_images_per_s": 100}, {"max_params": 20e6, "max_latency_ms": 20},
    {"min_images_per_s": 1000, "max_memory_mib": 100},
)  # fmt: skip


def test_limits_choose_as_the_command_does(browser: Browser, four: Any, tmp_path: Path):
    """Every stop of the sliders gives the pick, the sentence and the column of `bench recommend`."""
    page = opened(browser, four, tmp_path)
    report = Report(four.records, {}, tmp_path / "predictions")
    names = {"max_latency_ms": "latency at most", "min_images_per_s": "throughput at least",
             "max_memory_mib": "peak memory at most", "max_params": "parameters at most"}  # fmt: skip
    values = {"max_latency_ms": [40, 20, 10, 1], "min_images_per_s": [25, 50, 100, 1000],
              "max_memory_mib": [400, 200, 100, 10], "max_params": [40e6, 20e6, 10e6, 1e6]}  # fmt: skip
    for limits in LIMITS:
        for limit, label in names.items():
            stop = values[limit].index(limits[limit]) + 1 if limit in limits else 0
            page.get_by_label(label).fill(str(stop))
        expected = recommend(report, Limits(**limits))
        first, _ = expected.lines()
        assert page.locator("#pick").inner_text() == first.replace("`", ""), limits
        rows = {row[0]: row[-1] for row in (
            line.split("\t") for line in page.locator("#decision-table tbody tr").all_inner_texts())}  # fmt: skip
        assert rows[expected.model or ""] == "the pick"
        inside = {model for model, said in rows.items() if said != "beyond the limits"}
        fine = {model for model, said in rows.items() if said in ("no", "the pick")}
        assert fine >= set(expected.not_significantly_worse)
        assert inside >= set(expected.not_significantly_worse)
    page.get_by_label("parameters at most").fill("4")
    page.get_by_label("throughput at least").fill("4")
    page.get_by_label("latency at most").fill("4")
    assert "bad" in page.locator("#pick b").inner_text()
    page.close()


def test_a_random_network_is_no_candidate_in_the_page_either(browser: Browser, frozen: Any, tmp_path: Path):
    page = opened(browser, frozen, tmp_path)
    report = Report(frozen.records, {}, tmp_path / "predictions")
    for stop, limit in enumerate((None, 20.0, 10.0)):
        page.get_by_label("latency at most").fill(str(stop))
        expected = recommend(report, Limits(max_latency_ms=limit))
        assert page.locator("#pick").inner_text() == expected.lines()[0].replace("`", ""), limit
        lines = page.locator("#decision-table tbody tr").all_inner_texts()
        rows = {line.split("\t")[0]: line.split("\t")[-1] for line in lines}
        assert rows["net (random weights)"] == rows["other (random weights)"] == "no candidate"
        assert rows[expected.model or ""] == "the pick"
    page.close()


def test_a_large_loss_is_no_pick_in_the_page_either(browser: Browser, run: Any, tmp_path: Path):
    for model, distance, ms in (("a", 1.4, 9.0), ("b", 1.3, 8.0), ("c", 0.9, 2.0), ("d", 0.8, 1.0)):
        scores, labels = binary_scores(50, distance, ord(model))
        run.accuracy(model, "breastmnist", scores=scores, labels=labels)
        run.efficiency(model, 64, speed=10.0, latency_ms_p50=ms)
    page = opened(browser, run, tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    seen = []
    for stop, limit in enumerate((None, 9.0, 8.0, 2.0, 1.0)):
        page.get_by_label("latency at most").fill(str(stop))
        expected = recommend(report, Limits(max_latency_ms=limit))
        assert page.locator("#pick").inner_text() == expected.lines()[0].replace("`", ""), limit
        seen.append(f"no other is within {MAX_LOSS:g}" in expected.why)
    assert any(seen)
    page.close()


def test_scores_are_seen_on_a_phone_without_scrolling(browser: Browser, four: Any, tmp_path: Path):
    page = opened(browser, four, tmp_path, 390)
    cell = page.locator("#decision-table tr.pick td").first
    box = cell.bounding_box()
    assert box and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
    assert cell.inner_text().startswith("0.9") and "–" in cell.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_never_overprint(browser: Browser, run: Any, tmp_path: Path, width: int):
    for i in range(8):
        model = f"timm:convnextv2_nano_of_a_very_long_name_{i}.fcmae_ft_in22k_in1k_384[depth={i},branch=convolution]"
        run.accuracy(model, "a_dataset_" * 8, 0.9 - i / 100, acc=0.5)
        for resolution in (64, 128):
            run.efficiency(model, resolution, speed=100.0 + i, memory=10.0)
    page = opened(browser, run, tmp_path, width)
    for view in ("Overview", "Scaling"):
        visit(page, view)
        page.wait_for_timeout(60)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [b for b in (t.bounding_box() for t in page.locator("main svg:visible text.label").all()) if b]
        assert boxes and all(b["x"] >= 0 and b["x"] + b["width"] <= width for b in boxes)
        for i, a in enumerate(boxes):
            assert not any(abs(a["y"] - b["y"]) < 6 and a["x"] < b["x"] + b["width"] and b["x"] < a["x"] + a["width"]
                           for b in boxes[:i]), "no two names on one another"  # fmt: skip
    page.close()


def test_the_whole_page_prints(browser: Browser, full_run: Any, tmp_path: Path):
    """A4 between its margins: upright for the first screen, on its side for the boards."""
    page = opened(browser, full_run, tmp_path, 703)
    page.emulate_media(media="print")
    assert page.locator("#boards table").count() > 3
    for view, width in (("overview", 703), ("boards", 1032)):
        page.set_viewport_size({"width": width, "height": 800})
        for table in page.locator(f"#{view} table:not(figure table)").all():
            box = table.bounding_box()
            assert box and box["height"] > 20 and box["x"] + box["width"] <= width + 1, "folded or cut"
    assert page.locator("#glossary dd").first.is_visible() and page.locator("nav").is_hidden()
    page.close()
