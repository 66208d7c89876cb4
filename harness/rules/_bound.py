"""What a rule allows of a metric: the one record that the judge, ``plan``, ``lint`` and the report all read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harness.records import Measurement, Metric
from harness.records.metric import Better
from harness.records.units import unit_of

Number = Literal["change", "variant", "ratio"]
"""A number that a rule compares: the paired change, the variant's own value, or variant / reference."""

NUMBERS: frozenset[Number] = frozenset({"change", "variant", "ratio"})


@dataclass(frozen=True)
class Facts:
    """What is known of a metric when a rule states its bound, before the metric is measured or after.

    neutral: the change of a variant that equals its reference; with infinite_neutral it stands for infinity. numbers:
    those that a measurement of the metric has. reference: the reference's own value, None where it is unknown or where
    there is none.
    """

    name: str
    unit: str
    better: Better
    neutral: float
    numbers: frozenset[Number] = NUMBERS
    reference: float | None = None
    infinite_neutral: bool = False

    @classmethod
    def from_metric(cls, metric: Metric, numbers: frozenset[Number] = NUMBERS, reference: float | None = None) -> Facts:
        """The facts of a metric that is not measured yet."""
        m = metric
        return cls(m.name, m.unit, m.better, m.neutral, numbers, reference, m.infinite_neutral)

    @classmethod
    def from_measurement(cls, measurement: Measurement) -> Facts:
        """The facts of a metric that was measured."""
        m = measurement
        sides: dict[Number, bool] = {
            "change": m.change is not None,
            "variant": m.variant is not None,
            "ratio": None not in (m.change, m.variant, m.reference),
        }
        numbers = frozenset(number for number, known in sides.items() if known)
        return cls(m.name, m.unit, m.better, m.neutral, numbers, m.reference, m.infinite_neutral)

    def equal(self, number: Number) -> float | None:
        """The number of a variant that equals its reference; None where that is the reference's unknown value."""
        return {"change": self.neutral, "variant": self.reference, "ratio": 1.0}[number]

    def range(self, number: Number) -> tuple[float, float]:
        """The smallest and the largest value that the number can have."""
        unit = unit_of("ratio" if number == "ratio" else self.unit)
        if number == "change" and self.neutral == 0.0 and math.isfinite(unit.most):
            return unit.least - unit.most, unit.most - unit.least  # of a difference of two values
        return unit.least, unit.most


@dataclass(frozen=True)
class Bound:
    """The limits within which a rule wants a number of a metric, or why the rule cannot judge the metric.

    expected: what is allowed, in words ("at most 0.05"). number: which number is compared. lower, upper: the number
    must be above ``lower`` and below ``upper`` (counted numbers may equal them); None: no limit on that side.
    misfit: why the rule cannot judge the metric, and what to write instead; empty if it can.
    """

    expected: str
    number: Number = "change"
    lower: float | None = None
    upper: float | None = None
    misfit: str = ""

    def __post_init__(self) -> None:
        if not self.misfit and not self.limits:
            raise ValueError("a Bound needs a lower limit, an upper limit, or a misfit")
        if not all(math.isfinite(limit) for limit in self.limits):
            raise ValueError(f"found the limits {self.limits} of a Bound, expected finite numbers")

    @property
    def limits(self) -> tuple[float, ...]:
        """The limits that there are, the lower one first."""
        return tuple(limit for limit in (self.lower, self.upper) if limit is not None)

    def contains(self, value: float, ties: bool = False) -> bool:
        """Whether a value is within the limits; ties: it may also equal one of them."""
        low, high = (-math.inf if self.lower is None else self.lower), (math.inf if self.upper is None else self.upper)
        return low <= value <= high if ties else low < value < high
