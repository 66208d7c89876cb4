"""What a gate file may ask of any rule beside its limit: enough documents, and no gain that cannot be true."""

from __future__ import annotations

from dataclasses import replace

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import is_exact, mistake, show


def demanded(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    """``decision`` where the demands of ``rule`` are met, else what they make of it.

    Too few documents decide nothing, whatever their numbers say; numbers that were counted, not sampled, need none.
    An implausible gain is an error in place of a pass or of indecision (a failure stays one): a variant far better
    than its reference was mostly compared with the wrong model, data or prompt. Like a failure, it must hold for
    the whole interval where one decides, so that chance among many metrics does not look like it.
    """
    if decision.status == "error":
        return decision
    wanted = rule.min_documents
    if wanted is not None and measurement.clusters < wanted and not is_exact(measurement):
        because = (
            f"{decision.because}; that rests on {measurement.clusters} documents, and at least {wanted} are wanted "
            "(min_documents)"
        )
        decision = replace(decision, status="inconclusive", because=because, p_value=None)
    limit = rule.implausible_gain
    if limit is None or decision.status == "fail":
        return decision
    if why := misfit(rule, measurement):
        return mistake(measurement, decision.expected, why)
    gain = _sure_gain(rule, measurement)
    if gain > limit:
        shown, bound = show(gain, limit)
        because = (
            f"{decision.because}; it is better than the reference by at least {shown}, more than the {bound} that "
            "could be true (implausible_gain): look whether both sides are what they should be"
        )
        return Decision("error", decision.expected, decision.found, None, because)
    return decision


def misfit(rule: Rule, measurement: Measurement) -> str:
    """Why ``implausible_gain`` says nothing about this metric; empty if it does, or is not asked for."""
    if rule.implausible_gain is None:
        return ""
    if measurement.better == "neither":
        return f"{measurement.name} has no better direction, so there is no gain; remove implausible_gain"
    if measurement.change is None:
        return f"{measurement.name} has no comparison with the reference; remove implausible_gain"
    if rule.implausible_gain >= 1 and measurement.unit in ("share", "probability", "ratio"):
        return (
            f"an implausible_gain of {show(rule.implausible_gain)[0]} on {measurement.name} is never reached; "
            "write 0.05 for 5 %"
        )
    return ""


def _sure_gain(rule: Rule, measurement: Measurement) -> float:
    """How much better than equal the change is: by the end of its interval that is nearer to equal, or by itself."""
    ends = measurement.low, measurement.high
    change = measurement.change or 0.0
    if rule.decide == "interval" and ends[0] is not None and ends[1] is not None:
        change = ends[0] if measurement.better == "higher" else ends[1]
    return change - measurement.neutral if measurement.better == "higher" else measurement.neutral - change
