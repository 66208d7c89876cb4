"""What units say about their numbers."""

from __future__ import annotations

import math

from harness.errors import HarnessError
from harness.measures import Measure
from harness.plugins import load, names
from harness.records.units import UNITS, Unit, unit_of


def test_a_unit_that_is_not_listed_has_no_bounds_and_is_written() -> None:
    assert unit_of("nats/token") == Unit(-math.inf, math.inf, fraction=False, written=True)


def test_every_listed_unit_is_one_of_a_metric() -> None:
    used = {"perplexity"}  # that of tasks, which only their files declare
    for name in names(Measure):
        try:
            measure = load(Measure, name)()
        except (ValueError, HarnessError):
            continue
        used |= {metric.unit for metric in measure.produces()}
    assert set(UNITS) <= used
