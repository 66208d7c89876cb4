"""The rule ``not_worse``."""

from __future__ import annotations

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import SHARES, compare, mistake, of_change, show


class NotWorse(Rule):
    """The variant is worse than the reference by less than a margin (non-inferiority, paired)."""

    margin: float = Field(gt=0, description="damage that is still tolerated, in units of the metric's change")

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge the paired change of a metric with a direction. Improvement of any size passes."""
        neutral, margin = show(measurement.neutral, self.margin)
        expected = f"a damage of less than {margin} is wanted"
        if measurement.better == "neither":
            because = f"{measurement.name} has no better direction, so nothing is worse; write at_most and at_least"
            return mistake(measurement, expected, because)
        if measurement.infinite_neutral:
            because = f"{measurement.name} has no finite value for equal sides to stay near to; write at_least"
            return mistake(measurement, expected, because)
        if self.margin >= 1 and (measurement.unit in SHARES | {"ratio"} or measurement.neutral == 1.0):
            because = f"the margin {margin} means {show(100 * self.margin)[0]} %; write {_percent(self.margin)}"
            return mistake(measurement, expected, f"{because} if {margin} % is meant")
        judged = of_change(measurement, identical)
        if judged is None:
            return mistake(measurement, expected, f"{measurement.name} has no comparison with the reference")
        lower = measurement.better == "lower"
        limit = measurement.neutral + self.margin if lower else measurement.neutral - self.margin
        bound = show(limit, measurement.neutral, self.margin)[0]
        allowed = f"the margin {margin} from {neutral} allows {'up' if lower else 'down'} to {bound}"
        return compare(judged, limit, "below" if lower else "above", self.decide, allowed)


def _percent(margin: float) -> str:
    return show(margin / 100)[0]
