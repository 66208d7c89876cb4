"""The rule ``at_least``."""

from __future__ import annotations

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import SHARES, Basis, compare, mistake, of_variant, show


class AtLeast(Rule):
    """The variant's own value, or the comparison where the metric is one, stays above a limit."""

    limit: float = Field(description="the value that must be exceeded")
    decide: Basis = Field(
        default="interval", description="interval: the whole interval is above; point: the number"
    )

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge a metric that is better if higher, or has no direction. Another one is an error."""
        limit = show(self.limit)[0]
        expected = f"at least {limit} is wanted"
        if measurement.better == "lower":
            because = f"{measurement.name} is better if lower: at_least limits improvement; write at_most"
            return mistake(measurement, expected, because)
        if measurement.unit in SHARES and self.limit > 1:
            because = (
                f"{measurement.name} is never above 1, so the limit {limit} cannot be met; write 0.9 for 90 %"
            )
            return mistake(measurement, expected, because)
        judged = of_variant(measurement, identical)
        if judged is None:
            return mistake(measurement, expected, f"{measurement.name} has no number to compare")
        return compare(judged, self.limit, "above", self.decide, expected)
