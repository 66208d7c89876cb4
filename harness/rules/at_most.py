"""The rule ``at_most``."""

from __future__ import annotations

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import SHARES, Basis, compare, mistake, of_variant, show


class AtMost(Rule):
    """The variant's own value, or the comparison where the metric is one, stays below a limit."""

    limit: float = Field(description="the value that must not be reached")
    decide: Basis = Field(
        default="interval", description="interval: the whole interval is below; point: the number"
    )

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge a metric that is better if lower, or has no direction. Another one is an error."""
        limit = show(self.limit)[0]
        expected = f"at most {limit} is wanted"
        if measurement.better == "higher":
            because = f"{measurement.name} is better if higher: at_most limits improvement; write at_least"
            return mistake(measurement, expected, because)
        if measurement.unit in SHARES and self.limit >= 1:
            because = f"{measurement.name} is never above 1, so {limit} limits nothing; write 0.05 for 5 %"
            return mistake(measurement, expected, because)
        judged = of_variant(measurement, identical)
        if judged is None:
            return mistake(measurement, expected, f"{measurement.name} has no number to compare")
        return compare(judged, self.limit, "below", self.decide, expected)
