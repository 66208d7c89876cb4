"""The rule ``retains``."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import Basis, Judged, compare, mistake, of_change, show


class Retains(Rule):
    """The variant keeps a share of the reference's value: 0.98 allows a loss of two percent of it.

    For a metric that is better when lower, the variant's value stays below the reference's divided by the
    share.
    """

    share: float = Field(gt=0, le=1, description="share of the reference's value that must be kept")
    decide: Basis = Field(
        default="interval", description="interval: the whole interval is within; point: the number"
    )

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge variant / reference of a metric with a direction and a positive reference."""
        share = show(self.share)[0]
        expected = f"a share of {share} of the reference is wanted"
        if measurement.better == "neither":
            because = f"{measurement.name} has no better direction, so there is nothing to retain"
            return mistake(measurement, expected, because)
        judged = self._kept(measurement, identical)
        if isinstance(judged, str):
            return mistake(measurement, expected, judged)
        if measurement.better == "higher":
            return compare(
                judged, self.share, "above", self.decide, f"variant / reference must exceed {share}"
            )
        limit = 1 / self.share
        allowed = f"variant / reference must stay below 1/{share} = {show(limit, self.share)[0]}"
        return compare(judged, limit, "below", self.decide, allowed)

    def _kept(self, measurement: Measurement, identical: bool) -> Judged | str:
        """variant / reference with its interval, or why there is none."""
        change = of_change(measurement, identical)
        if change is not None and measurement.neutral == 1.0:
            return change
        reference, variant = measurement.reference, measurement.variant
        if change is None or reference is None or variant is None:
            return (
                f"{measurement.name} compares both sides, it has no value on each; write not_worse or at_most"
            )
        if reference <= 0:
            return (
                f"{measurement.name} of the reference is {show(reference)[0]}: a share of it has no meaning"
            )
        low, high = self._ends(measurement, reference)
        return replace(
            change,
            subject=f"{measurement.name}, variant / reference ({show(variant)[0]} / {show(reference)[0]}),",
            unit="ratio",
            value=variant / reference,
            low=low,
            high=high,
        )

    def _ends(self, measurement: Measurement, reference: float) -> tuple[float | None, float | None]:
        """Ends of variant / reference that decide whether it exceeds the share (or stays below 1/share).

        variant − share · reference = share · change + (1 − share) · variant, for which the ends of both
        intervals add up to bounds that hold however the two errors depend on one another.
        """
        if measurement.low is None or measurement.high is None:
            return None, None
        if measurement.low == measurement.high and measurement.variant is not None:
            same = measurement.variant / reference
            return same, same
        rest = 1 - self.share
        own_low, own_high = measurement.variant_low, measurement.variant_high
        if own_low is None or own_high is None:
            if rest > 0:
                return None, None
            own_low = own_high = 0.0
        if measurement.better == "higher":
            low = self.share + (self.share * measurement.low + rest * own_low) / reference
            high = self.share + (self.share * measurement.high + rest * own_high) / reference
        else:
            low = (1 + (measurement.low - rest * own_high) / reference) / self.share
            high = (1 + (measurement.high - rest * own_low) / reference) / self.share
        return low, high
