"""The rule ``not_worse``."""

from __future__ import annotations

from pydantic import Field

from harness.records.units import unit_of
from harness.rules import Bound, Facts, Rule
from harness.rules._digits import show
from harness.rules._limits import misfit_of


class NotWorse(Rule):
    """The variant is worse than the reference by less than a margin (non-inferiority, paired)."""

    margin: float = Field(
        gt=0,
        examples=[0.02],
        description="largest degradation, exclusive (a counted number may equal it), in units of the change",
    )

    def bound(self, metric: Facts) -> Bound:
        """The limit on the paired change of a metric with a direction. Improvement of any size passes."""
        if misfit := self._misfit(metric) or misfit_of(metric, "change"):
            return Bound(f"degradation < {show(self.margin)[0]}", misfit=misfit)
        is_upper = metric.better == "lower"
        limit = metric.neutral + self.margin if is_upper else metric.neutral - self.margin
        neutral, margin, end = show(metric.neutral, self.margin, limit)
        expected = f"degradation < {margin} from {neutral} (allowed: {'up' if is_upper else 'down'} to {end})"
        return Bound(expected, "change", None if is_upper else limit, limit if is_upper else None)

    def _misfit(self, metric: Facts) -> str:
        unit = unit_of(metric.unit)
        if metric.better == "neither":
            return f"{metric.name} has no better direction, so no change is a degradation; write at_most and at_least"
        if metric.infinite_neutral:
            return f"{metric.name} is infinite where both sides are equal, so it has no margin; write at_least"
        if self.margin >= 1 and (unit.fraction or metric.neutral == 1.0):
            margin, percent, fraction = (
                show(number)[0] for number in (self.margin, 100 * self.margin, self.margin / 100)
            )
            return f"the margin {margin} means {percent} %; write {fraction} if {margin} % is meant"
        return ""
