"""Where the limit of a rule lies, found by trying the rule, so that it holds for every rule, also those of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from harness.forecast.spread import Spread
from harness.records import Measurement, Metric
from harness.rules import Rule

Subject = Literal["change", "variant", "number"]

MANY = 10**9
_NARROW, _WIDE = 1e-11, 1e6
_FARTHEST = 1e12


@dataclass(frozen=True)
class Boundary:
    """What a rule demands of one metric.

    limit: the change at which it stops passing, None where any change passes. subject: whose interval it looks at, that
    of the change or that of the variant's own value; ``number``: at none. reference_passes: whether no change passes.
    worse: the direction in which the limit lies. neutral: the change of a variant that equals the reference.
    """

    neutral: float
    limit: float | None
    subject: Subject
    reference_passes: bool
    worse: float


def boundary(rule: Rule, metric: Metric, spread: Spread) -> Boundary | None:
    """The boundary of a rule on a metric; None where nothing passes, or where the rule does not fit the metric."""
    worse = -1.0 if metric.better == "higher" else 1.0
    least, most = _range(metric)

    def passes(change: float, half: float = _NARROW, own_half: float = _NARROW) -> bool:
        sample = trial_measurement(metric, spread, change, half, own_half)
        try:
            return rule.judge(sample, identical=False).status == "pass"
        except Exception:  # noqa: BLE001 - a rule that breaks on a number does not pass it; the judge will say so
            return False

    if passes(metric.neutral):
        limit, inside = _edge(passes, metric.neutral, worse, least, most), metric.neutral
        if limit is None and metric.better == "neither":
            limit = _edge(passes, metric.neutral, -1.0, least, most)
            worse = worse if limit is None else -1.0
        reference_passes = True
    else:
        found = _edge(lambda change: not passes(change), metric.neutral, -worse, least, most)
        if found is None and metric.better == "neither":
            worse = -1.0
            found = _edge(lambda change: not passes(change), metric.neutral, -worse, least, most)
        if found is None:
            return None
        limit, inside, reference_passes = found, found, False
    if passes(inside, _WIDE):
        subject: Subject = "number" if passes(inside, _WIDE, _WIDE) else "variant"
    else:
        subject = "change"
    return Boundary(metric.neutral, limit, subject, reference_passes, worse)


def trial_measurement(
    metric: Metric, spread: Spread, change: float, half: float, own_half: float, documents: int = MANY
) -> Measurement:
    """A measurement as a run might leave it, with this change and intervals of these half-widths."""
    reference = spread.reference if spread.reference is not None else 0.75
    sides = spread.sides and metric.neutral == 0.0
    variant = reference + change
    exact = spread.family == "counted"
    # Relative to the number, so that the interval keeps a width, without which it would be no evidence.
    half = 0.0 if exact else max(half, _NARROW, 1e-9 * abs(change))
    own_half = 0.0 if exact else max(own_half, _NARROW, 1e-9 * abs(variant))
    return Measurement(
        name=metric.name,
        unit=metric.unit,
        better=metric.better,
        neutral=metric.neutral,
        reference=reference if sides else None,
        variant=variant if sides else None,
        change=change,
        low=change - half,
        high=change + half,
        variant_low=variant - own_half if sides else None,
        variant_high=variant + own_half if sides else None,
        n=documents,
        clusters=documents,
        infinite_neutral=metric.infinite_neutral,
        basis="counted" if exact else "sampled",
        method="none: a trial of the rule",
    )


def _range(metric: Metric) -> tuple[float, float]:
    """Least and largest change that the metric can have."""
    if metric.unit in ("share", "probability"):
        return (0.0, 1.0) if metric.neutral == 1.0 else (-1.0, 1.0)
    return (1e-12, _FARTHEST) if metric.unit == "ratio" else (-_FARTHEST, _FARTHEST)


def _edge(holds: Callable[[float], bool], start: float, direction: float, least: float, most: float) -> float | None:
    """Where, from ``start`` in a direction, a condition stops holding; None if it holds to the end of the range."""
    near, step = 0.0, 1e-9
    end = (most - start) if direction > 0 else (start - least)
    while step < end and holds(start + direction * step):
        near, step = step, step * 2
    far = min(step, end)
    if holds(start + direction * far):
        return None
    for _ in range(80):
        middle = (near + far) / 2
        near, far = (middle, far) if holds(start + direction * middle) else (near, middle)
    return start + direction * far
