"""Computes the limits of a rule as changes of the metric, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from harness.forecast.spread import Spread
from harness.records import Metric
from harness.rules import Bound, Facts, Number, Rule, bound_of

Subject = Literal["change", "variant", "number"]

UNKNOWN_REFERENCE = 0.75
"""Stands for the reference's value if no run tells it; results that depend on it are reported as unknown."""


@dataclass(frozen=True)
class Boundary:
    """What a rule allows of one metric, as changes.

    neutral: the change of a variant that equals the reference. limits: the changes at which the rule stops passing,
    first the one that degradation meets first; empty if every change passes. subject: whose interval decides, that of
    the change or that of the variant's own value; ``number``: no interval, the point estimate. reference_passes:
    whether no change passes. worse: the direction of the first limit, seen from changes that pass.
    """

    neutral: float
    limits: tuple[float, ...]
    subject: Subject
    reference_passes: bool
    worse: float

    @property
    def limit(self) -> float | None:
        """The limit that degradation meets first; None if every change passes."""
        return self.limits[0] if self.limits else None


def find_boundary(rule: Rule, metric: Metric, spread: Spread) -> Boundary | None:
    """The boundary of a rule on a metric; None if nothing passes, or if the rule does not fit the metric."""
    facts = facts_of(metric, spread)
    bound, ties = bound_of(rule, facts), spread.family == "counted"
    if bound.misfit:
        return None
    subject: Subject = "variant" if bound.number == "variant" else "change"
    if rule.decide == "point" or ties:
        subject = "number"
    equal = facts.equal(bound.number)
    equal = UNKNOWN_REFERENCE if equal is None else equal
    if not bound.contains(equal, ties):
        return _unmet_boundary(bound, facts, subject, equal, ties)
    worse = -1.0 if metric.better == "higher" else 1.0
    limits = _reachable_limits(bound, facts, ties)
    if metric.better == "neither":
        limits.sort(key=lambda limit: abs(limit.change - metric.neutral))
    else:
        limits.sort(key=lambda limit: limit.direction != worse)
    direction = limits[0].direction if limits else worse
    return Boundary(metric.neutral, tuple(limit.change for limit in limits), subject, True, direction)


def facts_of(metric: Metric, spread: Spread) -> Facts:
    """What is known of a metric before the run, with values from an earlier run or assumptions."""
    has_sides = spread.sides and metric.neutral == 0.0
    numbers: frozenset[Number] = frozenset({"change", "variant", "ratio"} if has_sides else {"change"})
    return Facts.from_metric(metric, numbers, spread.reference if has_sides else None)


class _LimitOnChange(NamedTuple):
    """A limit as a change; direction: 1 for an upper limit, −1 for a lower one."""

    change: float
    direction: float


def _reachable_limits(bound: Bound, facts: Facts, ties: bool) -> list[_LimitOnChange]:
    """The limits that the metric can cross at all, the upper one first."""
    least, most = facts.range(bound.number)
    limits = []
    if bound.upper is not None and (bound.upper < most or (bound.upper == most and not ties)):
        limits.append(_LimitOnChange(_convert_to_change(bound.upper, bound.number, facts), 1.0))
    if bound.lower is not None and (bound.lower > least or (bound.lower == least and not ties)):
        limits.append(_LimitOnChange(_convert_to_change(bound.lower, bound.number, facts), -1.0))
    return limits


def _unmet_boundary(bound: Bound, facts: Facts, subject: Subject, equal: float, ties: bool) -> Boundary | None:
    """For a rule that an unchanged variant does not pass: the limit that it would have to cross; None if it cannot."""
    least, most = facts.range(bound.number)
    lower = least if bound.lower is None else bound.lower
    upper = most if bound.upper is None else bound.upper
    low, high = max(lower, least), min(upper, most)
    if low > high or (low == high and not ties):
        return None
    is_below = bound.lower is not None and equal <= lower
    change = _convert_to_change(lower if is_below else upper, bound.number, facts)
    return Boundary(facts.neutral, (change,), subject, False, -1.0 if is_below else 1.0)


def _convert_to_change(limit: float, number: Number, facts: Facts) -> float:
    """The change of a variant whose compared number is at the limit."""
    reference = UNKNOWN_REFERENCE if facts.reference is None else facts.reference
    return {"change": limit, "variant": limit - reference, "ratio": reference * (limit - 1)}[number]
