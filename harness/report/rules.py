"""Prepares verdicts for the report: the number that each rule compared, and its limits on the same axis."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from harness.errors import HarnessError
from harness.plugins import load
from harness.records import Measurement, Run, Verdict
from harness.report import display, noise, words
from harness.report.asked import rules_by_place
from harness.report.drawing import charts
from harness.rules import Bound, ComparedNumber, Facts, Rule, bound_of, number_of


@dataclass(frozen=True)
class _Compared:
    """The number that a rule compared, its bound, and the number of an unchanged variant with a name for it.

    scale, unit: by what the number is multiplied for one line of text, and what then stands behind it.
    """

    number: ComparedNumber
    bound: Bound
    neutral: tuple[float, str] | None
    scale: float = 1.0
    unit: str = ""

    @property
    def line(self) -> str:
        """The number with its unit, its interval and its limits: "94.8 %, 95 % interval [84.3, 99.2], limit 95 %"."""
        number, limits = self.number, self.bound.limits
        ends = () if number.low is None or number.high is None or number.exact else (number.low, number.high)
        value, *rest = display.format_together([self.scale * each for each in (number.value, *ends, *limits)], 5)
        interval = f"{100 * number.confidence:g} % interval [{rest[0]}, {rest[1]}]" if ends else ""
        sign = "" if not self.unit else f" {self.unit.split()[0]}"
        limit = f"limit{'s' * (len(limits) > 1)} {' and '.join(f'{each}{sign}' for each in rest[len(ends) :])}"
        return ", ".join(filter(None, (f"{value}{self.unit and ' '}{self.unit}", interval, limit)))


@dataclass(frozen=True)
class Judged:
    """One verdict with its texts shortened; compared is None if no number was compared with a limit.

    title: the metric in words. noise: the effect as a multiple of the noise floor, short and in full; empty if no floor
    is known.
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
        """The number and its limit, as "1.093, limit 1.02"; empty if none was compared."""
        if self.compared is None:
            return ""
        value, *limits = display.format_together([self.compared.number.value, *self.compared.bound.limits], 5)
        return f"{value}, limit{'s' * (len(limits) > 1)} {' and '.join(limits)}"

    @property
    def line(self) -> str:
        """The number found, with its interval, the limit if there is one, and the noise: for one line of text."""
        if self.compared is not None and self.compared.unit:
            return ", ".join(filter(None, (self.compared.line, self.noise[0])))
        return ", ".join(filter(None, (self.found, self.numbers.partition(", ")[2], self.noise[0])))

    @property
    def chart(self) -> Markup:
        """The interval against the limit; empty if there is nothing to draw."""
        if self.compared is None:
            return Markup()
        number, bound, status = self.compared.number, self.compared.bound, self.verdict.status
        title = f"{self.title}: {words.STATUSES[status].word}"
        interval = None if number.low is None or number.high is None else (number.low, number.high)
        return charts.limits(number.value, interval, (bound.lower, bound.upper), self.compared.neutral, status, title)


def prepare_verdicts(run: Run) -> list[Judged]:
    """All verdicts, those that need attention first."""
    asked = rules_by_place(run.asked)
    measured = {words.add_labels(m.name, m.labels): m for m in run.measurements}
    for part in run.slices:
        measured |= {words.add_labels(m.name, m.labels | part.name): m for m in part.measurements}
    return [
        _prepare(
            words.metric(run, verdict.metric),
            verdict,
            measured.get(words.add_labels(verdict.metric, verdict.labels)),
            asked.get(verdict.where, {}),
        )
        for verdict in words.worst_first(run.verdicts)
    ]


def _prepare(title: str, verdict: Verdict, measurement: Measurement | None, settings: dict[str, Any]) -> Judged:
    texts = [verdict.expected, verdict.found, verdict.reason or verdict.because]
    expected, found, because = display.shorten_together(texts)
    compared = None
    decided = verdict.status in {"pass", "fail", "inconclusive"}
    if decided and measurement is not None and measurement.non_finite is None:
        compared = _find_comparison(verdict.rule, measurement, settings)
    above = (noise.multiple(measurement), noise.describe(measurement)) if measurement is not None else ("", "")
    return Judged(title, verdict, expected, found, because, compared, above)


def _find_comparison(name: str, m: Measurement, settings: dict[str, Any]) -> _Compared | None:
    """What the rule compared with which limits; None for a rule that is not installed here, or has changed."""
    try:
        given = {key: value for key, value in settings.items() if key not in ("rule", "where", "left_out")}
        rule = load(Rule, name).model_validate_json(json.dumps(given))
    except (HarnessError, ImportError, AttributeError, ValidationError):
        return None
    facts = Facts.from_measurement(m)
    bound = bound_of(rule, facts)
    if bound.misfit:
        return None
    number, equal = number_of(m, bound.number, bound.limits[0]), facts.equal(bound.number)
    if isinstance(number, str):
        return None
    scale, unit = _name_unit(m, bound)
    if equal is None or (facts.infinite_neutral and bound.number == "change"):
        return _Compared(number, bound, None, scale, unit)
    neutral = equal, "reference" if bound.number == "variant" else "no change"
    return _Compared(number, bound, neutral, scale, unit)


def _name_unit(m: Measurement, bound: Bound) -> tuple[float, str]:
    """How a share or a ratio is written in a line of text: its factor and its unit; other numbers stay as they are."""
    if bound.number == "ratio":
        return 100.0, "% of the reference"
    if m.unit not in display.SHARES:
        return 1.0, ""
    difference = bound.number == "change" and m.reference is not None
    return 100.0, "pp" if difference else "%"
