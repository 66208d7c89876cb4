"""The report of made-up runs, one of each verdict."""

from __future__ import annotations

import pytest

from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.made_run import Made


@pytest.fixture(scope="session")
def pages(made: dict[str, Made]) -> dict[str, str]:
    """The report of each of the made-up runs."""
    templates = resources.folder("reports")
    return {verdict: render(example.run, example.tables, templates) for verdict, example in made.items()}


@pytest.fixture(scope="session")
def files(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The address of the report of each verdict."""
    folder = tmp_path_factory.mktemp("reports")
    for verdict, text in pages.items():
        (folder / f"{verdict}.html").write_text(text, encoding="utf-8")
    return {verdict: (folder / f"{verdict}.html").as_uri() for verdict in pages}
