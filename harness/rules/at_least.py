"""The rule ``at_least``."""

from __future__ import annotations

from pydantic import Field

from harness.records.units import unit_of
from harness.rules import Bound, Facts, Rule
from harness.rules._digits import show
from harness.rules._limits import OF, Of, describe_expected, misfit_of, number_for


class AtLeast(Rule):
    """The variant's own value, or the comparison where the metric is one, stays above a limit.

    With ``of: change`` the limit is for variant − reference, with ``of: reference`` for variant / reference: a
    limit of 0.95 then requires 95 % of the reference's value.
    """

    limit: float = Field(description="lower limit, exclusive (a counted number may equal it)", examples=[0.95])
    of: Of = Field(default="variant", description=OF)

    def bound(self, metric: Facts) -> Bound:
        """The lower limit on a metric that is better if higher, or has no direction. Another one is a misfit."""
        number = number_for(metric, self.of)
        misfit = self._misfit(metric) or misfit_of(metric, number)
        expected = describe_expected(f"at least {show(self.limit)[0]}", self.of)
        return Bound(expected, number, lower=self.limit, misfit=misfit)

    def _misfit(self, metric: Facts) -> str:
        most, limit = unit_of(metric.unit).most, show(self.limit)[0]
        if metric.better == "lower":
            return f"{metric.name} is better if lower, so at_least would limit improvement; write at_most"
        if self.of == "reference":
            bad = f"the limit {limit} is no share of the reference; write a number above 0"
            return bad if self.limit <= 0 else ""
        if self.limit > most:
            return f"{metric.name} is never above {most:g}, so the limit {limit} cannot be met; write 0.9 for 90 %"
        return ""
