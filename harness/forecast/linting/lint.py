"""Checks a gate against its own text, the metrics to be measured, and an earlier run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.forecast.linting.chance import guess_passes
from harness.forecast.linting.evidence import Evidence
from harness.forecast.linting.findings import Finding, key_of, weight
from harness.forecast.linting.noise import find_within_noise
from harness.forecast.linting.slices import find_unreachable
from harness.forecast.needs import Need, needs
from harness.measures import load_metrics
from harness.planning.left_out import LeftOut
from harness.planning.specs import GateSpec, RuleSpec
from harness.plugins import nearest
from harness.records import Measurement
from harness.records.patterns import could_match
from harness.statistics import clopper_pearson

FEW = 3
"""With fewer wrong (or right) answers than this, a task is saturated in that direction: the rule of three."""


def lint(gate: GateSpec, evidence: Evidence, needed: bool = True) -> list[Finding]:
    """All defects of a gate, in file order; those of the gate as a whole come first.

    needed: also report rules that cannot pass or are underpowered (``harness plan`` shows those itself).
    """
    gate = LeftOut.of_suites(evidence.suites).mark(gate)
    findings = list(_gate(gate, evidence))
    planned = needs([gate], evidence.metrics, evidence.run) if evidence.metrics else []
    for index, spec in enumerate(gate.rules):
        findings += _find_unknown(index, spec, evidence)
        own = [need for need in planned if need.spec is spec]
        findings += _find_impossible(index, spec, own) if needed else ()
        findings += _limits_nothing(index, spec, own, evidence)
        findings += find_unreachable(index, spec, evidence)
        findings += find_within_noise(index, spec, own, evidence)
        findings += _find_weak(index, spec, own) if needed else ()
    return [*findings, *_tasks(gate, evidence)]


def _gate(gate: GateSpec, evidence: Evidence) -> Iterator[Finding]:
    if all(spec.rule.level == "warn" for spec in gate.rules if not spec.left_out):
        what = f"none of the {len(gate.rules)} rules of the gate {gate.name} blocks"
        why = "a gate with only warnings lets every variant pass"
        yield Finding("error", gate.source, "rules", what, why, "give at least one rule level: block")
    if evidence.self_reference:
        why = "every change is zero by construction, so the gate shows nothing"
        yield Finding("warning", gate.source, "", evidence.self_reference, why, "compare a variant that was changed")


def _find_unknown(index: int, spec: RuleSpec, evidence: Evidence) -> Iterator[Finding]:
    names = [each.metric.name for each in evidence.metrics]
    pattern = spec.rule.metric
    if spec.left_out or any(could_match(pattern, name) for name in names):
        return
    by = "no suite of the plan" if evidence.sized else "no installed measure"
    close = nearest(pattern, [name for name in names if not name.endswith("*")])
    elsewhere = any(could_match(pattern, metric.name) for metric in load_metrics())
    do = "add the measure that yields it to a suite" if elsewhere else "write the name of a measured metric"
    do = f"did you mean {close}?" if close else do
    why = "a rule whose metric is not measured is an error in every run"
    yield Finding("error", spec.where, key_of(index, spec, "metric"), f"{pattern!r}, which {by} measures", why, do)


def _find_impossible(index: int, spec: RuleSpec, own: Sequence[Need]) -> Iterator[Finding]:
    """Rules that can never pass, whatever the variant."""
    for need, more in _group([need for need in own if need.outlook == "never"]):
        why = "it can never pass" + (f" ({need.basis})" if need.basis else "")
        what = f"{_name(need, more)}: {need.said}"
        key = key_of(index, spec, need.cause.value.field)
        yield Finding(weight(spec), spec.where, key, what, why, _remedy(need))


def _limits_nothing(index: int, spec: RuleSpec, own: Sequence[Need], evidence: Evidence) -> Iterator[Finding]:
    """Rules that every variant passes, or even a trivial model."""
    endless = [need for need in own if need.boundary is not None and need.boundary.limit is None]
    for need, more in _group(endless):
        what = f"{_name(need, more)}: every possible value passes"
        do = "set a limit that a damaged model can exceed"
        yield Finding(weight(spec), spec.where, key_of(index, spec, "limit"), what, "the rule cannot fail", do)
    for need, more in _group([need for need in own if guess_passes(need, evidence)]):
        what = f"{_name(need, more)}: the limit is looser than chance"
        why = guess_passes(need, evidence)
        do = "set the limit well on the safe side of chance"
        yield Finding(weight(spec), spec.where, key_of(index, spec, "limit"), what, why, do)


def _find_weak(index: int, spec: RuleSpec, own: Sequence[Need]) -> Iterator[Finding]:
    """Limits tighter than the number of documents can detect."""
    for need, more in _group([need for need in own if need.outlook == "weak"]):
        what = f"{_name(need, more)}: {need.said}"
        why = f"with too few {need.units} the verdict is likely to be inconclusive; {need.basis}"
        yield Finding("warning", spec.where, key_of(index, spec, "limit"), what, why, _remedy(need))


def _remedy(need: Need) -> str:
    if need.cause.value.remedy == "point":
        return "write decide: point, or choose a metric with an interval"
    more = f"measure {need.needed} {need.units}" if need.needed is not None else ""
    wider = f"allow a change of {need.closest:.3g}" if need.closest is not None else ""
    return " or ".join(filter(None, (more, wider))) or "choose another metric or a looser limit"


def _tasks(gate: GateSpec, evidence: Evidence) -> Iterator[Finding]:
    """Tasks on which degradation cannot show: the reference solves all items, none, or no more than by guessing."""
    for found in evidence.run.measurements if evidence.run else ():
        rule = next((spec for spec in gate.rules if could_match(spec.rule.metric, found.name)), None)
        if rule is None or found.unit != "share" or found.reference is None or not _is_score(evidence, found.name):
            continue
        if why := _explain_no_room(found, found.reference, evidence):
            what = f"{found.name}: the reference scores {found.reference:.4g} on {found.n} items"
            do = "use harder items, or a task that the reference solves partly"
            yield Finding("warning", rule.where, key_of(gate.rules.index(rule), rule, "metric"), what, why, do)


def _is_score(evidence: Evidence, name: str) -> bool:
    """Whether the metric is a task score, which guessing reaches too."""
    return any(each.metric.name == name and each.metric.chance == "guess" for each in evidence.metrics)


def _explain_no_room(found: Measurement, score: float, evidence: Evidence) -> str:
    if (1 - score) * found.n < FEW:
        return "the task is saturated: the reference solves it, so a small degradation does not show"
    if score * found.n < FEW:
        return "the reference solves almost nothing, so no degradation can show"
    chance = evidence.chance.get(found.name.split(".")[1])
    around = clopper_pearson(score * found.clusters, found.clusters) if found.clusters else None
    if chance and around and around.low <= chance:
        return f"that is within noise of guessing ({chance:.3g}), so no degradation can show"
    return ""


def _group(found: Sequence[Need]) -> Iterator[tuple[Need, int]]:
    """The need that is farthest from being met, and how many more there are: one finding per rule, not per task."""
    if found:
        yield max(found, key=lambda need: (need.needed or 0) / max(need.documents or 1, 1)), len(found) - 1


def _name(need: Need, more: int) -> str:
    return need.metric + (f" (and {more} more)" if more else "")
