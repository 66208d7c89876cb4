"""Judges the measurements of a run: one verdict per rule and matching measurement.

The loop runs over rules, never over measurements: a metric that is missing, misspelt, non-finite or empty becomes an
error or a failure of the rule that requires it, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.errors import FailureClass
from harness.planning.left_out import TOPIC, LeftOut, note_left_out
from harness.planning.specs import GateSpec, RuleSpec
from harness.plugins import nearest
from harness.records import Measurement, Metric, Run, Skipped, Slice, Verdict, find_metric
from harness.records.conclusion import EXIT_CODES, conclusion
from harness.records.own_rules import OWN_GATE
from harness.records.patterns import could_match, matches
from harness.rules import Decision, Rule
from harness.rules._conditions import apply_conditions
from harness.statistics import holm
from harness.system.foreign import guard

FALSE_ALARMS = 0.025
"""Family-wise error rate of blocking rules, if every true value lies at its limit: one side of 95 %."""

LARGEST = 1e300
"""Numbers beyond it overflow where they are compared."""


@dataclass(frozen=True)
class _Case:
    """One decision, before the correction for multiple comparisons."""

    gate: str
    spec: RuleSpec
    metric: str
    labels: dict[str, str]
    decision: Decision
    unsupported: bool = False


def judge(
    gates: Sequence[GateSpec],
    measurements: Sequence[Measurement],
    skipped: Sequence[Skipped],
    identical: bool,
    slices: Sequence[Slice] = (),
    elsewhere: int = 0,
    metrics: Sequence[Metric] = (),
) -> tuple[Verdict, ...]:
    """One verdict for each rule and each measurement that its pattern matches, in the order of the gate files.

    A rule whose pattern matches no measurement is one error. A matching metric that could not be measured is an error
    too, even if the pattern (with or without ``*``) also matches measurements: a rule about every task is not satisfied
    by the tasks that could be run. It is only advisory where no run could measure it and the rule says
    ``on_unsupported: warn``. identical: both sides are the same bytes, so exact ties may pass. A rule that names
    slices is judged on each of them separately.

    Blocking failures that rest on intervals are corrected for multiple comparisons (Holm, at FALSE_ALARMS); a failure
    that does not survive the correction is inconclusive. The same holds among the slices of an advisory rule. Passes
    need no correction: all of them must pass. elsewhere: how many further blocking comparisons there will be, so that a
    failure here still holds among all of them. metrics: what is declared of the metrics, for the class of a failure.
    """
    cases = [
        case
        for gate in gates
        for spec in gate.rules
        if not spec.left_out
        for case in _list_cases(gate.name, spec, measurements, skipped, slices, identical)
    ]
    return tuple(_verdict(case, metrics) for case in _correct_family(cases, elsewhere))


def rejudge(run: Run, gates: Sequence[GateSpec]) -> Run:
    """The run judged by other gates. Verdicts of the harness itself stay: no gate can override them."""
    broken = tuple(verdict for verdict in run.verdicts if verdict.gate == OWN_GATE)
    identical = run.reference.same_as(run.variant)
    left_out = LeftOut.of_run(
        run.asked, [*(each.name for each in run.metrics), *(each.name for each in run.measurements)]
    )
    gates = [left_out.mark(gate) for gate in gates]
    notes = [note for note in run.notes if note.topic != TOPIC]
    notes = [*note_left_out(gates, left_out.suites), *notes]
    run = run.model_copy(update={"notes": tuple(notes), "warnings": sum(note.level == "warn" for note in notes)})
    verdicts = judge(gates, run.measurements, run.skipped, identical, run.slices, metrics=run.metrics)
    asked = run.asked | {"gates": [gate.resolve() for gate in gates]}
    return conclude(run.model_copy(update={"asked": asked}), verdicts + broken)


def conclude(run: Run, verdicts: tuple[Verdict, ...]) -> Run:
    """The run with these verdicts, and with what they come to."""
    return run.model_copy(update={"verdicts": verdicts, **conclusion(verdicts)._asdict()})


def _list_cases(
    gate: str,
    spec: RuleSpec,
    measurements: Sequence[Measurement],
    skipped: Sequence[Skipped],
    slices: Sequence[Slice],
    identical: bool,
) -> list[_Case]:
    """The cases of one rule: on all documents, or on every slice that it names. A missing slice is an error."""
    if (named := _rule(spec).slices) is None:
        return _cases(gate, spec, measurements, skipped, identical)
    label, _, pattern = named.partition("=")
    of_label = [part for part in slices if part.label == label]
    cases = []
    for part in of_label:
        if matches(pattern or "*", part.value):
            found = _cases(gate, spec, part.measurements, part.skipped, identical)
            cases += [replace(case, labels=case.labels | part.name) for case in found]
    if not cases:
        metric = _rule(spec).metric
        known = ", ".join(dict.fromkeys(part.value for part in of_label)) or "none at all"
        because = (
            f"{metric} was not measured on any slice {named}; slices measured by {label}: {known} (a run measures the "
            f"slices that its own gates name, for metrics per token or layer, if the documents have a {label})"
        )
        cases = [_Case(gate, spec, metric, {}, _error("nothing", because, "usage"))]
    return cases


def _cases(
    gate: str,
    spec: RuleSpec,
    measurements: Sequence[Measurement],
    skipped: Sequence[Skipped],
    identical: bool,
) -> list[_Case]:
    pattern = _rule(spec).metric
    matched = [measurement for measurement in measurements if matches(pattern, measurement.name)]
    lost = [entry for entry in skipped if could_match(pattern, entry.measure)]
    cases = [_Case(gate, spec, m.name, m.labels, _decide(_rule(spec), m, identical)) for m in matched]
    cases += [
        _Case(
            gate,
            spec,
            pattern if entry.cut_short and "*" in entry.measure else entry.measure,
            entry.labels,
            _miss(entry),
            entry.unsupported,
        )
        for entry in lost
    ]
    if not cases:
        close = nearest(pattern, dict.fromkeys(measurement.name for measurement in measurements))
        hint = f"; did you mean {close}?" if close else ""
        because = f"no measured metric is called {pattern}{hint}"
        cases = [_Case(gate, spec, pattern, {}, _error("nothing", because, "usage"))]
    return cases


def _rule(spec: RuleSpec) -> Rule:
    if not isinstance(spec.rule, Rule):
        raise TypeError(f"{spec.where}: {spec.rule!r} is not a rule")
    return spec.rule


def _decide(rule: Rule, measurement: Measurement, identical: bool) -> Decision:
    if measurement.non_finite == "reference":
        because = f"{measurement.name}: {measurement.method}; without a reference value it cannot be judged"
        return _error("non-finite", because, "numerics")
    if measurement.non_finite == "variant":
        because = f"{measurement.name}: {measurement.method}"
        return Decision("fail", "a finite number", "non-finite", None, because, failure="numerics")
    if measurement.not_judged:
        return _error("a number that must not be judged", f"{measurement.name}: {measurement.not_judged}")
    if measurement.n == 0:
        return _error("nothing", f"{measurement.name} has no observations")
    if contradiction := _contradiction(measurement):
        return _error("a contradiction", f"{measurement.name}: {contradiction}; repair the measure that gave it")
    try:
        with guard(f"the rule {_name(rule)}"):
            decision = _check_decision(
                apply_conditions(rule, measurement, _check_decision(rule.judge(measurement, identical)))
            )
            if measurement.disturbed and decision.status != "error":
                decision = decision.withhold(
                    f"{measurement.disturbed} while it was measured, so it decides nothing; run it again on a quiet "
                    "machine, with a new folder (--out)"
                )
            return decision
    except Exception as error:  # noqa: BLE001 - a rule that breaks must not hide what the others say
        because = f"the rule {_name(rule)} failed on {measurement.name}: {type(error).__name__}: {error}"
        return _error("a defect of the rule", because, "usage")


def _contradiction(m: Measurement) -> str:
    """What a measurement says that no measurement can; empty if nothing.

    A record refuses numbers that are not finite when it is made, but not in a copy.
    """
    ends = (m.low, m.high, m.variant_low, m.variant_high)
    for number in (m.neutral, m.reference, m.variant, m.change, *ends):
        if number is not None and not abs(number) <= LARGEST:
            return f"found the number {number}, expected numbers of at most {LARGEST:g}, or non_finite with the side"
    if m.basis == "counted" and not {m.low, m.high} <= {None, m.change}:
        return f"counted, yet with the interval [{m.low}, {m.high}] around {m.change}; what is counted has none"
    if m.basis == "counted" and not {m.variant_low, m.variant_high} <= {None, m.variant}:
        return f"counted, yet with the interval [{m.variant_low}, {m.variant_high}] around {m.variant}"
    return ""


def _check_decision(decision: object) -> Decision:
    """The decision of a rule, if it is valid. Raises TypeError or ValueError saying what is wrong."""
    if not isinstance(decision, Decision):
        raise TypeError(f"found {decision!r}, expected a Decision")
    if decision.status not in EXIT_CODES:
        raise ValueError(f"found the status {decision.status!r}, expected one of {', '.join(EXIT_CODES)}")
    if not all(
        isinstance(text, str) for text in (decision.expected, decision.found, decision.because, decision.reason)
    ):
        raise TypeError(f"found {decision!r}, expected a Decision with texts in expected, found, because and reason")
    for number in (decision.margin, decision.p_value):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"found {number} in the decision, expected a finite number or none")
    return decision


def _correct_family(cases: list[_Case], elsewhere: int) -> list[_Case]:
    """Failures that do not survive the Holm correction among their family become inconclusive."""
    families: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        rule = _rule(case.spec)
        if case.decision.p_value is not None and (rule.level == "block" or rule.slices):
            what = "blocking comparisons" if rule.level == "block" else f"slices of {case.spec.where}"
            families.setdefault(what, []).append(index)
    together = list(cases)
    for what, members in families.items():
        others = [1.0] * (elsewhere if what == "blocking comparisons" else 0)
        held = holm([cases[index].decision.p_value or 0.0 for index in members] + others, FALSE_ALARMS)
        for index, holds in zip(members, held, strict=False):
            decision = cases[index].decision
            if decision.status == "fail" and not holds:
                undecided = decision.withhold(
                    f"on its own it would fail, but not among {len(members)} {what} "
                    f"(p = {decision.p_value:.3g}, Holm correction)"
                )
                together[index] = replace(cases[index], decision=undecided)
    return together


def _is_excused(rule: Rule, decision: Decision) -> bool:
    """Whether ``on_inconclusive: warn`` makes a blocking rule advisory.

    It excuses only an interval that contains the limit: not too few documents, a missing interval, or a failure that
    only the Holm correction made inconclusive.
    """
    crosses = decision.status == "inconclusive" and decision.p_value is not None
    return crosses and rule.level == "block" and rule.on_inconclusive == "warn"


def _verdict(case: _Case, metrics: Sequence[Metric]) -> Verdict:
    rule, decision = _rule(case.spec), case.decision
    level = rule.level
    if _is_excused(rule, decision):
        level, decision = "warn", decision.withhold("advisory, because of on_inconclusive: warn")
    if case.unsupported and rule.level == "block" and rule.on_unsupported == "warn":
        level, decision = "warn", decision.withhold("advisory, because of on_unsupported: warn", "error")
    return Verdict(
        gate=case.gate,
        rule=_name(rule),
        metric=case.metric,
        labels=case.labels,
        status=decision.status,
        expected=decision.expected,
        found=decision.found,
        margin=decision.margin,
        because=decision.because,
        reason=decision.reason,
        level=level,
        where=case.spec.where,
        why=rule.why,
        failure=None if decision.status == "pass" else decision.failure or _concern(case.metric, metrics),
    )


def _concern(name: str, metrics: Sequence[Metric]) -> FailureClass:
    """The class of failure that the metric declares. A measure that was skipped whole stands as the pattern NAME.*"""
    if (metric := find_metric(name, metrics)) is not None:
        return metric.concern
    return next((metric.concern for metric in metrics if could_match(name, metric.name)), "quality")


def _miss(entry: Skipped) -> Decision:
    """A metric that was not measured: an error, unless a failure made it needless. That cannot pass by any gate."""
    missed = _error("not measured", f"{entry.measure}: {entry.reason}", entry.failure)
    return replace(missed, status="inconclusive") if entry.cut_short else missed


def _error(found: str, because: str, failure: FailureClass | None = None) -> Decision:
    return Decision("error", "a measured metric", found, None, because, failure=failure)


def _name(rule: Rule) -> str:
    return rule.kind or type(rule).__name__
