"""The key figures: a unit is never broken from inside."""

from __future__ import annotations

from harness.report.summaries.glance import figures
from tests.helpers.made_run import make_run


def test_a_long_unit_stands_apart_from_its_number() -> None:
    shown = {figure.unit: figure.value for figure in figures(make_run("pass").run)}
    assert "nats/token" in shown
    assert all(" " not in value and "/" not in value for value in shown.values() if value != "no loss")
