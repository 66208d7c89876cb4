"""Wrong passes, simulated: hand-made measurements of every metric there is, judged by every rule that fits it.

The limits and what lies beyond them are computed here once more, from the documentation of the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.judge import judge
from harness.measures import load_metrics
from harness.planning.specs import GateSpec, RuleSpec
from harness.plugins import names
from harness.records import Measurement, Metric, NoiseFloor, Skipped, Slice
from harness.records.conclusion import overall
from harness.records.metric import Better
from harness.rules import Facts, Rule, bound_of
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.rules.retains import Retains

METRICS = {metric.name: metric for metric in load_metrics()}
REFERENCE = 0.4
MARGIN, LIMIT, SHARE = 0.02, 0.5, 0.9


@dataclass(frozen=True)
class World:
    """A rule on a metric. number: what the rule compares; sign: 1 if that must stay below the limit, −1 above."""

    rule: Rule
    metric: Metric
    number: str
    limit: float
    sign: int

    def measure(self, truth: float, before: float = 0.01, after: float = 0.01, **fields: Any) -> Measurement:
        """A measurement whose intervals reach from ``before`` below to ``after`` above the truth, in their middle."""
        m = self.metric
        variant = {"variant": truth, "ratio": truth * REFERENCE}.get(self.number, REFERENCE + 0.01)
        change = truth if self.number == "change" else variant - REFERENCE
        middle = (after - before) / 2
        made: dict[str, Any] = {
            "name": m.name.replace("*", "quiz"), "unit": m.unit, "better": m.better, "neutral": m.neutral,
            "infinite_neutral": m.infinite_neutral, "basis": "sampled", "method": "mean", "n": 5000, "clusters": 200,
            "change": inside(change, middle, before, after), "low": change - before, "high": change + after,
        }  # fmt: skip
        if m.sides:
            made |= {
                "reference": inside(variant, middle, before, after) - inside(change, middle, before, after),
                "variant": inside(variant, middle, before, after),
                "variant_low": variant - before, "variant_high": variant + after,
            }  # fmt: skip
            if self.number != "ratio":
                made["reference"] = REFERENCE
        return Measurement.model_validate(made | fields)

    @property
    def good(self) -> Measurement:
        """Well within the limit, and measured well."""
        return self.measure(self.limit - self.sign * 0.1, 0.001, 0.001)

    def named(self, name: str) -> Measurement:
        return self.good.model_copy(update={"name": name})


def inside(value: float, shift: float, before: float, after: float) -> float:
    return min(max(value + shift, value - before), value + after)


@cache
def worlds(kind: str) -> list[World]:
    """Every metric with a rule of this kind, once for each number that the rule can compare."""
    found = [WORLDS[kind](metric) for metric in METRICS.values()]
    return [world for several in found for world in several if fits(world)]


def fits(world: World) -> bool:
    return not bound_of(world.rule, Facts.from_measurement(world.good)).misfit


def signs(better: Better) -> int:
    return -1 if better == "higher" else 1


def compared(metric: Metric) -> list[tuple[str, str, float, float]]:
    """What ``of`` can be: its name, the number it means, where that is neutral, and how far its limits are."""
    ratio = "change" if metric.neutral == 1.0 else "ratio"
    found = [
        ("variant", "variant" if metric.sides and metric.unit != "ratio" else "change", 0.0, LIMIT),
        ("change", "change", metric.neutral, MARGIN),
    ]
    return [*found, ("reference", ratio, 1.0, 0.1)] if metric.sides or metric.neutral == 1.0 else found


def limited(make: type[AtMost] | type[AtLeast], sign: int) -> Callable[[Metric], list[World]]:
    def of(metric: Metric) -> list[World]:
        made = []
        for name, number, neutral, room in compared(metric):
            limit = room if name == "variant" else neutral + sign * room
            rule = make(metric=metric.name, limit=limit, of=name, why="w")  # type: ignore[arg-type]
            made.append(World(rule, metric, number, limit, sign))
        return made

    return of


def not_worse(metric: Metric) -> list[World]:
    sign = signs(metric.better)
    rule = NotWorse(metric=metric.name, margin=MARGIN, why="w")
    return [World(rule, metric, "change", metric.neutral + sign * MARGIN, sign)]


def retains(metric: Metric) -> list[World]:
    sign = signs(metric.better)
    rule = Retains(metric=metric.name, share=SHARE, why="w")
    number = "change" if metric.neutral == 1.0 else "ratio"
    return [World(rule, metric, number, SHARE if sign < 0 else 1 / SHARE, sign)]


WORLDS: dict[str, Callable[[Metric], list[World]]] = {
    "at_least": limited(AtLeast, -1), "at_most": limited(AtMost, 1), "not_worse": not_worse, "retains": retains,
}  # fmt: skip
every_rule = pytest.mark.parametrize("kind", WORLDS)


def verdict(
    rule: Rule, found: Sequence[Measurement], skipped: Sequence[Skipped] = (), slices: Sequence[Slice] = ()
) -> str:
    gate = GateSpec(name="g", source="g", rules=(RuleSpec(rule=rule, where="g:1"),))
    return overall(judge([gate], found, skipped, identical=False, slices=slices))[0]


def with_(rule: Rule, **fields: Any) -> Rule:
    return type(rule).model_validate(rule.model_dump() | fields)


def test_every_rule_there_is_and_every_family_of_metrics_are_simulated() -> None:
    assert set(WORLDS) == set(names(Rule))
    simulated = {world.metric.name for kind in WORLDS for world in worlds(kind)}
    assert simulated == set(METRICS)


@every_rule
def test_what_is_good_and_measured_well_passes(kind: str) -> None:
    """Else the rest of this file says nothing."""
    assert worlds(kind)
    for world in worlds(kind):
        assert verdict(world.rule, [world.good]) == "pass", world
        assert verdict(with_(world.rule, decide="point"), [world.good]) == "pass", world


# The truth is at the limit or beyond

excesses = st.one_of(st.just(0.0), st.floats(1e-9, 0.3))
ends = st.one_of(st.just(0.0), st.floats(0, 0.3))


@every_rule
@given(draw=st.data(), excess=excesses, before=ends, after=ends, others=st.integers(0, 3))
@settings(max_examples=300)
def test_an_interval_that_holds_a_truth_at_or_beyond_the_limit_never_passes(
    kind: str, draw: st.DataObject, excess: float, before: float, after: float, others: int
) -> None:
    world = draw.draw(st.sampled_from(worlds(kind)))
    if world.number == "ratio":
        excess = max(excess, 1e-9)  # of a quotient, a tie is rounded
    bad = world.measure(world.limit + world.sign * excess, before, after)
    assume(bad.reference is None or bad.reference > 0.05)
    found = [world.good] * others
    found.insert(draw.draw(st.integers(0, others)), bad)
    assert verdict(world.rule, found) != "pass"


@every_rule
@given(draw=st.data(), excess=excesses)
@settings(max_examples=150)
def test_a_point_estimate_at_or_beyond_the_limit_never_passes(kind: str, draw: st.DataObject, excess: float) -> None:
    world = draw.draw(st.sampled_from(worlds(kind)))
    if world.number == "ratio":
        excess = max(excess, 1e-9)
    bad = world.measure(world.limit + world.sign * excess)
    assert verdict(with_(world.rule, decide="point"), [world.good, bad]) != "pass"


@every_rule
@given(draw=st.data(), excess=st.floats(1e-9, 0.3))
@settings(max_examples=150)
def test_a_counted_number_beyond_the_limit_never_passes(kind: str, draw: st.DataObject, excess: float) -> None:
    world = draw.draw(st.sampled_from(worlds(kind)))
    bad = world.measure(world.limit + world.sign * excess, 0.0, 0.0, basis="counted")
    good = world.measure(world.limit - world.sign * excess, 0.0, 0.0, basis="counted")
    assert verdict(world.rule, [good]) == "pass"
    assert verdict(world.rule, [good, bad]) == "fail"


# Measurements that are no evidence


def without(entry: Measurement, *numbers: str) -> Measurement:
    return entry.model_copy(update=dict.fromkeys(numbers))


def nothing(entry: Measurement, side: str) -> Measurement:
    numbers = ("reference", "variant", "change", "low", "high", "variant_low", "variant_high")
    return without(entry, *numbers).model_copy(update={"non_finite": side})


def shrunk(entry: Measurement) -> Measurement:
    """No variance at all, though sampled."""
    ends: dict[str, Any] = {"low": entry.change, "high": entry.change}
    if entry.variant is not None:
        ends |= {"variant_low": entry.variant, "variant_high": entry.variant}
    return entry.model_copy(update=ends)


FAULTS: dict[str, Callable[[Measurement], Measurement]] = {
    "zero variance": shrunk,
    "one cluster": lambda m: m.model_copy(update={"clusters": 1}),
    "no cluster": lambda m: m.model_copy(update={"clusters": 0}),
    "n = 1": lambda m: m.model_copy(update={"n": 1, "clusters": 1}),
    "n = 0": lambda m: m.model_copy(update={"n": 0, "clusters": 0}),
    "no interval": lambda m: without(m, "low", "high", "variant_low", "variant_high"),
    "counted, with an interval": lambda m: m.model_copy(update={"basis": "counted"}),
    "not finite on the variant": lambda m: nothing(m, "variant"),
    "not finite on the reference": lambda m: nothing(m, "reference"),
    "not to be judged": lambda m: m.model_copy(update={"not_judged": "a simulated kernel"}),
}
every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@every_rule
@every_fault
def test_a_number_that_is_no_evidence_never_passes(kind: str, fault: Callable[[Measurement], Measurement]) -> None:
    for world in worlds(kind):
        assert verdict(world.rule, [fault(world.good)]) != "pass", world
        assert verdict(world.rule, [world.good, fault(world.good), world.good]) != "pass", world
        assert verdict(with_(world.rule, on_inconclusive="warn"), [world.good, fault(world.good)]) != "pass", world


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_never_passes_even_past_the_record(kind: str, bad: float) -> None:
    for world in worlds(kind):
        for field in ("reference", "variant", "change", "low", "high", "variant_low", "variant_high", "neutral"):
            if getattr(world.good, field) is not None:
                slipped = world.good.model_copy(update={field: bad})
                assert verdict(world.rule, [slipped]) != "pass", (world, field)
                assert verdict(with_(world.rule, decide="point"), [slipped, world.good]) != "pass", (world, field)


@every_rule
def test_the_other_direction_never_passes_by_a_limit(kind: str) -> None:
    """A measurement whose better side is the other one: a limit on the wrong side is refused, a margin is not met."""
    for world in worlds(kind):
        if world.metric.better == "neither":
            continue
        turned: Better = "higher" if world.metric.better == "lower" else "lower"
        beyond = world.measure(world.limit + world.sign * 0.1, 0.001, 0.001)
        assert verdict(world.rule, [beyond]) == "fail", world
        if kind in ("at_most", "at_least"):
            assert verdict(world.rule, [world.good.model_copy(update={"better": turned})]) == "error", world
        mirrored = beyond.model_copy(update={"better": turned})
        if kind == "not_worse":
            assert verdict(world.rule, [mirrored, world.good]) == "pass", "which is why a measure must not turn it"


# Rules that find nothing, or not everything, to judge


@every_rule
def test_a_pattern_that_matches_nothing_never_passes(kind: str) -> None:
    for world in worlds(kind):
        for pattern in ("nothing.*", f"{world.good.name}x", f"x*{world.good.name}", world.good.name.upper()):
            assert verdict(with_(world.rule, metric=pattern), [world.good]) == "error", (world, pattern)
        assert verdict(world.rule, []) == "error"


@every_rule
def test_what_was_skipped_beside_what_was_measured_never_passes(kind: str) -> None:
    for world in worlds(kind):
        for lost in (world.good.name, f"{world.good.name.partition('.')[0]}.*", "*"):
            assert verdict(world.rule, [world.good], [Skipped(measure=lost, reason="not supported")]) == "error", world


@every_rule
def test_a_metric_that_exists_on_one_slice_only_never_passes(kind: str) -> None:
    def part(value: str, *found: Measurement, skipped: Sequence[Skipped] = ()) -> Slice:
        return Slice(suite="s", label="kind", value=value, documents=9, measurements=found, skipped=tuple(skipped))

    for world in worlds(kind)[::7]:
        good = world.good
        everywhere = with_(world.rule, slices="kind")
        lost = Skipped(measure=good.name, reason="no document")
        assert verdict(everywhere, [], slices=[part("sums", good), part("prose", good)]) == "pass"
        assert verdict(everywhere, [good], slices=[part("sums", good), part("prose")]) == "error"
        assert verdict(everywhere, [good], slices=[part("sums", good), part("prose", skipped=[lost])]) == "error"
        assert verdict(everywhere, [good]) == "error", "measured as a whole, and on no slice"
        assert verdict(world.rule, [], slices=[part("sums", good)]) == "error", (
            "measured on a slice, and not as a whole"
        )
        assert verdict(with_(world.rule, slices="kind=poem*"), [good], slices=[part("sums", good)]) == "error"
        bad = world.measure(world.limit + world.sign * 0.1, 0.001, 0.001)
        assert verdict(everywhere, [good], slices=[part("sums", good), part("prose", bad)]) == "fail"


# Conditions


@every_rule
@given(draw=st.data(), clusters=st.integers(0, 99), least=st.integers(100, 1000))
@settings(max_examples=60)
def test_fewer_documents_than_asked_never_pass(kind: str, draw: st.DataObject, clusters: int, least: int) -> None:
    world = draw.draw(st.sampled_from(worlds(kind)))
    few = world.good.model_copy(update={"clusters": clusters})
    for decide in ("interval", "point"):
        rule = with_(world.rule, min_documents=least, decide=decide, on_inconclusive="warn")
        assert verdict(rule, [world.good.model_copy(update={"clusters": least}), few]) != "pass"


@every_rule
def test_an_effect_without_a_noise_floor_or_within_one_never_passes(kind: str) -> None:
    for world in worlds(kind):
        rule = with_(world.rule, above_noise=2.0)
        assert verdict(rule, [world.good]) == "error", world
        wide = world.good.model_copy(update={"floor": NoiseFloor(value=1.0, condition="batch_size", documents=9)})
        assert verdict(rule, [wide]) != "pass", world
        narrow = world.good.model_copy(update={"floor": NoiseFloor(value=1e-6, condition="batch_size", documents=9)})
        assert verdict(rule, [narrow]) == "pass", world


@every_rule
def test_a_gain_too_good_to_be_true_never_passes(kind: str) -> None:
    for world in worlds(kind):
        if world.metric.better == "neither" or world.metric.infinite_neutral or world.number != "change":
            continue
        rule = with_(world.rule, implausible_gain=0.05)
        far = world.measure(world.metric.neutral - signs(world.metric.better) * 0.3, 0.001, 0.001)
        assert verdict(rule, [far]) != "pass", world
