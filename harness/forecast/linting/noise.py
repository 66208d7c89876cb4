"""Finds limits within the noise floor: the change of a metric when the reference is measured against itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.forecast.linting.evidence import Evidence
from harness.forecast.linting.findings import Finding, key_of, weight
from harness.forecast.needs import Need
from harness.planning.noise_floor import REMEDY, explain_missing_floor
from harness.planning.specs import RuleSpec
from harness.records import NoiseFloor
from harness.records.patterns import could_match

RESOLUTION = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LOGIT = 64.0
"""Assumed magnitude of a logit whose last bit is the rounding floor, if no run measured one."""


def find_within_noise(index: int, spec: RuleSpec, own: Sequence[Need], evidence: Evidence) -> Iterator[Finding]:
    """Rules with above_noise whose noise floor is not measured, and limits that are not clear of the floor."""
    for need in own:
        if do := _explain_missing_floor(need, evidence):
            what = f"{need.metric}: above_noise without a measured noise floor"
            why = "without its noise floor the rule is an error in every run"
            yield Finding(weight(spec), spec.where, key_of(index, spec, "above_noise"), what, why, do)
        yield from _compare_with_floor(index, spec, need, evidence)


def _compare_with_floor(index: int, spec: RuleSpec, need: Need, evidence: Evidence) -> Iterator[Finding]:
    floor = _floor(need, evidence)
    found, times = need.boundary, need.rule.above_noise or 1.0
    if floor is None or floor.value == 0 or found is None or found.limit is None:
        return
    room = abs(found.limit - found.neutral)
    key, moves = (
        key_of(index, spec, "limit"),
        f"{floor.condition} changes it by {floor.value:.3g} without any degradation",
    )
    if 0 < room <= floor.value:
        what = f"{need.metric}: the limit allows a change of {room:.3g}, which is within the noise floor"
        yield Finding("warning", spec.where, key, what, moves, f"allow several times {floor.value:.3g}")
    elif 0 < room < times * floor.value:
        what = f"{need.metric}: the effective limit is looser: nothing fails below {times * floor.value:.3g}"
        why = f"{moves}, and above_noise requires {times:g} times as much"
        do = f"set a limit that allows {times * floor.value:.3g}, which is what is judged"
        yield Finding("warning", spec.where, key, what, why, do)


def _floor(need: Need, evidence: Evidence) -> NoiseFloor | None:
    """The largest floor of the metric in the run, over all labels; for a maximum of logits also its rounding."""
    measured = evidence.run.measurements if evidence.run else ()
    known = [m.floor for m in measured if m.name == need.metric and m.floor is not None]
    if not known and need.metric == "logits.max_abs_diff" and evidence.dtype in RESOLUTION:
        return NoiseFloor(
            value=RESOLUTION[evidence.dtype] * LOGIT, condition=f"rounding to {evidence.dtype} alone", documents=1
        )
    return max(known, key=lambda floor: floor.value, default=None)


def _explain_missing_floor(need: Need, evidence: Evidence) -> str:
    """What to do if a rule needs a floor that no suite or run measures; empty if it is measured."""
    if need.rule.above_noise is None:
        return ""
    if evidence.suites:
        reasons = [
            explain_missing_floor(suite, measure, metric)
            for suite in evidence.suites
            for measure in suite.measures
            for metric in measure.produces()
            if could_match(need.metric, metric.name)
        ]
        return next(filter(None, reasons), "")
    measurements = [m for m in evidence.run.measurements if m.name == need.metric] if evidence.run else []
    return REMEDY if measurements and all(m.floor is None for m in measurements) else ""
