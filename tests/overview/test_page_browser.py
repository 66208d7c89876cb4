"""The page about thirty variants in a real browser: readable on phone and desktop, nothing cut off, no complaint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.overview.page import write_overview
from harness.tables.store import Store
from harness.write import write_run
from tests.helpers.browsing import STICKING_OUT, UNFOLD, Visit, find_violations
from tests.helpers.made_tables import layer_table
from tests.overview.conftest import MakeRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
VARIANTS, SHOWN = 30, ("pass", "fail", "inconclusive")
OVERLAPPING = """() => [...document.querySelectorAll('main svg.chart:not([aria-hidden])')].flatMap(svg => {
    const shown = [...svg.querySelectorAll('text')].filter(t => t.getClientRects().length);
    const boxes = shown.map(t => [t.textContent, t.getBoundingClientRect()]);
    return boxes.flatMap(([a, r], i) => boxes.slice(i + 1).filter(([b, s]) =>
        r.left < s.right - 1 && s.left < r.right - 1 && r.top < s.bottom - 4 && s.top < r.bottom - 4)
        .map(([b]) => a + ' / ' + b)); })"""


@pytest.fixture
def page(alike: MakeRun, tmp_path: Path) -> str:
    """The address of the page about thirty variants of one model, bits × method × group, with their tables."""
    folders = []
    for number in range(VARIANTS):
        bits, method, size = 2 + number // 6, ("gptq", "rtn")[number % 2], (32, 64, 128)[number % 3]
        name, verdict = f"llama-3.1-8b-instruct-{method}-w{bits}-g{size}", SHOWN[0 if bits > 4 else number % 3]
        kl = 2.0 ** (3 - 2 * bits) * (1 + 0.3 * (number % 2) + 0.002 * size)
        asked: Any = {"choice": {"bits": bits, "method": method, "group": size}}
        made = alike(name, verdict, 1e6 * (bits + 16 / size), kl)
        run = made.model_copy(update={"asked": made.asked | asked})
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        write_run(run, folder)
        with Store(folder / "tables", run.data_key) as store:
            table = layer_table(np.random.default_rng(number), kl**0.5, 2, 12)
            store.sink("core").commit("pass/0", {"layers": table})
        folders.append(folder)
    return write_overview(folders, tmp_path / "overview.html").as_uri()


@pytest.mark.parametrize("width", [390, 1280])
def test_thirty_variants_stay_readable(browser: Browser, page: str, width: int) -> None:
    with Visit(browser, page, width) as visit:
        visit.page.evaluate(UNFOLD)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate(STICKING_OUT) == []
        assert visit.page.evaluate(OVERLAPPING) == []
        assert visit.page.locator("table.choices tbody tr").count() == VARIANTS
        heights = visit.page.locator("table.choices tbody tr").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect().height)"
        )
        assert max(heights) < (40 if width == 1280 else 90)
        charts = visit.page.locator(".multiples svg.chart")
        assert charts.count() == VARIANTS
        widths = charts.evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
        assert min(widths) >= 130
        assert visit.complaints == []
        assert visit.requests == [page]


def test_names_stay_in_view_while_the_table_scrolls(browser: Browser, page: str) -> None:
    with Visit(browser, page, 390) as visit:
        region = visit.page.locator(".scroll:has(table.choices)")
        assert region.evaluate("e => { e.scrollLeft = 250; return e.scrollLeft }") > 200
        name = visit.page.locator("table.choices tbody th").first.bounding_box()
        assert name is not None
        assert name["x"] >= 0
        assert name["width"] < 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(browser: Browser, page: str, width: int, scheme: str) -> None:
    with Visit(browser, page, width, scheme) as visit:
        visit.page.evaluate(UNFOLD)
        assert find_violations(visit.page) == []


def test_a_point_of_the_frontier_names_its_variant(browser: Browser, page: str) -> None:
    with Visit(browser, page, reduced_motion="reduce") as visit:
        frame = visit.page.locator(".frame").first
        chart = frame.locator(".pane:not([hidden]) svg[data-stop]")
        visit.page.keyboard.press("Tab")
        chart.focus()
        seen = []
        for _ in range(VARIANTS):
            seen.append(visit.hint)
            visit.page.keyboard.press("ArrowRight")
        assert len(set(seen)) == VARIANTS
        assert all("llama-3.1-8b-instruct-" in each for each in seen)
        few = visible_labels(frame)
        frame.get_by_label("zoom in").click()
        frame.get_by_label("zoom in").click()
        assert len(visible_labels(frame)) > len(few)


def visible_labels(frame: Any) -> list[str]:
    found: list[str] = frame.locator(".pane:not([hidden]) .view").evaluate(
        "e => [...e.querySelectorAll('text.name')].filter(t => t.getClientRects().length).map(t => t.textContent)"
    )
    return found


def test_the_table_is_sorted_by_exact_numbers(browser: Browser, page: str) -> None:
    with Visit(browser, page) as visit:
        table = visit.page.locator("table.choices")
        order = "e => [...e.tBodies[0].rows].map(row => row.cells[0].textContent)"
        assert table.evaluate(order) == [str(number + 1) for number in range(VARIANTS)]
        place = table.evaluate("e => [...e.tHead.rows[0].cells].findIndex(c => c.textContent.startsWith('KL'))")
        values = f"e => [...e.tBodies[0].rows].map(row => Number(row.cells[{place}].dataset.value))"
        before = table.evaluate(values)
        table.get_by_role("button", name="KL divergence").click()
        assert table.evaluate(values) == sorted(before) != before
        table.get_by_role("button", name="No.").click()
        assert table.evaluate(order) == [str(number + 1) for number in range(VARIANTS)]


def test_without_the_script_the_whole_page_is_there(browser: Browser, page: str) -> None:
    with Visit(browser, page, java_script_enabled=False) as visit:
        for chart in visit.page.locator(".frame > .pane:not([hidden]) svg.chart[role=img]").all():
            assert chart.is_visible()
        assert visit.page.locator("circle > title").count() >= VARIANTS
        assert visit.page.locator(".controls").count() == 0


def test_the_table_fits_on_paper(browser: Browser, page: str) -> None:
    with Visit(browser, page, 718) as visit:
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 718
