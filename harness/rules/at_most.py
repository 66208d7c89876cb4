"""The rule ``at_most``."""

from __future__ import annotations

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import SHARES, compare, mistake, show
from harness.rules._limits import Of, number_of, wanted_of


class AtMost(Rule):
    """The variant's own value, or the comparison where the metric is one, stays below a limit.

    With ``of: change`` the limit is for variant − reference, with ``of: reference`` for variant / reference: a
    limit of 0.3 then allows 30 % of the reference's value, and 1.05 allows five percent more than it.
    """

    limit: float = Field(description="the value that must not be reached")
    of: Of = Field(
        default="variant", description="variant: its own value; change: variant − reference; reference: share of it"
    )

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge a metric that is better if lower, or has no direction. Another one is an error."""
        limit = show(self.limit)[0]
        expected = wanted_of(f"at most {limit}", self.of)
        if measurement.better == "higher":
            because = f"{measurement.name} is better if higher: at_most limits improvement; write at_least"
            return mistake(measurement, expected, because)
        if self.of != "reference" and measurement.unit in SHARES and self.limit >= 1:
            because = f"{measurement.name} is never above 1, so {limit} limits nothing; write 0.05 for 5 %"
            return mistake(measurement, expected, because)
        judged = number_of(measurement, self.of, self.limit, identical)
        if isinstance(judged, str):
            return mistake(measurement, expected, judged)
        return compare(judged, self.limit, "below", self.decide, expected)
