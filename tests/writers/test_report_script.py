"""The script of the report: hints by pointer, touch and keyboard, zoom, the other axis, sorted tables; no script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.report.summaries.layers import read_layers
from harness.report.summaries.suite_tables import SuiteTables
from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.browsing import UNFOLD, Visit, find_violations, open_page
from tests.helpers.made_run import Made, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
CHART = "#cause .frame:has(.plot) >> nth=0"


@pytest.fixture(scope="module")
def deep() -> Made:
    """A run of 40 blocks."""
    return make_run("fail", documents=20, length=20, layers=40, items=20)


@pytest.fixture(scope="module")
def visit(browser: Browser, deep: Made, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    page = render(deep.run, deep.tables, resources.folder("reports"))
    return open_page(browser, page, tmp_path_factory.mktemp("deep"), reduced_motion="reduce")


@pytest.fixture(autouse=True)
def reload(request: pytest.FixtureRequest) -> None:
    """Every test starts with the page as it was loaded, the pointer away from it."""
    if "visit" in request.fixturenames:
        visit: Visit = request.getfixturevalue("visit")
        visit.page.reload()
        visit.page.mouse.move(0, 0)


def test_a_point_shows_its_module_and_its_number_in_full(visit: Visit, deep: Made) -> None:
    layers = read_layers(SuiteTables("core", deep.tables))
    assert layers is not None
    block = layers.blocks[17]
    frame = visit.page.locator(CHART)
    frame.scroll_into_view_if_needed()
    frame.locator(".pane:not([hidden]) circle.mark").nth(17).hover()
    assert visit.hint.startswith("block 17: ")
    assert f"({block.error:.12g})" in visit.hint
    visit.page.keyboard.press("Escape")
    assert visit.hint == ""
    assert visit.complaints == []


def test_a_mark_answers_near_it_and_not_far_from_it(visit: Visit) -> None:
    mark = visit.page.locator(CHART).locator(".pane:not([hidden]) circle.mlp").nth(5)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] - 6)
    assert visit.hint.startswith("model.layers.5.mlp: ")
    visit.page.mouse.move(2, 400)
    assert visit.hint == ""


def test_only_one_hint_is_shown(visit: Visit) -> None:
    """The browser's own, which reads the title, is taken off."""
    mark = visit.page.locator(CHART).locator(".pane:not([hidden]) circle.mark").nth(5)
    mark.hover()
    assert mark.locator("title").count() == 0
    cell = visit.page.locator("table.heat td").first
    hint = cell.get_attribute("title")
    cell.hover()
    assert visit.hint == hint
    assert cell.get_attribute("title") is None


def test_charts_answer_to_the_keyboard(visit: Visit) -> None:
    visit.page.keyboard.press("Tab")
    chart = visit.page.locator(CHART).locator(".pane:not([hidden]) svg[data-stop]")
    chart.focus()
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("End")
    visit.page.keyboard.press("Home")
    seen = []
    for _ in range(6):
        seen.append(visit.hint.partition(":")[0])
        visit.page.keyboard.press("ArrowRight")
    assert len(set(seen)) == 6
    visit.page.keyboard.press("ArrowLeft")
    assert visit.hint.partition(":")[0] == seen[5]
    assert visit.page.locator(".hint[role=status]").count() == 1


def test_tables_answer_to_the_keyboard(visit: Visit) -> None:
    region = visit.page.locator(".scroll:has(table.heat)").first
    region.focus()
    visit.page.keyboard.press("ArrowRight")
    first = visit.hint
    assert first.startswith("model.layers.0.self_attn.q_proj: ")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        visit.page.keyboard.press(key)
    assert visit.hint.startswith("model.layers.2.self_attn.k_proj: ")
    visit.page.keyboard.press("End")
    assert visit.hint.startswith("model.layers.39.mlp.down_proj: ")
    cell = visit.page.locator("table.heat td.at")
    assert cell.evaluate("e => { const b = e.getBoundingClientRect(); return b.right <= innerWidth && b.top >= 0 }")
    visit.page.keyboard.press("ArrowUp")
    visit.page.keyboard.press("ArrowUp")
    visit.page.keyboard.press("ArrowLeft")
    assert visit.hint.startswith("model.layers.38.mlp.gate_proj: ")


def test_hints_answer_to_touch(browser: Browser, deep: Made, tmp_path: Path) -> None:
    page = render(deep.run, deep.tables, resources.folder("reports"))
    with open_page(browser, page, tmp_path, width=390, has_touch=True, reduced_motion="reduce") as visit:
        cell = visit.page.locator("table.heat td").nth(3)
        cell.tap()
        assert visit.hint.startswith("model.layers.3.self_attn.q_proj: ")
        mark = visit.page.locator(CHART).locator(".pane:not([hidden]) circle.mark").nth(9)
        mark.scroll_into_view_if_needed()
        mark.tap()
        assert re.match(r"(block|model\.layers\.)\D*9\b", visit.hint)
        visit.page.locator("#cause h2").tap()
        assert visit.hint == ""


def test_a_chart_is_made_wider_step_by_step_and_whole_again(visit: Visit) -> None:
    frame = visit.page.locator(CHART)
    view, chart = frame.locator(".pane:not([hidden]) .view"), frame.locator(".pane:not([hidden]) .view > svg")
    labels = "e => [...e.querySelectorAll('text')].filter(t => t.getClientRects().length).map(t => t.textContent)"
    wide, few = chart.evaluate("e => e.getBoundingClientRect().width"), view.evaluate(labels)
    frame.get_by_label("zoom in").click()
    frame.get_by_label("zoom in").click()
    assert chart.evaluate("e => e.getBoundingClientRect().width") == pytest.approx(4 * wide)
    assert view.evaluate("e => e.scrollWidth > 3.9 * e.clientWidth")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert view.evaluate(labels) == [str(block) for block in range(40)]
    assert len(few) < 20
    frame.get_by_label("zoom in").click()
    assert frame.get_by_label("zoom in").is_disabled()
    frame.get_by_label("show the whole chart").click()
    assert chart.evaluate("e => e.getBoundingClientRect().width") == wide
    assert view.evaluate(labels) == few


def test_a_range_is_chosen_with_the_pointer(visit: Visit) -> None:
    frame = visit.page.locator(CHART)
    view = frame.locator(".pane:not([hidden]) .view")
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    assert box is not None
    left, wide, y = box["x"], box["width"], box["y"] + 60
    visit.page.mouse.move(left + 0.5 * wide, y)
    visit.page.mouse.down()
    visit.page.mouse.move(left + 0.6 * wide, y, steps=4)
    assert view.locator(".range").count() == 1
    visit.page.mouse.move(left + 0.7 * wide, y, steps=4)
    visit.page.mouse.up()
    assert view.locator(".range").count() == 0
    start, end = view.evaluate("e => [e.scrollLeft / e.scrollWidth, (e.scrollLeft + e.clientWidth) / e.scrollWidth]")
    assert start <= 0.5 < 0.7 <= end
    assert end - start == pytest.approx(0.25)
    view.dblclick(position={"x": 200, "y": 60})
    assert view.evaluate("e => e.scrollWidth == e.clientWidth")


def test_a_wheel_alone_scrolls_the_page_and_with_ctrl_it_zooms(visit: Visit) -> None:
    frame = visit.page.locator(CHART)
    frame.locator(".pane:not([hidden]) .view").hover()
    visit.page.keyboard.down("Control")
    visit.page.mouse.wheel(0, -120)
    visit.page.wait_for_function("document.querySelector('#cause .frame[data-zoom=\"2\"]') !== null")
    visit.page.keyboard.up("Control")
    visit.page.mouse.wheel(0, 300)
    visit.page.wait_for_function("scrollY > 0")
    assert frame.get_attribute("data-zoom") == "2"


def test_zoom_answers_to_keys(visit: Visit) -> None:
    frame = visit.page.locator(CHART)
    visit.page.keyboard.press("Tab")
    frame.locator(".pane:not([hidden]) svg[data-stop]").focus()
    visit.page.keyboard.press("End")
    last = visit.hint
    visit.page.keyboard.press("+")
    assert frame.get_attribute("data-zoom") == "2"
    assert visit.hint == last
    visit.page.keyboard.press("-")
    assert frame.get_attribute("data-zoom") == "1"


def test_an_axis_by_logarithms_shows_the_same_marks(visit: Visit) -> None:
    frame = visit.page.locator("#predictions .frame >> nth=0")
    count = "e => e.querySelectorAll('.bin').length"
    panes = [frame.locator(f".pane[data-axis={name}]") for name in ("linear", "log")]
    assert [pane.is_visible() for pane in panes] == [True, False]
    assert panes[0].evaluate(count) == panes[1].evaluate(count) > 10
    button = frame.get_by_label("vertical axis log")
    button.click()
    assert [pane.is_visible() for pane in panes] == [False, True]
    assert button.get_attribute("aria-pressed") == "true"
    assert "10" in panes[1].locator(".ruler").inner_html()
    button.click()
    assert [pane.is_visible() for pane in panes] == [True, False]


def test_a_table_is_sorted_by_its_numbers_and_back(visit: Visit) -> None:
    visit.page.evaluate(UNFOLD)
    table = visit.page.locator("#measurements table", has_text="tasks.").first
    column = table.locator("thead th").nth(3)
    values = """e => [...e.tBodies[0].rows].map(row => row.cells[3])
        .map(cell => cell.title || cell.dataset.hint || cell.textContent).filter(text => text !== '–')"""
    before = table.evaluate("e => [...e.tBodies[0].rows].map(row => row.cells[0].textContent)")
    numbers = [float(each) for each in table.evaluate(values)]
    assert numbers != sorted(numbers)
    for direction in ("ascending", "descending"):
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == direction
        found = [float(each) for each in table.evaluate(values)]
        assert found == sorted(numbers, reverse=direction == "descending")
    column.get_by_role("button").click()
    assert column.get_attribute("aria-sort") is None
    assert table.evaluate("e => [...e.tBodies[0].rows].map(row => row.cells[0].textContent)") == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(browser: Browser, files: dict[str, str], width: int, scheme: str) -> None:
    for verdict in ("pass", "fail", "inconclusive"):
        with Visit(browser, files[verdict], width, scheme) as visit:
            visit.page.evaluate(UNFOLD)
            assert find_violations(visit.page) == []


def test_without_the_script_every_figure_is_there(browser: Browser, deep: Made, tmp_path: Path) -> None:
    page = render(deep.run, deep.tables, resources.folder("reports"))
    with open_page(browser, page, tmp_path, java_script_enabled=False) as visit:
        shown = visit.page.locator(".frame > .pane:not([hidden]) svg.chart[role=img]")
        frames = visit.page.locator(".frame")
        assert frames.count() == shown.count() >= 6
        for index in range(shown.count()):
            assert shown.nth(index).is_visible()
            box = shown.nth(index).bounding_box()
            assert box is not None
            assert box["height"] > 100
        assert visit.page.locator(".controls, .sort, .hint").count() == 0
        assert shown.first.locator("circle > title").count() > 40
        assert visit.page.locator("table.heat td[title]").count() == 40 * 7
        assert visit.complaints == []


def test_paper_shows_no_controls_and_the_whole_of_a_zoomed_chart(visit: Visit) -> None:
    frame = visit.page.locator(CHART)
    frame.get_by_label("zoom in").click()
    visit.page.emulate_media(media="print")
    view = frame.locator(".pane:not([hidden]) .view")
    assert view.evaluate("e => e.firstElementChild.getBoundingClientRect().width == e.getBoundingClientRect().width")
    assert not visit.page.locator(".controls").first.is_visible()
    visit.page.emulate_media(media="screen")


def test_tokens_in_context_answer_to_the_keyboard(visit: Visit) -> None:
    text = visit.page.locator("#cause .running").first
    tokens = text.locator("[title]")
    wanted = [tokens.nth(place).get_attribute("title") for place in range(3)]
    text.focus()
    seen = []
    for _ in wanted:
        visit.page.keyboard.press("ArrowRight")
        seen.append(visit.hint)
    assert seen == wanted
