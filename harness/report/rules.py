"""What each rule saw: the verdict, the measurement it rests on, and the limit on the axis it was compared
on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness.records import Measurement, Run, Verdict
from harness.report import display, noise, words
from harness.report.asked import rules_by_place
from harness.report.drawing import charts

_IT = re.compile(r"\b(beyond|over|equals) it\b")
"""Words that spoke of the limit while it stood before them."""
_GOOD = {"at_most": "below", "at_least": "above"}


@dataclass(frozen=True)
class _Compared:
    """The number that was compared (the change, or the variant's own value), and the limit with its good side."""

    value: float
    low: float | None
    high: float | None
    neutral: tuple[float, str] | None
    limit: float
    good: str


@dataclass(frozen=True)
class Judged:
    """One verdict with its texts shortened; compared is None where no number met a single limit.

    title: the metric in words. noise: the effect as a multiple of the noise floor, short and in full; empty where no
    floor is known.
    """

    title: str
    verdict: Verdict
    expected: str
    found: str
    because: str
    compared: _Compared | None
    noise: tuple[str, str] = ("", "")

    @property
    def numbers(self) -> str:
        """What met what, as "1.093, limit 1.02"; empty where nothing did."""
        if self.compared is None:
            return ""
        value, limit = display.beside([self.compared.value, self.compared.limit], 5)
        return f"{value}, limit {limit}"

    @property
    def line(self) -> str:
        """What was found, with its interval, the limit if there is one, and the noise: for one line of text."""
        return ", ".join(filter(None, (self.found, self.numbers.partition(", ")[2], self.noise[0])))

    @property
    def chart(self) -> Markup:
        """The interval against the limit; empty where there is nothing to draw."""
        if self.compared is None:
            return Markup()
        c, status = self.compared, self.verdict.status
        title = f"{self.title}: {words.STATUSES[status].word}"
        return charts.limit(c.value, c.low, c.high, c.limit, c.neutral, c.good, status, title)


def judged(run: Run) -> list[Judged]:
    """All verdicts, those that need attention first."""
    asked = rules_by_place(run.asked)
    measured = {words.labelled(m.name, m.labels): m for m in run.measurements}
    for part in run.slices:
        measured |= {words.labelled(m.name, m.labels | part.name): m for m in part.measurements}
    return [
        _judged(
            words.metric(run, verdict.metric),
            verdict,
            measured.get(words.labelled(verdict.metric, verdict.labels)),
            asked.get(verdict.where, {}),
        )
        for verdict in words.worst_first(run.verdicts)
    ]


def _judged(title: str, verdict: Verdict, measurement: Measurement | None, settings: dict[str, Any]) -> Judged:
    expected, found, because = display.shortened([verdict.expected, verdict.found, verdict.because])
    compared = None
    decided = verdict.status in {"pass", "fail", "inconclusive"}
    if decided and measurement is not None and measurement.non_finite is None:
        compared = _compared(verdict.rule, measurement, settings)
    rest = _rest(because, expected, found)
    above = (noise.multiple(measurement), noise.described(measurement)) if measurement is not None else ("", "")
    return Judged(title, verdict, expected.removesuffix(" is wanted"), found, rest, compared, above)


def _compared(rule: str, m: Measurement, settings: dict[str, Any]) -> _Compared | None:
    """What the rule compared with which limit; None for a rule that is not known here."""
    upper = m.better == "lower"
    margin, share, limit = (_number(settings.get(name)) for name in ("margin", "share", "limit"))
    if rule == "not_worse" and margin is not None:
        return _change(m, m.neutral + margin if upper else m.neutral - margin, "below" if upper else "above")
    if rule == "retains" and share and m.neutral == 1:
        return _change(m, 1 / share if upper else share, "below" if upper else "above")
    if rule in _GOOD and limit is not None:
        if settings.get("of") == "reference" and m.neutral != 1:
            return None
        if m.variant is None or settings.get("of") == "change":
            return _change(m, limit, _GOOD[rule])
        reference = None if m.reference is None else (m.reference, "reference")
        return _Compared(m.variant, m.variant_low, m.variant_high, reference, limit, _GOOD[rule])
    return None


def _change(m: Measurement, limit: float, good: str) -> _Compared | None:
    if m.change is None:
        return None
    return _Compared(m.change, m.low, m.high, (m.neutral, "no change"), limit, good)


def _rest(because: str, expected: str, found: str) -> str:
    """The reason without what already stands beside it as wanted and found."""
    parts = [part for part in because.split("; ") if part != expected and found not in part]
    return _IT.sub(r"\1 the limit", "; ".join(parts)) or because


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
