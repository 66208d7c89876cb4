"""What each rule saw: the verdict, the measurement it rests on, and the limit on the axis it was compared
on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness.records import Measurement, Run, Verdict
from harness.report import charts, display, words
from harness.report.asked import rules_by_place

_GOOD = {"at_most": "below", "at_least": "above"}


@dataclass(frozen=True)
class Judged:
    """One verdict with its texts shortened.

    numbers ("1.093, limit 1.02") and chart are empty where nothing was compared with a single limit.
    """

    verdict: Verdict
    measurement: Measurement | None
    expected: str
    found: str
    because: str
    numbers: str
    chart: Markup


@dataclass(frozen=True)
class _Axis:
    """The number that was compared with a limit: the change, or the variant's own value."""

    value: float
    low: float | None
    high: float | None
    neutral: tuple[float, str] | None


def judged(run: Run) -> list[Judged]:
    """All verdicts, those that need attention first."""
    asked = rules_by_place(run.asked)
    measured = {words.labelled(m.name, m.labels): m for m in run.measurements}
    return [
        _judged(
            verdict,
            measured.get(words.labelled(verdict.metric, verdict.labels)),
            asked.get(verdict.where, {}),
        )
        for verdict in words.worst_first(run.verdicts)
    ]


def _judged(verdict: Verdict, measurement: Measurement | None, settings: dict[str, Any]) -> Judged:
    expected, found, because = display.shortened([verdict.expected, verdict.found, verdict.because])
    because = _rest(because, expected, found)
    placed = None
    compared = verdict.status in {"pass", "fail", "inconclusive"}
    if compared and measurement is not None and measurement.non_finite is None:
        placed = _place(verdict, measurement, settings)
    if placed is None:
        return Judged(verdict, measurement, expected, found, because, "", Markup())
    axis, limit, good = placed
    value, bound = display.beside([axis.value, limit])
    title = f"{words.metric(verdict.metric)}: {words.STATUSES[verdict.status].word}"
    chart = charts.limit(axis.value, axis.low, axis.high, limit, axis.neutral, good, verdict.status, title)
    return Judged(verdict, measurement, expected, found, because, f"{value}, limit {bound}", chart)


def _place(
    verdict: Verdict, measurement: Measurement, settings: dict[str, Any]
) -> tuple[_Axis, float, str] | None:
    """The axis, the limit on it, and which side of the limit is good; None where the rule is of another
    kind.
    """
    m = measurement
    change = _axis(m.change, m.low, m.high, (m.neutral, "no change"))
    if verdict.rule == "not_worse":
        margin = _number(settings.get("margin"))
        if change is None or margin is None:
            return None
        return (
            (change, m.neutral + margin, "below")
            if m.better == "lower"
            else (change, m.neutral - margin, "above")
        )
    if verdict.rule == "retains":
        share = _number(settings.get("share"))
        if change is None or not share or m.neutral != 1:
            return None
        return (change, 1 / share, "below") if m.better == "lower" else (change, share, "above")
    limit, good = _number(settings.get("limit")), _GOOD.get(verdict.rule)
    axis = change
    if m.variant is not None:
        axis = _axis(
            m.variant,
            m.variant_low,
            m.variant_high,
            None if m.reference is None else (m.reference, "reference"),
        )
    return None if axis is None or limit is None or good is None else (axis, limit, good)


def _axis(
    value: float | None, low: float | None, high: float | None, neutral: tuple[float, str] | None
) -> _Axis | None:
    return None if value is None else _Axis(value, low, high, neutral)


def _rest(because: str, expected: str, found: str) -> str:
    """The reason without what already stands beside it as wanted and found."""
    parts = [part for part in because.split("; ") if part != expected and found not in part]
    return "; ".join(parts) or because


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
