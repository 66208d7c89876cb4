"""The rule ``retains``."""

from __future__ import annotations

from pydantic import Field

from harness.rules import Bound, Facts, Rule
from harness.rules._digits import show
from harness.rules._limits import misfit_of, ratio_for


class Retains(Rule):
    """The variant keeps a share of the reference's value: 0.98 allows a loss of two percent of it.

    For a metric that is better when lower, the variant's value stays below the reference's divided by the
    share.
    """

    share: float = Field(gt=0, le=1, examples=[0.99], description="share of the reference's value that must be kept")

    def bound(self, metric: Facts) -> Bound:
        """The limit on variant / reference of a metric with a direction and a positive reference."""
        number, share = ratio_for(metric), show(self.share)[0]
        if metric.better == "neither":
            misfit = f"{metric.name} has no better direction, so there is nothing to retain; write at_most and at_least"
            return Bound(f"at least {share} of the reference", misfit=misfit)
        if misfit := misfit_of(metric, number):
            return Bound(f"at least {share} of the reference", misfit=misfit)
        if metric.better == "higher":
            return Bound(f"variant / reference > {share}", number, lower=self.share)
        limit = 1 / self.share
        return Bound(f"variant / reference < 1/{share} = {show(limit, self.share)[0]}", number, upper=limit)
