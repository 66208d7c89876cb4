"""Made-up runs, one of each verdict."""

from __future__ import annotations

import pytest

from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.made_run import SCALE, Made, make_run


@pytest.fixture(scope="session")
def made() -> dict[str, Made]:
    """One run of each verdict."""
    return {verdict: make_run(verdict) for verdict in SCALE}


@pytest.fixture(scope="session")
def pages(made: dict[str, Made]) -> dict[str, str]:
    """The report of each of them."""
    templates = resources.folder("reports")
    return {verdict: render(example.run, example.tables, templates) for verdict, example in made.items()}
