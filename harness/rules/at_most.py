"""The rule ``at_most``."""

from __future__ import annotations

from pydantic import Field

from harness.records.units import unit_of
from harness.rules import Bound, Facts, Rule
from harness.rules._digits import show
from harness.rules._limits import OF, Of, describe_expected, misfit_of, number_for


class AtMost(Rule):
    """The variant's own value, or the comparison where the metric is one, stays below a limit.

    With ``of: change`` the limit is for variant − reference, with ``of: reference`` for variant / reference: a
    limit of 0.3 then allows 30 % of the reference's value, and 1.05 allows five percent more than it.
    """

    limit: float = Field(description="upper limit, exclusive (a counted number may equal it)", examples=[0.05])
    of: Of = Field(default="variant", description=OF)

    def bound(self, metric: Facts) -> Bound:
        """The upper limit on a metric that is better if lower, or has no direction. Another one is a misfit."""
        number = number_for(metric, self.of)
        misfit = self._misfit(metric) or misfit_of(metric, number)
        expected = describe_expected(f"at most {show(self.limit)[0]}", self.of)
        return Bound(expected, number, upper=self.limit, misfit=misfit)

    def _misfit(self, metric: Facts) -> str:
        most, limit = unit_of(metric.unit).most, show(self.limit)[0]
        if metric.better == "higher":
            return f"{metric.name} is better if higher, so at_most would limit improvement; write at_least"
        if self.of == "reference":
            bad = f"the limit {limit} is no share of the reference; write a number above 0"
            return bad if self.limit <= 0 else ""
        if self.limit >= most:
            return f"{metric.name} is never above {most:g}, so the limit {limit} excludes nothing; write 0.05 for 5 %"
        return ""
