"""What any rule may ask beside its limit, as verdicts show it: documents enough, gains that can be true, warnings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.judge import judge
from harness.planning.gate_file import _explain_misfit
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement, Metric, NoiseFloor, Verdict
from harness.records.conclusion import overall
from harness.rules import Rule
from harness.rules._limits import Of
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse


def ratio(change: float = 1.01, half: float = 0.002, **fields: Any) -> Measurement:
    settings: dict[str, Any] = {
        "name": "perplexity.ratio", "unit": "ratio", "better": "lower", "neutral": 1.0, "change": change,
        "low": change - half, "high": change + half, "n": 5000, "clusters": 50, "basis": "sampled",
        "method": "mean over tokens",
    }  # fmt: skip
    return Measurement(**(settings | fields))


def accuracy(change: float, half: float = 0.02, **fields: Any) -> Measurement:
    return ratio(change, half, name="tasks.a.accuracy", unit="share", better="higher", neutral=0.0, **fields)


def not_worse(margin: float = 0.02, **fields: Any) -> NotWorse:
    return NotWorse(metric="*", why="w", margin=margin, **fields)


def verdict(rule: Rule, found: Measurement, identical: bool = False) -> Verdict:
    return judge([gate(rule)], [found], [], identical)[0]


def gate(*rules: Rule) -> GateSpec:
    specs = tuple(RuleSpec(rule=rule, where=f"g.yaml:{line}") for line, rule in enumerate(rules, start=2))
    return GateSpec(name="g", source="g.yaml", rules=specs)


class TestFewDocuments:
    @pytest.mark.parametrize("change", [0.9, 1.01, 1.02, 1.5])
    def test_decide_nothing(self, change: float) -> None:
        found = verdict(not_worse(min_documents=51), ratio(change))
        assert found.status == "inconclusive"
        assert "n = 50 documents, expected at least 51 (min_documents)" in found.because

    @pytest.mark.parametrize(("change", "status"), [(1.01, "pass"), (1.5, "fail")])
    def test_enough_change_nothing(self, change: float, status: str) -> None:
        assert verdict(not_worse(min_documents=50), ratio(change)).status == status
        assert verdict(not_worse(min_documents=50), ratio(change)) == verdict(not_worse(), ratio(change))

    def test_are_not_excused_by_a_point_or_by_a_warning_on_inconclusive(self) -> None:
        for rule in (not_worse(min_documents=51, decide="point"), not_worse(min_documents=51, on_inconclusive="warn")):
            found = verdict(rule, ratio())
            assert (found.status, found.level) == ("inconclusive", "block")

    def test_counted_numbers_rest_on_none(self) -> None:
        counted = ratio(0.4, 0.0, name="memory.ratio", basis="counted", method="exact count", clusters=0)
        assert verdict(AtMost(metric="*", why="w", limit=0.5, min_documents=50), counted).status == "pass"


class TestInconclusive:
    def test_may_be_only_shown(self) -> None:
        straddling = ratio(1.02)
        blocked = verdict(not_worse(), straddling)
        shown = verdict(not_worse(on_inconclusive="warn"), straddling)
        assert (blocked.status, blocked.level) == ("inconclusive", "block")
        assert (shown.status, shown.level) == ("inconclusive", "warn")
        assert shown.because.endswith("advisory, because of on_inconclusive: warn")

    @pytest.mark.parametrize(
        "found",
        [
            ratio(1.0, low=None, high=None, method="a maximum has no interval"),
            ratio(1.0, low=1.0, high=1.0, method="no interval: all 9 values are exactly equal"),
        ],
    )
    def test_without_evidence_it_blocks_all_the_same(self, found: Measurement) -> None:
        assert verdict(not_worse(on_inconclusive="warn"), found).level == "block"

    def test_failures_block_also_when_many_comparisons_take_them_back(self) -> None:
        rules = [NotWorse(metric=f"m.{i}", why="w", margin=0.02, on_inconclusive="warn") for i in range(20)]
        found = [ratio(1.0225 if i == 0 else 1.0, name=f"m.{i}") for i in range(20)]
        first = judge([gate(*rules)], found, [], False)[0]
        assert (first.status, first.level) == ("inconclusive", "block")
        assert judge([gate(rules[0])], found, [], False)[0].status == "fail"

    def test_with_nothing_else_judged_it_is_no_pass(self) -> None:
        assert overall([verdict(not_worse(on_inconclusive="warn"), ratio(1.02))]) == ("error", 2)


class TestImplausibleGain:
    @pytest.mark.parametrize(
        ("found", "status"),
        [
            (accuracy(0.01), "pass"),
            (accuracy(0.11), "pass"),  # the interval reaches down to 0.09
            (accuracy(0.13), "error"),
            (ratio(0.905), "pass"),  # the interval reaches up to 0.907
            (ratio(0.89), "error"),
            (ratio(1.5), "fail"),
            (accuracy(0.13, half=0.5), "inconclusive"),
        ],
    )
    def test_is_an_error_when_the_whole_interval_shows_it(self, found: Measurement, status: str) -> None:
        judged = verdict(not_worse(0.05, implausible_gain=0.1), found)
        assert judged.status == status
        assert ("(implausible_gain)" in judged.because) == (status == "error")

    def test_of_a_point_is_that_of_the_number(self) -> None:
        rule = not_worse(0.05, implausible_gain=0.1, decide="point")
        assert verdict(rule, accuracy(0.101)).status == "error"
        assert verdict(rule, accuracy(0.099)).status == "pass"

    def test_is_not_asked_for_by_default(self) -> None:
        assert verdict(not_worse(), ratio(0.1)).status == "pass"

    def test_needs_a_direction_and_a_limit_that_can_be_reached(self) -> None:
        gap = ratio(0.0, unit="probability", better="neither", neutral=0.0)
        judged = verdict(AtMost(metric="*", why="w", limit=0.5, implausible_gain=0.1), gap)
        assert judged.status == "error"
        assert "no better direction" in judged.because
        assert "write 0.05 for 5 %" in verdict(not_worse(implausible_gain=5.0), ratio()).because

    def test_a_misfit_is_known_before_anything_is_measured(self) -> None:
        gap = Metric(name="calibration.gap", unit="probability", better="neither")
        rule = AtMost(metric="*", why="w", limit=0.5, implausible_gain=0.1)
        assert "no better direction" in _explain_misfit(rule, gap)
        assert _explain_misfit(AtMost(metric="*", why="w", limit=0.5), gap) == ""


def floored(found: Measurement, value: float) -> Measurement:
    floor = NoiseFloor(value=value, condition="rounding", documents=16)
    return found.model_copy(update={"floor": floor})


class TestAboveNoise:
    @pytest.mark.parametrize(
        ("floor", "status"),
        [(0.0, "fail"), (0.01, "fail"), (0.0999999 / 3, "fail"), (0.034, "inconclusive"), (5.0, "inconclusive")],
    )
    def test_a_failure_counts_from_so_many_floors_on(self, floor: float, status: str) -> None:
        judged = verdict(not_worse(above_noise=3), floored(ratio(1.1), floor))
        assert (judged.status, judged.level) == (status, "block")
        assert ("× the noise floor" in judged.because) == (status == "inconclusive")

    def test_a_breach_in_the_noise_is_not_excused_and_no_pass(self) -> None:
        judged = verdict(not_worse(above_noise=3, on_inconclusive="warn"), floored(ratio(1.1), 1.0))
        assert (judged.status, judged.level) == ("inconclusive", "block")
        assert overall([judged]) == ("inconclusive", 3)

    @pytest.mark.parametrize(
        ("floor", "status"), [(0.0, "pass"), (0.0079, "pass"), (0.0081, "inconclusive"), (0.5, "inconclusive")]
    )
    def test_a_pass_leaves_a_floor_to_the_limit(self, floor: float, status: str) -> None:
        """The interval ends at 1.012, the limit is 1.02."""
        for asked in ({"above_noise": 3}, {}):
            judged = verdict(not_worse(**asked), floored(ratio(1.01), floor))
            assert judged.status == status
            assert ("noise may hide a degradation" in judged.because) == (status == "inconclusive")

    def test_a_share_of_the_reference_is_compared_in_its_own_units(self) -> None:
        """variant / reference is 0.975 of 0.8; a floor of 0.01 is 0.0125 of the share."""
        found = ratio(
            -0.02, 0.001, name="a.score", unit="score", better="higher", neutral=0.0,
            reference=0.8, variant=0.78, variant_low=0.779, variant_high=0.781,
        )  # fmt: skip
        for limit, status in ((0.96, "pass"), (0.968, "inconclusive")):
            rule = AtLeast(metric="*", why="w", limit=limit, of="reference", above_noise=3)
            assert verdict(rule.model_copy(update={"above_noise": None}), found).status == "pass"
            assert verdict(rule, floored(found, 0.01)).status == status

    @pytest.mark.parametrize("change", [0.9, 1.0, 1.01, 1.02, 1.5])
    def test_without_a_floor_it_is_an_error(self, change: float) -> None:
        judged = verdict(not_worse(above_noise=3), ratio(change))
        assert judged.status == "error"
        assert "add noise_floor to the suite" in judged.because

    def test_without_a_comparison_it_is_an_error(self) -> None:
        found = floored(ratio(variant=3.0), 0.1).model_copy(update={"change": None, "low": None, "high": None})
        judged = verdict(AtMost(metric="*", why="w", limit=5.0, above_noise=3, decide="point"), found)
        assert judged.status == "error"

    def test_a_number_that_is_not_finite_fails_whatever_the_floor(self) -> None:
        found = ratio().model_copy(update={"change": None, "low": None, "high": None, "non_finite": "variant"})
        assert verdict(not_worse(above_noise=3), found).status == "fail"

    def test_a_gain_that_may_be_noise_is_no_error_and_no_pass(self) -> None:
        rule = not_worse(0.05, implausible_gain=0.1, above_noise=3)
        assert verdict(rule, floored(accuracy(0.2, 0.01), 0.01)).status == "error"
        judged = verdict(rule, floored(accuracy(0.2, 0.01), 0.07))
        assert judged.status == "inconclusive"
        assert "(implausible_gain)" in judged.because

    def test_the_same_bytes_on_both_sides_pass(self) -> None:
        found = floored(ratio(1.0, 0.0, low=1.0, high=1.0), 1e-7)
        assert verdict(not_worse(above_noise=3), found, identical=True).status == "pass"
        assert verdict(not_worse(1e-8, above_noise=3), found, identical=True).status == "inconclusive"

    @given(
        change=st.floats(-0.4, 0.4), half=st.floats(0.0, 0.3), floors=st.tuples(*[st.floats(0.0, 0.5)] * 2),
        times=st.floats(1, 10), margins=st.tuples(*[st.floats(0.001, 0.9)] * 2),
        basis=st.sampled_from(["interval", "point"]), better=st.sampled_from(["lower", "higher"]),
        gain=st.one_of(st.none(), st.floats(0.01, 0.5)),
    )  # fmt: skip
    @settings(max_examples=300, deadline=None)
    def test_it_never_makes_a_pass(
        self,
        change: float,
        half: float,
        floors: tuple[float, float],
        times: float,
        margins: tuple[float, float],
        basis: str,
        better: str,
        gain: float | None,
    ) -> None:
        found = accuracy(change, half).model_copy(update={"better": better})
        low, high = sorted(floors)
        strict, loose = sorted(margins)

        def status(margin: float, floor: float | None, above: float | None) -> str:
            rule = not_worse(margin, decide=basis, above_noise=above, implausible_gain=gain)
            return verdict(rule, found if floor is None else floored(found, floor)).status

        plain, noisy = status(strict, None, None), status(strict, low, times)
        assert noisy == plain or noisy == "inconclusive"
        if status(strict, high, times) == "pass":
            assert noisy == "pass", "a lower floor takes no pass away"
        if noisy == "pass":
            assert status(loose, low, times) == "pass", "nor does a looser limit"

    def test_less_than_one_floor_cannot_be_asked(self) -> None:
        with pytest.raises(ValidationError):
            not_worse(above_noise=0.5)

    def test_what_the_plan_tries_is_not_a_missing_floor(self) -> None:
        metric = Metric(name="perplexity.ratio", unit="ratio", better="lower", neutral=1.0)
        assert _explain_misfit(not_worse(above_noise=3), metric) == ""


class TestBoundaries:
    """At the very number that a condition names, on both sides of it, and what a missing part makes of it."""

    def test_a_gain_of_exactly_what_is_implausible_is_plausible(self) -> None:
        rule = not_worse(0.05, implausible_gain=0.125)
        for low, status in ((0.125, "pass"), (0.1250001, "error")):
            assert verdict(rule, accuracy(0.25, low=low, high=0.5)).status == status
        for high, status in ((0.875, "pass"), (0.8749999, "error")):
            assert verdict(rule, ratio(0.75, low=0.5, high=high)).status == status

    def test_a_gain_is_counted_from_what_an_equal_variant_has(self) -> None:
        """An agreement of 1 is no gain, and one of 1.25 (a score retained) is a gain of a quarter."""
        rule = not_worse(0.05, implausible_gain=0.125)
        for change, status in ((1.0, "pass"), (1.25, "error")):
            found = ratio(change, 0.01, better="higher", unit="score", name="tasks.a.recovery")
            assert verdict(rule, found).status == status

    def test_the_nearer_end_of_the_interval_decides_and_a_missing_end_leaves_the_estimate(self) -> None:
        rule = not_worse(0.05, implausible_gain=0.125)
        for half_open in ({"low": None, "high": None}, {"low": None}, {"high": None}):
            plausible = accuracy(0.125).model_copy(update=half_open)
            assert verdict(rule, plausible).status == "inconclusive"
            assert verdict(rule, plausible.model_copy(update={"change": 0.126})).status == "error"
        point = not_worse(0.05, implausible_gain=0.125, decide="point")
        assert verdict(point, accuracy(0.13, low=0.0, high=0.5)).status == "error"

    def test_an_implausible_gain_has_no_margin_and_names_both_numbers(self) -> None:
        judged = verdict(not_worse(0.05, implausible_gain=0.125), accuracy(0.5, low=0.25, high=0.75))
        assert (judged.status, judged.margin) == ("error", None)
        assert "is at least 0.25, and more than 0.125 is implausible (implausible_gain)" in judged.because

    def test_an_error_stays_what_it_is(self) -> None:
        found = ratio(1.0, unit="share", better="higher")
        judged = verdict(AtMost(metric="*", why="w", limit=0.5, min_documents=99, above_noise=3), found)
        assert judged.status == "error"
        assert "better if higher" in judged.because
        assert "min_documents" not in judged.because

    @pytest.mark.parametrize(("gain", "unit", "words"), [(1.0, "share", "write 0.05 for 5 %"), (1.0, "nats", "")])
    def test_a_gain_of_all_is_never_reached_by_a_share(self, gain: float, unit: str, words: str) -> None:
        judged = verdict(not_worse(0.05, implausible_gain=gain), accuracy(0.0).model_copy(update={"unit": unit}))
        assert words in judged.because
        assert judged.status == ("error" if words else "pass")

    def test_an_effect_of_exactly_so_many_floors_counts(self) -> None:
        """The effect is 0.25; twice a floor of 0.125 it is, twice a slightly larger one it is not."""
        for floor, status in ((0.125, "fail"), (0.1250001, "inconclusive")):
            judged = verdict(not_worse(above_noise=2), floored(accuracy(-0.25), floor))
            assert judged.status == status
        assert "the effect is 2 × the noise floor of 0.125 (rounding), and less than 2 × may be noise" in judged.because

    def test_a_pass_leaves_more_than_one_floor(self) -> None:
        """The interval ends at −0.25, the limit is −0.5."""
        found = accuracy(0.0, low=-0.25, high=0.25)
        for floor, status in ((0.2499999, "pass"), (0.25, "inconclusive")):
            assert verdict(not_worse(0.5, above_noise=2), floored(found, floor)).status == status

    def test_a_floor_of_nothing_takes_nothing_from_a_counted_number_at_its_limit(self) -> None:
        counted = ratio(0.5, 0.0, name="memory.ratio", basis="counted", variant=None)
        rule = AtMost(metric="*", why="w", limit=0.5, above_noise=2)
        assert verdict(rule, floored(counted, 0.0)).status == "pass"
        assert verdict(rule, floored(counted, 0.001)).status == "inconclusive"

    def test_a_floor_takes_its_share_of_the_reference_only_from_a_share(self) -> None:
        """variant and reference are 4 and 8; a floor of 0.5 is 0.0625 of the share, and 0.5 of the value."""
        found = floored(
            ratio(-4.0, 0.0, low=-4.01, high=-3.99, name="a.value", unit="nats", neutral=0.0, reference=8.0,
                  variant=4.0, variant_low=3.99, variant_high=4.01), 0.5,
        )  # fmt: skip
        for limit, status in ((0.57, "pass"), (0.56, "inconclusive")):
            assert (
                verdict(AtMost(metric="*", why="w", limit=limit, of="reference", above_noise=2), found).status == status
            )
        for limit, status in ((4.52, "pass"), (4.5, "inconclusive")):
            assert verdict(AtMost(metric="*", why="w", limit=limit, above_noise=2), found).status == status

    def test_the_least_number_of_documents_is_enough(self) -> None:
        for clusters, status in ((30, "pass"), (29, "inconclusive")):
            assert verdict(not_worse(min_documents=30), ratio(clusters=clusters)).status == status
        assert verdict(not_worse(min_documents=2), ratio(clusters=2)).status == "pass"


GOODNESS = {"error": 0, "fail": 0, "inconclusive": 1, "pass": 2}


@given(
    change=st.floats(-0.4, 0.4),
    half=st.floats(0.001, 0.3),
    clusters=st.integers(2, 60),
    gains=st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.9)),
    documents=st.tuples(st.integers(2, 80), st.integers(2, 80)),
    basis=st.sampled_from(["interval", "point"]),
)
@settings(max_examples=60, deadline=None)
def test_looser_demands_never_make_a_verdict_worse(
    change: float, half: float, clusters: int, gains: tuple[float, float], documents: tuple[int, int], basis: str
) -> None:
    found = accuracy(change, half, clusters=clusters)
    (tight, loose), (few, many) = sorted(gains), sorted(documents)
    at = [
        verdict(not_worse(0.05, implausible_gain=gain, min_documents=count, decide=basis), found).status
        for gain, count in ((tight, many), (loose, few))
    ]
    if at[0] != "fail":
        assert at[1] == "fail" or GOODNESS[at[1]] >= GOODNESS[at[0]]
    if at[0] == "pass":
        assert at[1] == "pass"


@pytest.mark.parametrize(
    "fields",
    [{"on_inconclusive": "wait"}, {"min_documents": 1}, {"min_documents": 2.5}, {"implausible_gain": 0.0},
     {"slices": "colour"}, {"slices": "kind="}, {"decide": "median"}],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        not_worse(**fields)


class TestLimitsOfEveryKind:
    sums = staticmethod(
        lambda **fields: ratio(
            -0.02,
            0.01,
            name="tasks.a.accuracy",
            unit="share",
            better="higher",
            neutral=0.0,
            reference=0.8,
            variant=0.78,
            variant_low=0.75,
            variant_high=0.81,
            **fields,
        )
    )

    @pytest.mark.parametrize(
        ("of", "limit", "status"),
        [
            ("variant", 0.74, "pass"), ("variant", 0.76, "inconclusive"), ("variant", 0.82, "fail"),
            ("change", -0.04, "pass"), ("change", -0.02, "inconclusive"), ("change", -0.005, "fail"),
            ("reference", 0.94, "pass"), ("reference", 0.975, "inconclusive"), ("reference", 0.999, "fail"),
        ],
    )  # fmt: skip
    def test_at_least(self, of: Of, limit: float, status: str) -> None:
        assert verdict(AtLeast(metric="*", why="w", limit=limit, of=of), self.sums()).status == status

    def test_a_share_far_below_the_reference_can_be_demanded(self) -> None:
        counted = ratio(
            -2500.0, 0.0, name="memory.weight_bytes", unit="bytes", neutral=0.0, reference=4000.0, variant=1500.0,
            variant_low=1500.0, variant_high=1500.0, basis="counted", method="exact count", clusters=0,
        )  # fmt: skip
        for limit, status in ((0.4, "pass"), (0.375, "pass"), (0.37, "fail")):
            rule = AtMost(metric="*", why="w", limit=limit, of="reference")
            assert verdict(rule, counted).status == status
        assert (
            "expected: at most 0.4 of the reference"
            in verdict(AtMost(metric="*", why="w", limit=0.4, of="reference"), counted).because
        )

    @given(
        reference=st.floats(0.5, 3), variant=st.floats(0, 4), widths=st.tuples(*[st.floats(0.01, 2)] * 4),
        limits=st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)), rule=st.sampled_from([AtMost, AtLeast]),
    )  # fmt: skip
    @settings(max_examples=300, deadline=None)
    def test_a_looser_share_never_makes_a_verdict_worse(
        self,
        reference: float,
        variant: float,
        widths: tuple[float, float, float, float],
        limits: tuple[float, float],
        rule: type[AtMost | AtLeast],
    ) -> None:
        change = variant - reference
        found = ratio(
            change, unit="score", better="neither", neutral=0.0, reference=reference, variant=variant,
            low=change - widths[0], high=change + widths[1],
            variant_low=variant - widths[2], variant_high=variant + widths[3],
        )  # fmt: skip
        ordered = sorted(limits, reverse=rule is AtLeast)
        strict, loose = (rule(metric="*", why="w", limit=x, of="reference").judge(found, False) for x in ordered)
        assert GOODNESS[loose.status] >= GOODNESS[strict.status], (strict, loose)
