"""The report in a real browser: no errors, no requests, nothing cut off, both colour schemes, and paper.

Needs Chromium (``apt-get install chromium``, or ``playwright install chromium``); skipped where there is none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.browsing import STICKING_OUT, Visit
from tests.helpers.made_run import make_run
from tests.helpers.made_tables import MadeTables

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

VERDICTS = ("pass", "fail", "inconclusive", "error")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_it_opens_without_errors_and_asks_for_nothing(browser: Browser, files: dict[str, str], verdict: str) -> None:
    with Visit(browser, files[verdict]) as visit:
        sections = visit.page.locator("main > section")
        assert sections.count() == 15
        for index in range(sections.count()):
            assert sections.nth(index).is_visible()
            box = sections.nth(index).bounding_box()
            assert box is not None
            assert box["height"] > 60
        assert visit.complaints == []
        assert visit.requests == [files[verdict]]


def test_the_style_sheet_is_the_one_allowed(browser: Browser, files: dict[str, str]) -> None:
    with Visit(browser, files["fail"]) as visit:
        colour = "getComputedStyle(document.querySelector('h1')).color"
        assert visit.page.evaluate(colour) == "rgb(182, 38, 43)"


def test_the_policy_stops_what_is_put_in_by_hand(browser: Browser, files: dict[str, str], tmp_path: Path) -> None:
    """The policy itself works: were a name ever to become markup, it would still do nothing."""
    attack = "<script>document.title='taken'</script><img src='https://example.invalid/x'><p style='color:red'>"
    text = Path(files["fail"].removeprefix("file://")).read_text(encoding="utf-8")
    (tmp_path / "bad.html").write_text(text.replace("<footer>", attack + "<footer>"), encoding="utf-8")
    with Visit(browser, (tmp_path / "bad.html").as_uri()) as visit:
        assert "taken" not in visit.page.title()
        assert visit.refused == {"https://example.invalid/x": "csp"}
        assert len(visit.complaints) == 3


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 1600])
def test_nothing_sticks_out_sideways(browser: Browser, files: dict[str, str], width: int) -> None:
    with Visit(browser, files["fail"], width) as visit:
        for unfolded in ("false", "true"):
            visit.page.evaluate(f"document.querySelectorAll('details').forEach(d => {{ d.open = {unfolded} }})")
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            assert visit.page.evaluate(STICKING_OUT) == []


HOSTILE = (
    "</script><script>alert(1)</script>", "\u202eevil\u2066", "\U0001f600\u200d\U0001f525", "x" * 5000,
    "\u05e9\u05dc\u05d5\u05dd ", "\u0627\u0644\u0633\u0644\u0627\u0645", "\x00\x1b[31m", "\n" * 300,
    "<b title='", "{{ 7 * 7 }}", "\u200b", "", "e" + "\u0301" * 200,
)  # fmt: skip


@pytest.mark.parametrize("width", [320, 1280])
def test_texts_of_any_kind_stay_texts_within_their_place(browser: Browser, tmp_path: Path, width: int) -> None:
    made = make_run("fail", documents=14, length=30, layers=2, items=20)
    frames = dict(made.tables.frames)
    texts = [HOSTILE[n % len(HOSTILE)] for n in frames["token_texts"]["id"]]
    frames["token_texts"] = frames["token_texts"].assign(
        text=texts, bytes=["f0" if not n % 9 else "" for n in range(2048)]
    )
    asked = [HOSTILE[n % len(HOSTILE)] for n in range(len(frames["item_texts"]))]
    choices = pd.Series([[text] * 4 for text in asked])
    frames["item_texts"] = frames["item_texts"].assign(prompt=asked, choices=choices)
    page = tmp_path / "report.html"
    page.write_text(render(made.run, MadeTables(frames), resources.folder("reports")), encoding="utf-8")
    outside = """() => [...document.querySelectorAll('.passage *, .flip *')].filter(e => !e.closest('.scroll'))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    crossing = """() => [...document.querySelectorAll('.passage, .flip')].map(e => e.getBoundingClientRect())
        .filter((box, i, all) => i && box.height && box.top < all[i - 1].bottom).length"""
    with Visit(browser, page.as_uri(), width) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert visit.page.locator(".passage").count() == 5
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate(outside) == []
        assert visit.page.evaluate(crossing) == 0
        assert visit.page.locator("main b, main script").count() == 0
        assert not re.search("[\u202e\u200b]", visit.page.inner_text("main"))
        assert visit.complaints == []


def test_text_of_charts_keeps_its_size_on_a_phone(browser: Browser, files: dict[str, str]) -> None:
    with Visit(browser, files["fail"], 360) as visit:
        heights = visit.page.evaluate(
            "[...document.querySelectorAll('#rules svg text')].map(t => t.getBoundingClientRect().height)"
        )
        assert len(heights) > 10
        assert min(heights) >= 11


def test_words_in_the_drawings_of_rules_do_not_overlap(browser: Browser, files: dict[str, str]) -> None:
    overlapping = """() => [...document.querySelectorAll('.rule svg')].flatMap(svg => {
        const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
        return boxes.flatMap(([a, r], i) => boxes.slice(i + 1).filter(([b, s]) =>
            r.left < s.right && s.left < r.right && r.top < s.bottom - 3 && s.top < r.bottom - 3)
            .map(([b]) => a + ' / ' + b)); })"""
    for verdict in ("fail", "inconclusive"):
        for width in (360, 1280):
            with Visit(browser, files[verdict], width) as visit:
                assert visit.page.evaluate(overlapping) == []


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_rule_that_passed_takes_one_line(browser: Browser, files: dict[str, str], verdict: str) -> None:
    rows = "[...document.querySelectorAll('table.lines tbody tr')]"
    cut = f"{rows}.flatMap(row => [...row.children]).filter(cell => cell.scrollWidth > cell.clientWidth + 1)"
    lines = f"""{rows}.map(row => row.getBoundingClientRect().height
        / parseFloat(getComputedStyle(row.children[0]).lineHeight))"""
    with Visit(browser, files[verdict]) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        heights = visit.page.evaluate(lines)
        assert len(heights) >= 1
        assert max(heights) < 1.6
        assert visit.page.evaluate(f"{cut}.filter(cell => !cell.title).length") == 0
        assert (
            visit.page.evaluate(f"{cut}.map(cell => cell.cellIndex).filter(column => [1, 2, 4].includes(column))") == []
        )
        visit.page.evaluate(f"{rows}[0].children[0].append(' long name of a rule'.repeat(20))")
        assert max(visit.page.evaluate(lines)) < 1.6


def test_dark_mode_is_dark(browser: Browser, files: dict[str, str]) -> None:
    ground, words = (f"getComputedStyle(document.body).{name}" for name in ("backgroundColor", "color"))
    shades = {}
    for scheme in ("light", "dark"):
        with Visit(browser, files["pass"], scheme=scheme) as visit:
            shades[scheme] = [brightness(visit.page.evaluate(what)) for what in (ground, words)]
    assert shades["light"][0] > 200 > 100 > shades["light"][1]
    assert shades["dark"][0] < 60 < 180 < shades["dark"][1]


def brightness(colour: str) -> float:
    parts = [int(part) for part in re.findall(r"\d+", colour)[:3]]
    return sum(parts) / 3


def test_on_paper_everything_is_unfolded_and_light(browser: Browser, files: dict[str, str]) -> None:
    with Visit(browser, files["fail"], scheme="dark") as visit:
        folded = visit.page.locator("details table").first
        assert not folded.is_visible()
        visit.page.emulate_media(media="print")
        assert visit.page.locator("details").count() > 5
        assert visit.page.evaluate(
            "[...document.querySelectorAll('details > *')].every(e => e.getBoundingClientRect().height > 0)"
        )
        assert brightness(visit.page.evaluate("getComputedStyle(document.body).color")) < 100
        assert not visit.page.locator("nav").is_visible()
        assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_every_part_can_be_reached_by_keyboard(browser: Browser, files: dict[str, str]) -> None:
    with Visit(browser, files["fail"], 360) as visit:
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.className") == "skip"
        assert visit.page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
        unreachable = """() => [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)
            .filter(e => e.tabIndex < 0 || !e.getAttribute('aria-label')).length"""
        assert visit.page.evaluate(unreachable) == 0


def test_nothing_is_cut_off_at_the_edge_of_paper(browser: Browser, files: dict[str, str]) -> None:
    with Visit(browser, files["fail"], 718) as visit:
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 718
