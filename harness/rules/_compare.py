"""How a number with its interval is compared with the limits of a bound, and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.errors import FailureClass
from harness.records import Measurement
from harness.records.units import unit_of
from harness.rules._bound import Bound
from harness.rules._digits import show
from harness.rules._numbers import ComparedNumber, number_of
from harness.statistics import p_value_of_interval

Basis = Literal["interval", "point"]
Status = Literal["pass", "fail", "inconclusive", "error"]

FEWEST = 2
"""Independent observations (documents, items, timing blocks) without which no interval passes: one shows no spread."""
_STRICTEST: tuple[Status, ...] = ("error", "fail", "inconclusive", "pass")


@dataclass(frozen=True)
class Decision:
    """The outcome of a rule: its status, what was expected and found in words, the margin left, and the reason."""

    status: Status
    expected: str
    found: str
    margin: float | None
    because: str
    p_value: float | None = None
    """One-sided p-value of "beyond the limit" where an interval decided; None where nothing was sampled."""
    failure: FailureClass | None = None
    """What kind of thing keeps the rule from passing, where that is not the concern of the metric."""
    reason: str = ""
    """``because`` without the number and the limit, for a page that shows these; empty if it names neither."""

    def withhold(self, why: str, status: Status = "inconclusive") -> Decision:
        """The decision with a further reason. Without its p-value ``on_inconclusive: warn`` does not excuse it."""
        reason = f"{self.reason}; {why}" if self.reason else ""
        return replace(self, status=status, because=f"{self.because}; {why}", p_value=None, reason=reason)


@dataclass(frozen=True)
class _NamedLimit:
    """One limit of a bound. sign: 1 for an upper limit, −1 for a lower one; name: how verdicts call it."""

    value: float
    sign: float
    name: str


def compare(measurement: Measurement, bound: Bound, basis: Basis, identical: bool) -> Decision:
    """Pass if the whole interval is within the limits, fail if it is beyond one of them, else inconclusive.

    Counted numbers are simply compared, and may equal a limit. A measurement that the bound does not fit is an error.
    identical: both sides are the same bytes, so that an exact tie may pass.
    """
    if bound.misfit:
        return mistake(measurement, bound.expected, bound.misfit)
    decisions = []
    for limit in _limits(bound):
        number = number_of(measurement, bound.number, limit.value, identical)
        if isinstance(number, str):
            return mistake(measurement, bound.expected, number)
        decisions.append(_compare(number, limit, basis, bound.expected))
    return _combine(decisions)


def _limits(bound: Bound) -> list[_NamedLimit]:
    both = bound.lower is not None and bound.upper is not None
    sides = ((bound.lower, -1.0, "lower "), (bound.upper, 1.0, "upper "))
    return [
        _NamedLimit(value, sign, f"the {side}limit {show(value)[0]}" if both else "the limit")
        for value, sign, side in sides
        if value is not None
    ]


def _combine(decisions: Sequence[Decision]) -> Decision:
    """The strictest of the decisions on the limits of one bound: all of them must hold."""
    worst = min(decisions, key=lambda d: (_STRICTEST.index(d.status), math.inf if d.margin is None else d.margin))
    p_values = [decision.p_value for decision in decisions if decision.p_value is not None]
    if len(p_values) < 2:
        return worst
    # "Beyond either limit" is as likely by chance as beyond the nearer one, or as far off on the other side of both.
    return replace(worst, p_value=1 - abs(p_values[0] - p_values[1]))


def _compare(number: ComparedNumber, limit: _NamedLimit, basis: Basis, expected: str) -> Decision:
    distance = limit.sign * (limit.value - number.value)
    if number.exact:
        status: Status = "pass" if limit.sign * number.value <= limit.sign * limit.value else "fail"
        return _decision(number, limit, expected, status, distance, "counted, not sampled")
    if basis == "point":
        documents = f", n = {number.clusters} documents" if number.clusters else ""
        reason = f"only the point estimate was compared (decide: point){documents}"
        if distance == 0:
            reason += f"; it equals {limit.name}, and a tie does not pass"
        status = "pass" if distance > 0 else "fail" if distance < 0 else "inconclusive"
        return _decision(number, limit, expected, status, distance, reason)
    if number.low is None or number.high is None:
        reason = f"no interval is available ({number.method}); to compare the point estimate, write decide: point"
        return _decision(number, limit, expected, "inconclusive", None, reason)
    if number.low == number.high:
        reason = f"an interval of width zero is no evidence about other documents ({number.method})"
        return _decision(number, limit, expected, "inconclusive", None, reason)
    return _compare_interval(number, limit, number.low, number.high, expected)


def _compare_interval(number: ComparedNumber, limit: _NamedLimit, low: float, high: float, expected: str) -> Decision:
    sign, at = limit.sign, limit.value
    near, far = (low, high) if sign > 0 else (high, low)
    p_value = p_value_of_interval(
        sign * (number.value - at), sign * (number.value - near), number.confidence, number.clusters
    )
    if sign * far < sign * at and number.clusters < FEWEST:
        reason = f"n = {number.clusters} documents are no sample, whatever their interval ({number.method})"
        return _decision(number, limit, expected, "inconclusive", sign * (at - far), reason)
    if sign * far < sign * at:
        reason = f"the whole interval is within {limit.name}"
        return _decision(number, limit, expected, "pass", sign * (at - far), reason, p_value)
    if sign * near > sign * at:
        reason = f"the whole interval is beyond {limit.name}"
        return _decision(number, limit, expected, "fail", sign * (at - near), reason, p_value)
    tie = f"one end of the interval equals {limit.name}, and a tie does not pass"
    reason = tie if at in (far, near) else f"the interval crosses {limit.name}"
    return _decision(number, limit, expected, "inconclusive", sign * (at - far), reason, p_value)


def _decision(
    number: ComparedNumber,
    limit: _NamedLimit,
    expected: str,
    status: Status,
    margin: float | None,
    reason: str,
    p_value: float | None = None,
) -> Decision:
    ends = [] if number.low is None or number.high is None else [number.low, number.high]
    value, _, *interval = show(number.value, limit.value, *ends)
    found = f"{value} {number.unit}" if unit_of(number.unit).written else value
    if interval and not number.exact:
        found += f", {number.confidence * 100:g} % interval [{', '.join(interval)}]"
    because = f"{number.subject} is {found}; expected: {expected}; {reason}"
    return Decision(status, expected, found, margin, because, p_value, reason=reason)


def mistake(measurement: Measurement, expected: str, because: str) -> Decision:
    """An error: the rule does not fit the metric."""
    value = measurement.change if measurement.change is not None else measurement.variant
    found = "nothing compared" if value is None else show(value)[0]
    return Decision("error", expected, found, None, because, failure="usage")
