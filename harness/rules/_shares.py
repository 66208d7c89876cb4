"""variant / reference with ends that decide whether it lies above or below a limit."""

from __future__ import annotations

from dataclasses import replace

from harness.records import Measurement
from harness.rules._decision import Judged, of_change, show


def share_of_reference(measurement: Measurement, limit: float, identical: bool) -> Judged | str:
    """variant / reference, or why there is none. ``limit`` is the share that it will be compared with.

    A metric that is a ratio already (neutral 1) is taken as it is.
    """
    change = of_change(measurement, identical)
    if change is not None and measurement.neutral == 1.0:
        return change
    reference, variant = measurement.reference, measurement.variant
    if change is None or reference is None or variant is None:
        return f"{measurement.name} compares both sides, it has no value on each; write not_worse or at_most"
    if reference <= 0 or variant < 0:
        side, value = ("reference", reference) if reference <= 0 else ("variant", variant)
        return f"{measurement.name} of the {side} is {show(value)[0]}: a share of the reference has no meaning"
    low, high = _ends(measurement, reference, variant, limit)
    return replace(
        change,
        subject=f"{measurement.name}, variant / reference ({show(variant)[0]} / {show(reference)[0]}),",
        unit="ratio",
        value=variant / reference,
        low=low,
        high=high,
    )


def _ends(m: Measurement, reference: float, variant: float, limit: float) -> tuple[float | None, float | None]:
    """Ends of variant / reference, each on the side of ``limit`` of which the intervals are sure.

    variant − limit · reference = limit · change + (1 − limit) · variant, for which the ends of both intervals add
    up to bounds that hold however the two errors depend on one another. Where the change alone has a sure sign,
    the ratio is on the same side of 1: so a looser limit never loses what a stricter one has.
    """
    if m.low is None or m.high is None:
        return None, None
    if m.low == m.high:
        return variant / reference, variant / reference
    own_low, own_high = m.variant_low, m.variant_high
    if own_low is None or own_high is None:
        if limit != 1:
            return None, None
        own_low = own_high = 0.0
    rest = 1 - limit
    if rest < 0:
        own_low, own_high = own_high, own_low
    low = limit + (limit * m.low + rest * own_low) / reference
    high = limit + (limit * m.high + rest * own_high) / reference
    if m.low > 0:
        low = max(low, 1.0)
    if m.high < 0:
        high = min(high, 1.0)
    value = variant / reference
    return min(low, value), max(high, value)
