"""What a gate file may ask of any rule beside its limit: documents enough, gains that can be true, and no noise."""

from __future__ import annotations

from dataclasses import replace

from harness.records import Measurement
from harness.rules import Decision, Rule
from harness.rules._decision import is_exact, mistake, show


def demanded(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    """``decision`` where the demands of ``rule`` are met, else what they make of it: never a pass.

    Too few documents decide nothing, whatever their numbers say; numbers that were counted, not sampled, need none.
    An implausible gain is an error in place of a pass or of indecision (a failure stays one): a variant far better
    than its reference was mostly compared with the wrong model, data or prompt. Like a failure, it must hold for
    the whole interval where one decides, so that chance among many metrics does not look like it.
    ``above_noise`` makes both count only if the effect is so many noise floors. Noise hides as much as it feigns, so
    a pass must then leave at least one floor to the limit. Without a floor nothing is decided.
    """
    if decision.status == "error":
        return decision
    if why := without_floor(rule, measurement):
        return mistake(measurement, decision.expected, why)
    return _above_noise(rule, measurement, _plausible(rule, measurement, _documented(rule, measurement, decision)))


def without_floor(rule: Rule, measurement: Measurement) -> str:
    """Why ``above_noise`` cannot be asked of this measurement; empty if it can, or is not."""
    if rule.above_noise is None or (measurement.floor is not None and measurement.change is not None):
        return ""
    if measurement.change is None:
        return f"{measurement.name} has no comparison with the reference, so it is above no noise; remove above_noise"
    return (
        f"the noise floor of {measurement.name} is not known, so nobody can tell what is above it (above_noise); name "
        "noise_floor in the suite and run again (notes of the run say why a floor is missing), or remove above_noise"
    )


def _documented(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    wanted = rule.min_documents
    if wanted is None or measurement.clusters >= wanted or is_exact(measurement):
        return decision
    rests = f"that rests on {measurement.clusters} documents, and at least {wanted} are wanted (min_documents)"
    return _undecided(decision, rests)


def _plausible(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    limit = rule.implausible_gain
    if limit is None or decision.status == "fail":
        return decision
    if why := misfit(rule, measurement):
        return mistake(measurement, decision.expected, why)
    gain = _sure_gain(rule, measurement)
    if gain <= limit:
        return decision
    shown, bound = show(gain, limit)
    because = (
        f"{decision.because}; it is better than the reference by at least {shown}, more than the {bound} that "
        "could be true (implausible_gain): look whether both sides are what they should be"
    )
    if noise := _within_noise(rule, measurement):
        return _undecided(replace(decision, because=because), noise)
    return Decision("error", decision.expected, decision.found, None, because)


def _above_noise(rule: Rule, measurement: Measurement, decision: Decision) -> Decision:
    floor = measurement.floor
    if rule.above_noise is None or floor is None:
        return decision
    if decision.status == "fail" and (noise := _within_noise(rule, measurement)):
        return _undecided(decision, noise)
    if decision.status == "pass" and floor.value > 0:
        room = _room_for_noise(rule, measurement, floor.value)
        if room is None or decision.margin is None or decision.margin <= room:
            near = f"the limit is within one noise floor ({floor.value:.3g}, {floor.condition}), which may hide damage"
            return _undecided(decision, near)
    return decision


def _within_noise(rule: Rule, measurement: Measurement) -> str:
    """Why the effect may be noise; empty if it is as large as ``above_noise`` asks, or that is not asked."""
    floor, effect = measurement.floor, measurement.effect
    if rule.above_noise is None or floor is None or effect is None or effect >= rule.above_noise * floor.value:
        return ""
    return (
        f"but that is {effect / floor.value:.3g} times the noise floor of {floor.value:.3g} ({floor.condition}), and "
        f"less than {rule.above_noise:g} times may be noise (above_noise)"
    )


def _room_for_noise(rule: Rule, measurement: Measurement, floor: float) -> float | None:
    """What one noise floor takes from a margin, in the units in which the rule compares; None where it has none.

    Found by trying: the rule is asked about the number alone, as it is and worse by the floor.
    """
    alone = rule.model_copy(update={"decide": "point"})
    worse = {"lower": (floor,), "higher": (-floor,), "neither": (floor, -floor)}[measurement.better]
    margins = [alone.judge(_moved(measurement, by), False).margin for by in (0.0, *worse)]
    known = [margin for margin in margins if margin is not None]
    return max(known[0] - margin for margin in known[1:]) if len(known) == len(margins) else None


def _moved(measurement: Measurement, by: float) -> Measurement:
    """The measurement as if the variant, and so the change, were another by so much."""
    names = ("variant", "change", "low", "high", "variant_low", "variant_high")
    values = {name: getattr(measurement, name) for name in names}
    return measurement.model_copy(update={name: value + by for name, value in values.items() if value is not None})


def _undecided(decision: Decision, why: str) -> Decision:
    """Without its p-value it is no interval that merely reaches over the limit: nothing excuses it."""
    because = f"{decision.because}; {why}"
    return replace(decision, status="inconclusive", because=because, p_value=None)


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
