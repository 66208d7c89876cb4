"""A measurement that contradicts what its measure declares costs the verdict: its margin would be on the wrong side."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
import pytest

from harness.errors import MeasureError
from harness.measures import Measure, hold_to_declared
from harness.records import Measurement, Metric, Skipped

LOSS = Metric(name="toy.loss.*", unit="nats", better="lower")
SHIFT = Metric(name="toy.shift", unit="nats", better="neither")


class Toy(Measure):
    """A loss, and a shift without a better direction."""

    table: ClassVar[str] = "toy"
    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, SHIFT)

    def measure(self, table: pd.DataFrame) -> list[Measurement | Skipped]:
        return []


def measured(**fields: Any) -> Measurement:
    known = {"name": "toy.loss.mean", "unit": "nats", "better": "lower", "basis": "sampled", "method": "m", "n": 9}
    return Measurement.model_validate(known | {"clusters": 9, "change": 0.1} | fields)


def test_what_is_as_declared_stays() -> None:
    found = [measured(), measured(name="toy.shift", better="neither"), measured(name="toy.other", better="higher")]
    assert hold_to_declared(Toy(), found) == found


@pytest.mark.parametrize(
    "fields", [{"better": "higher"}, {"better": "neither"}, {"neutral": 1.0}, {"infinite_neutral": True}]
)
def test_another_direction_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(MeasureError, match=r"toy\.loss\.mean: found better: .*, expected better: lower, neutral: 0\.0"):
        hold_to_declared(Toy(), [measured(**fields)])
