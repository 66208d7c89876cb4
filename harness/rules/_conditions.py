"""The conditions that a gate may add to any rule beside its limit: min_documents, implausible_gain, above_noise."""

from __future__ import annotations

from dataclasses import replace

from harness.records import Measurement, NoiseFloor
from harness.records.units import unit_of
from harness.rules import Decision, Facts, Rule, bound_of
from harness.rules._compare import mistake
from harness.rules._digits import show
from harness.rules._numbers import is_exact


def apply_conditions(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    """``decision`` where the conditions of ``rule`` hold, else what they make of it: never a pass.

    Too few documents decide nothing, whatever their numbers say; numbers that were counted, not sampled, need none.
    An implausible gain is an error in place of a pass or of indecision (a failure stays one): a variant far better
    than its reference was mostly compared with the wrong model, data or prompt. Like a failure, it must hold for
    the whole interval where one decides, so that chance among many metrics does not look like it.
    ``above_noise`` makes both count only if the effect is so many noise floors; without a floor nothing is decided
    then. Noise hides damage as much as it feigns it, so wherever a floor is known, a pass must leave at least one to
    the limit.
    """
    if decision.status == "error":
        return decision
    if why := explain_missing_floor(rule, measurement):
        return mistake(measurement, decision.expected, why)
    decision = _require_documents(rule, measurement, decision)
    decision = _refuse_implausible_gain(rule, measurement, decision)
    return _require_effect_above_noise(rule, measurement, decision)


def explain_missing_floor(rule: Rule, measurement: Measurement) -> str:
    """Why ``above_noise`` cannot be applied to this measurement; empty if it can, or is not set."""
    if rule.above_noise is None or (measurement.floor is not None and measurement.change is not None):
        return ""
    if measurement.change is None:
        return f"{measurement.name} has no comparison with the reference, and so no noise floor; remove above_noise"
    return (
        f"the noise floor of {measurement.name} is unknown, so above_noise cannot be applied; add noise_floor to the "
        "suite and run again (notes of the run say why a floor is missing), or remove above_noise"
    )


def explain_misfit(rule: Rule, metric: Facts) -> str:
    """Why ``implausible_gain`` cannot be applied to this metric; empty if it can, or is not set."""
    if rule.implausible_gain is None:
        return ""
    if metric.better == "neither":
        return f"{metric.name} has no better direction, so there is no gain; remove implausible_gain"
    if "change" not in metric.numbers:
        return f"{metric.name} has no comparison with the reference; remove implausible_gain"
    if rule.implausible_gain >= 1 and unit_of(metric.unit).fraction:
        gain = show(rule.implausible_gain)[0]
        return f"an implausible_gain of {gain} on {metric.name} is never reached; write 0.05 for 5 %"
    return ""


def _require_documents(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    least = rule.min_documents
    if least is None or measurement.clusters >= least or is_exact(measurement):
        return decision
    return decision.withhold(f"n = {measurement.clusters} documents, expected at least {least} (min_documents)")


def _refuse_implausible_gain(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    limit = rule.implausible_gain
    if limit is None or decision.status == "fail":
        return decision
    if why := explain_misfit(rule, Facts.from_measurement(measurement)):
        return mistake(measurement, decision.expected, why)
    gain = _least_gain(rule, measurement)
    if gain <= limit:
        return decision
    shown, most = show(gain, limit)
    refused = decision.withhold(
        f"the improvement over the reference is at least {shown}, and more than {most} is implausible "
        "(implausible_gain): check that both sides are the intended model, data and prompt",
        "error",
    )
    if noise := _explain_noise(rule, measurement):
        return refused.withhold(noise)
    return replace(refused, margin=None)


def _require_effect_above_noise(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    floor = measurement.floor
    if floor is None:
        return decision
    if decision.status == "fail" and (noise := _explain_noise(rule, measurement)):
        return decision.withhold(noise)
    if decision.status == "pass" and floor.value > 0:
        room = _floor_as_margin(rule, measurement, floor)
        if decision.margin is None or decision.margin <= room:
            near = (
                f"the limit is within one noise floor ({floor.value:.3g}, {floor.condition}), so noise may hide a "
                "degradation beyond it"
            )
            return decision.withhold(near)
    return decision


def _explain_noise(rule: Rule, measurement: Measurement) -> str:
    """Why the effect may be noise; empty if it is as large as ``above_noise`` asks, or that is not set."""
    floor, effect = measurement.floor, measurement.effect
    if rule.above_noise is None or floor is None or effect is None or effect >= rule.above_noise * floor.value:
        return ""
    return (
        f"the effect is {effect / floor.value:.3g} × the noise floor of {floor.value:.3g} ({floor.condition}), and "
        f"less than {rule.above_noise:g} × may be noise (above_noise)"
    )


def _floor_as_margin(rule: Rule, measurement: Measurement, floor: NoiseFloor) -> float:
    """What one noise floor takes from the margin, in units of the number that the rule compares."""
    is_ratio = bound_of(rule, Facts.from_measurement(measurement)).number == "ratio"
    return floor.value / measurement.reference if is_ratio and measurement.reference else floor.value


def _least_gain(rule: Rule, measurement: Measurement) -> float:
    """The improvement over an equal variant: by the end of the interval nearer to equal, or by the point estimate."""
    ends = measurement.low, measurement.high
    change = measurement.change or 0.0
    if rule.decide == "interval" and ends[0] is not None and ends[1] is not None:
        change = ends[0] if measurement.better == "higher" else ends[1]
    return change - measurement.neutral if measurement.better == "higher" else measurement.neutral - change
