"""Pages in a real browser: what they complained about, what they asked for, and what axe finds in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
UNFOLD = "document.querySelectorAll('details').forEach(each => { each.open = true })"
STICKING_OUT = """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg, .view'))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
"""Elements that reach beyond the right edge of the window and do not scroll by themselves."""


def start_browser() -> Iterator[Browser]:
    """Chromium; the test is skipped where it or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        installed = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
        path = next((found for found in [*installed, own] if found and os.path.exists(found)), None)
        if path is None:
            pytest.skip("needs Chromium, and none is installed")
        started = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


class Visit:
    """One page, with everything it complained about or asked for. options: of the browser's context."""

    def __init__(
        self, browser: Browser, address: str, width: int = 1280, scheme: Any = "light", **options: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.refused: dict[str, str | None] = {}
        self.page.on("requestfailed", lambda request: self.refused.update({request.url: request.failure}))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def hint(self) -> str:
        """The hint that is shown, empty if none is."""
        shown = self.page.locator(".hint.on")
        return shown.inner_text() if shown.count() else ""


def find_violations(page: Page) -> list[str]:
    """What axe finds serious or critical: its rule, the element, and what is wrong; skips without axe."""
    pytest.importorskip("axe_playwright_python", reason="needs the Python package axe-playwright-python")
    source = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10, "axe looked at nothing"
    return [
        f"{each['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]


def open_page(browser: Browser, text: str, folder: Path, **options: Any) -> Visit:
    """A page of this text, written into ``folder`` and opened."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    return Visit(browser, path.as_uri(), **options)
