"""The rule ``at_least``."""

from __future__ import annotations

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import SHARES, compare, mistake, show
from harness.rules._limits import Of, number_of, wanted_of


class AtLeast(Rule):
    """The variant's own value, or the comparison where the metric is one, stays above a limit.

    With ``of: change`` the limit is for variant − reference, with ``of: reference`` for variant / reference: a
    limit of 0.95 then demands 95 % of the reference's value.
    """

    limit: float = Field(description="the value that must be exceeded")
    of: Of = Field(
        default="variant", description="variant: its own value; change: variant − reference; reference: share of it"
    )

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge a metric that is better if higher, or has no direction. Another one is an error."""
        limit = show(self.limit)[0]
        expected = wanted_of(f"at least {limit}", self.of)
        if measurement.better == "lower":
            because = f"{measurement.name} is better if lower: at_least limits improvement; write at_most"
            return mistake(measurement, expected, because)
        if self.of != "reference" and measurement.unit in SHARES and self.limit > 1:
            because = f"{measurement.name} is never above 1, so the limit {limit} cannot be met; write 0.9 for 90 %"
            return mistake(measurement, expected, because)
        judged = number_of(measurement, self.of, self.limit, identical)
        if isinstance(judged, str):
            return mistake(measurement, expected, judged)
        return compare(judged, self.limit, "above", self.decide, expected)
