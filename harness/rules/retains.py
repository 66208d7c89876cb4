"""The rule ``retains``."""

from __future__ import annotations

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import compare, mistake, show
from harness.rules._shares import share_of_reference


class Retains(Rule):
    """The variant keeps a share of the reference's value: 0.98 allows a loss of two percent of it.

    For a metric that is better when lower, the variant's value stays below the reference's divided by the
    share.
    """

    share: float = Field(gt=0, le=1, description="share of the reference's value that must be kept")

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge variant / reference of a metric with a direction and a positive reference."""
        share = show(self.share)[0]
        expected = f"a share of {share} of the reference is wanted"
        if measurement.better == "neither":
            because = f"{measurement.name} has no better direction, so there is nothing to retain"
            return mistake(measurement, expected, because)
        higher = measurement.better == "higher"
        limit = self.share if higher else 1 / self.share
        judged = share_of_reference(measurement, limit, identical)
        if isinstance(judged, str):
            return mistake(measurement, expected, judged)
        if higher:
            return compare(judged, limit, "above", self.decide, f"variant / reference must exceed {share}")
        allowed = f"variant / reference must stay below 1/{share} = {show(limit, self.share)[0]}"
        return compare(judged, limit, "below", self.decide, allowed)
