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
