"""Prepares verdicts for the report: the number that each rule compared, and its limits on the same axis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from harness.errors import HarnessError
from harness.plugins import load
from harness.records import Measurement, Run, Status, Verdict
from harness.records.patterns import matches
from harness.report import display, noise, undecided, words
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
    def brief(self) -> str:
        """The number and its limits: "94.8 %, limit 95 %"."""
        value, *limits = self._write(self.number.value, *self.bound.limits)
        return f"{value}{self.unit and ' '}{self.unit}, {self.noun} {self._join_limits(limits)}"

    @property
    def noun(self) -> str:
        """What one limit, or two, are called."""
        return "limits" if len(self.bound.limits) > 1 else "limit"

    @property
    def parts(self) -> tuple[str, str]:
        """The number with its interval, and its limits: "94.8 %, 95 % interval [84.3, 99.2]" and "95 %"."""
        number, limits = self.number, self.bound.limits
        ends = () if number.low is None or number.high is None or number.exact else (number.low, number.high)
        value, *rest = self._write(number.value, *ends, *limits)
        interval = f", {100 * number.confidence:g} % interval [{rest[0]}, {rest[1]}]" if ends else ""
        return f"{value}{self.unit and ' '}{self.unit}{interval}", self._join_limits(rest[len(ends) :])

    def _write(self, *values: float) -> list[str]:
        return display.format_together([self.scale * value for value in values])

    def _join_limits(self, limits: Sequence[str]) -> str:
        sign = f" {self.unit.split()[0]}" if self.unit else ""
        return " and ".join(f"{each}{sign}" for each in limits)

    def limited(self, status: Status, title: str) -> charts.Limited:
        """The number with its interval and its limits, exact."""
        number, bounds = self.number, (self.bound.lower, self.bound.upper)
        interval = None if number.low is None or number.high is None else (number.low, number.high)
        return charts.Limited(number.value, interval, bounds, status, f"{title}: {words.STATUSES[status].word}")

    def drawn(self, status: Status, title: str) -> tuple[charts.Limited, tuple[float, str] | None]:
        """The same in the unit in which it is written, and where no change lies."""
        exact, scale = self.limited(status, f"{title}{self.unit and ', in '}{self.unit}"), self.scale
        lower, upper = (None if each is None else scale * each for each in exact.bounds)
        interval = exact.interval and (scale * exact.interval[0], scale * exact.interval[1])
        neutral = self.neutral and (scale * self.neutral[0], self.neutral[1])
        return replace(exact, value=scale * exact.value, interval=interval, bounds=(lower, upper)), neutral


@dataclass(frozen=True)
class Judged:
    """One verdict with its texts shortened; compared is None if no number was compared with a limit.

    title: the metric in words. noise: the effect as a multiple of the noise floor, short and in full; empty if no floor
    is known. n: the number of independent observations with what they are; empty for a counted number. need: the sample
    that would decide the rule, and remedy: where to ask for it, and the command; empty unless more would decide it.
    """

    title: str
    verdict: Verdict
    expected: str
    found: str
    because: str
    compared: _Compared | None
    noise: tuple[str, str] = ("", "")
    n: str = ""
    need: str = ""
    remedy: tuple[str, str] = ("", "")

    @property
    def task(self) -> str:
        """The task that the rule is on; empty for other metrics."""
        family, _, rest = self.verdict.metric.partition(".")
        return rest.partition(".")[0] if family == "tasks" else ""

    @property
    def numbers(self) -> str:
        """The number and its limit, as "94.8 %, limit 95 %"; empty if none was compared."""
        return "" if self.compared is None else self.compared.brief

    @property
    def estimate(self) -> str:
        """The number found with its interval; a share or a ratio to the reference with its sign."""
        return self.compared.parts[0] if self.compared is not None and self.compared.unit else self.found

    @property
    def limit(self) -> str:
        """The limit of a share or a ratio, with its sign; empty for other numbers, whose limit ``expected`` says."""
        return self.compared.parts[1] if self.compared is not None and self.compared.unit else ""

    @property
    def line(self) -> str:
        """The number found, with its interval, the limit if there is one, and the noise: for one line of text."""
        limit = self.numbers.partition(", ")[2]
        if self.compared is not None and self.limit:
            limit = f"{self.compared.noun} {self.limit}"
        return ", ".join(filter(None, (self.estimate, limit, self.noise[0])))

    @property
    def chart(self) -> Markup:
        """The interval against the limit; empty if there is nothing to draw."""
        if self.compared is None:
            return Markup()
        return charts.limits(*self.compared.drawn(self.verdict.status, self.title))

    @property
    def small_chart(self) -> Markup:
        """The same without words, for one line of a table."""
        if self.compared is None:
            return Markup()
        return charts.limits_in_row(self.compared.drawn(self.verdict.status, self.title)[0])


@dataclass(frozen=True)
class PassedGate:
    """The rules of one gate that passed: those on whole models, and those on each task."""

    name: str
    rules: tuple[Judged, ...]
    tasks: tuple[tuple[str, tuple[Judged, ...]], ...]

    @property
    def total(self) -> int:
        """How many rules passed."""
        return len(self.rules) + sum(len(rules) for _, rules in self.tasks)


def list_open(judged: Sequence[Judged]) -> list[Judged]:
    """The rules that did not pass."""
    return [item for item in judged if item.verdict.status != "pass"]


def fold_passed(judged: Sequence[Judged], most: int) -> list[PassedGate]:
    """The first ``most`` rules that passed, by gate, and those on tasks by task, in order of names."""
    passed = [item for item in judged if item.verdict.status == "pass"][:most]
    return [_fold_gate(name, list(items)) for name, items in groupby(sorted(passed, key=_gate_of), key=_gate_of)]


def _gate_of(item: Judged) -> str:
    return item.verdict.gate


def _fold_gate(name: str, items: Sequence[Judged]) -> PassedGate:
    tasks: dict[str, list[Judged]] = {}
    for item in items:
        tasks.setdefault(item.task, []).append(item)
    whole = tasks.pop("", [])
    return PassedGate(name, tuple(whole), tuple((task, tuple(tasks[task])) for task in sorted(tasks)))


def prepare_verdicts(run: Run) -> list[Judged]:
    """All verdicts, those that need attention first."""
    asked = rules_by_place(run.asked)
    measured = {words.add_labels(m.name, m.labels): m for m in run.measurements}
    for part in run.slices:
        measured |= {words.add_labels(m.name, m.labels | part.name): m for m in part.measurements}
    return [
        _prepare(
            run,
            verdict,
            measured.get(words.add_labels(verdict.metric, verdict.labels)),
            asked.get(verdict.where, []),
        )
        for verdict in words.worst_first(run.verdicts)
    ]


def _prepare(run: Run, verdict: Verdict, m: Measurement | None, settings: list[dict[str, Any]]) -> Judged:
    texts = [verdict.expected, verdict.found, verdict.reason or verdict.because]
    expected, found, because = display.shorten_together(texts)
    item = Judged(words.metric(run, verdict.metric), verdict, expected, found, because, None)
    if m is None:
        return item
    units = run.metric(verdict.metric).units
    n = display.count(m.clusters, units) if m.basis == "sampled" else ""
    item = replace(item, noise=(noise.multiple(m), noise.describe(m)), n=n)
    rule = None
    if verdict.status in {"pass", "fail", "inconclusive"} and m.non_finite is None:
        rule = _find_rule(verdict, m, settings)
    compared = _find_comparison(rule, m) if rule is not None else None
    if rule is None or compared is None:
        return item
    item = replace(item, compared=compared)
    need = undecided.find_need(compared.limited(verdict.status, item.title), m.clusters, rule.min_documents)
    if verdict.status != "inconclusive" or need is None:
        return item
    rule_name = f"{verdict.rule} {verdict.metric}"
    failed = next((stop.failed[0] for stop in run.stops if stop.failed and rule_name in stop.undecided), "")
    remedy = undecided.describe_remedy(need, units, run.asked, failed)
    return replace(item, need=undecided.describe_need(need, units), remedy=remedy)


def _find_rule(verdict: Verdict, m: Measurement, settings: list[dict[str, Any]]) -> Rule | None:
    """The rule of a verdict among those on its line; None if it is not installed here, has changed, or is not clear."""
    facts = Facts.from_measurement(m)
    rules = [rule for each in settings if (rule := _load_rule(verdict.rule, each)) is not None]
    fitting = [rule for rule in rules if matches(rule.metric, verdict.metric)]
    if len(fitting) > 1:
        said = (verdict.expected, verdict.why)
        fitting = [rule for rule in fitting if (bound_of(rule, facts).expected, rule.why) == said]
    return fitting[0] if len(fitting) == 1 else None


def _load_rule(name: str, settings: dict[str, Any]) -> Rule | None:
    try:
        given = {key: value for key, value in settings.items() if key not in ("rule", "where", "left_out")}
        return load(Rule, name).model_validate_json(json.dumps(given))
    except (HarnessError, ImportError, AttributeError, ValidationError):
        return None


def _find_comparison(rule: Rule, m: Measurement) -> _Compared | None:
    """What the rule compared with which limits."""
    facts = Facts.from_measurement(m)
    bound = bound_of(rule, facts)
    if bound.misfit:
        return None
    number, equal = number_of(m, bound.number, bound.limits[0]), facts.equal(bound.number)
    if isinstance(number, str):
        return None
    scale, unit = _name_unit(m, bound)
    named = [number.value, *bound.limits]
    if len({scale * each for each in named}) < len(set(named)):
        scale, unit = 1.0, ""  # numbers that differ in their last bit must not read alike
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
