"""The numbers of a measurement that rules compare: the change, the variant's own value, and variant / reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from harness.records import Measurement
from harness.rules._bound import Number
from harness.rules._digits import show


@dataclass(frozen=True)
class ComparedNumber:
    """The number that a rule compares, and what is known about its uncertainty.

    subject: what it is, in words. exact: it was counted, not sampled, so that no interval is needed.
    """

    subject: str
    unit: str
    value: float
    low: float | None
    high: float | None
    exact: bool
    confidence: float
    clusters: int
    method: str


def is_exact(measurement: Measurement) -> bool:
    """Whether the number was counted, so that it is compared as it is; a sampled one is never exact."""
    return measurement.basis == "counted" and measurement.low == measurement.high == measurement.change


def number_of(measurement: Measurement, number: Number, limit: float, identical: bool = False) -> ComparedNumber | str:
    """The number that is compared with ``limit``; a text says why the measurement has none.

    identical: both sides are the same bytes, so that a change that is exactly neutral is the truth and no sample.
    """
    m = measurement
    if number == "variant":
        if m.variant is None:
            return f"{m.name} has no value of the variant"
        return _number(m, f"{m.name} of the variant", m.variant, (m.variant_low, m.variant_high), is_exact(m))
    if m.change is None:
        return f"{m.name} has no comparison with the reference"
    exact = is_exact(m) or (identical and m.change == m.neutral)
    change = _number(m, m.name, m.change, (m.low, m.high), exact)
    return change if number == "change" else _ratio(m, change, limit)


def _number(
    m: Measurement, subject: str, value: float, ends: tuple[float | None, float | None], exact: bool
) -> ComparedNumber:
    return ComparedNumber(subject, m.unit, value, *ends, exact, m.confidence, m.clusters, m.method)


def _ratio(m: Measurement, change: ComparedNumber, limit: float) -> ComparedNumber | str:
    """variant / reference, whose interval tells on which side of ``limit`` the ratio lies."""
    reference, variant = m.reference, m.variant
    if reference is None or variant is None:
        return f"{m.name} has no value on each side"
    if reference <= 0 or variant < 0:
        side, value = ("reference", reference) if reference <= 0 else ("variant", variant)
        return f"{m.name} of the {side} is {show(value)[0]}, so variant / reference has no meaning"
    low, high = _ends(m, reference, variant, limit)
    value = variant / reference
    if not all(math.isfinite(number) for number in (value, low or 0.0, high or 0.0)):
        return f"{m.name} of the reference is {show(reference)[0]}, so variant / reference is too large to be compared"
    subject = f"{m.name}, variant / reference ({show(variant)[0]} / {show(reference)[0]}),"
    return replace(change, subject=subject, unit="ratio", value=value, low=low, high=high)


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
