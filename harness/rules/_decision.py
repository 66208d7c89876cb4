"""How a number with an interval is compared with a limit, and how that is said in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.records import Measurement
from harness.rules import Basis, Decision
from harness.statistics import p_value_of_interval

Wanted = Literal["below", "above"]
Outcome = Literal["pass", "fail"]

SHARES = frozenset({"share", "probability", "cosine"})
"""Units whose numbers lie between 0 and 1 (a cosine may lie below)."""
PLAIN = SHARES | {"ratio", "perplexity", "kurtosis", "max/median"}
"""Units that read better unsaid."""


@dataclass(frozen=True)
class Judged:
    """The number that a rule compares, and what is known about its uncertainty."""

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


def of_change(measurement: Measurement, identical: bool) -> Judged | None:
    """The paired comparison. When both sides are the same bytes, the neutral value is no sample but the
    truth.
    """
    if measurement.change is None:
        return None
    return Judged(
        subject=measurement.name,
        unit=measurement.unit,
        value=measurement.change,
        low=measurement.low,
        high=measurement.high,
        exact=is_exact(measurement) or (identical and measurement.change == measurement.neutral),
        confidence=measurement.confidence,
        clusters=measurement.clusters,
        method=measurement.method,
    )


def of_variant(measurement: Measurement, identical: bool) -> Judged | None:
    """The variant's own value where the metric has one, else the paired comparison."""
    if measurement.variant is None:
        return of_change(measurement, identical)
    return Judged(
        subject=f"{measurement.name} of the variant",
        unit=measurement.unit,
        value=measurement.variant,
        low=measurement.variant_low,
        high=measurement.variant_high,
        exact=is_exact(measurement),
        confidence=measurement.confidence,
        clusters=measurement.clusters,
        method=measurement.method,
    )


def compare(judged: Judged, limit: float, wanted: Wanted, basis: Basis, expected: str) -> Decision:
    """Pass if the whole interval is on the wanted side of the limit, fail if beyond it, else inconclusive.

    expected says in words what the limit allows. Exact numbers are simply compared, and may equal the limit.
    """
    sign = 1.0 if wanted == "below" else -1.0
    if judged.exact:
        passed = sign * judged.value <= sign * limit
        said = "exactly, not sampled"
        return _decision(judged, limit, expected, "pass" if passed else "fail", sign * (limit - judged.value), said)
    if basis == "point":
        documents = f", from {judged.clusters} documents" if judged.clusters else ""
        said = f"the number alone was compared (decide: point){documents}"
        distance = sign * (limit - judged.value)
        status: Outcome | None = "pass" if distance > 0 else "fail" if distance < 0 else None
        if status is None:
            said += ", and it equals the limit: a tie does not pass"
        return _decision(judged, limit, expected, status, distance, said)
    if judged.low is None or judged.high is None:
        said = f"no interval is known ({judged.method}); to compare the number alone, write decide: point"
        return _decision(judged, limit, expected, None, None, said)
    if judged.low == judged.high:
        said = f"an interval without width is no evidence about other documents ({judged.method})"
        return _decision(judged, limit, expected, None, None, said)
    return _by_interval(judged, limit, sign, judged.low, judged.high, expected)


def _by_interval(judged: Judged, limit: float, sign: float, low: float, high: float, expected: str) -> Decision:
    near, far = (low, high) if sign > 0 else (high, low)
    p_value = p_value_of_interval(
        sign * (judged.value - limit), sign * (judged.value - near), judged.confidence, judged.clusters
    )
    if sign * far < sign * limit:
        said = "the whole interval is on the safe side"
        return _decision(judged, limit, expected, "pass", sign * (limit - far), said, p_value)
    if sign * near > sign * limit:
        said = "the whole interval is beyond it"
        return _decision(judged, limit, expected, "fail", sign * (limit - near), said, p_value)
    tie = far == limit or near == limit
    said = "an end of the interval equals it: a tie does not pass" if tie else "the interval reaches over it"
    return _decision(judged, limit, expected, None, sign * (limit - far), said, p_value)


def _decision(
    judged: Judged,
    limit: float,
    expected: str,
    status: Outcome | None,
    margin: float | None,
    said: str,
    p_value: float | None = None,
) -> Decision:
    ends = [] if judged.low is None or judged.high is None else [judged.low, judged.high]
    value, _, *interval = show(judged.value, limit, *ends)
    unit = "" if judged.unit in PLAIN else f" {judged.unit}"
    found = f"{value}{unit}"
    if interval and not judged.exact:
        found += f", {judged.confidence * 100:g} % interval [{', '.join(interval)}]"
    because = f"{judged.subject} is {found}; {expected}; {said}"
    return Decision(status or "inconclusive", expected, found, margin, because, p_value)


def mistake(measurement: Measurement, expected: str, because: str) -> Decision:
    """An error: the rule does not fit the metric."""
    value = measurement.change if measurement.change is not None else measurement.variant
    return Decision("error", expected, "nothing judged" if value is None else show(value)[0], None, because)


def show(*values: float) -> list[str]:
    """Numbers in as few digits (at least five) as still tell different numbers apart."""
    for digits in range(5, 18):
        texts = [_text(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(value) for value in values]


def _text(value: float, digits: int) -> str:
    value = value + 0.0  # no "-0"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
