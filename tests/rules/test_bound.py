"""Bounds: what a rule says of its limits, and how numbers are compared with one limit or with two."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from harness.plugins import load, names
from harness.records import Measurement, Metric
from harness.rules import Bound, Decision, Facts, Number, Rule, bound_of
from harness.rules._compare import compare
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.rules.retains import Retains
from tests.helpers.measured import measured

KL = Metric(name="divergence.kl_mean", unit="nats/token", better="lower")
RATIO = Metric(name="perplexity.ratio", unit="ratio", better="lower", neutral=1.0)
ACCURACY = Metric(name="tasks.a.accuracy", unit="share", better="higher")
SQNR = Metric(name="layers.sqnr_db", unit="dB", better="higher", neutral=6315.6, infinite_neutral=True)
NEUTRAL_ONE = Metric(name="m", unit="nats", better="lower", neutral=1.0)
COSINE = Metric(name="layers.cosine", unit="cosine", better="higher")
AGREEMENT = Metric(name="divergence.top1_agreement", unit="share", better="higher", neutral=1.0)
NUMBER_NAMES: tuple[Number, ...] = ("change", "variant", "ratio")
TINY = sys.float_info.min
GAP = Metric(name="calibration.gap", unit="probability", better="neither")


@pytest.mark.parametrize(
    ("rule", "metric", "number", "lower", "upper"),
    [
        (AtMost(limit=0.05, metric="*", why="w"), KL, "variant", None, 0.05),
        (AtMost(limit=0.05, of="change", metric="*", why="w"), KL, "change", None, 0.05),
        (AtMost(limit=1.05, of="reference", metric="*", why="w"), KL, "ratio", None, 1.05),
        (AtMost(limit=1.05, of="reference", metric="*", why="w"), RATIO, "change", None, 1.05),
        (AtLeast(limit=0.9, metric="*", why="w"), ACCURACY, "variant", 0.9, None),
        (NotWorse(margin=0.02, metric="*", why="w"), RATIO, "change", None, 1.02),
        (NotWorse(margin=0.25, metric="*", why="w"), ACCURACY, "change", -0.25, None),
        (Retains(share=0.5, metric="*", why="w"), ACCURACY, "ratio", 0.5, None),
        (Retains(share=0.5, metric="*", why="w"), RATIO, "change", None, 2.0),
    ],
)
def test_a_rule_says_its_number_and_its_limits(
    rule: Rule, metric: Metric, number: str, lower: float | None, upper: float | None
) -> None:
    bound = rule.bound(Facts.from_metric(metric))
    assert (bound.number, bound.lower, bound.upper, bound.misfit) == (number, lower, upper, "")


@pytest.mark.parametrize(
    ("rule", "metric", "words"),
    [
        (AtMost(limit=0.5, metric="*", why="w"), ACCURACY, "better if higher"),
        (AtLeast(limit=90, metric="*", why="w"), ACCURACY, "write 0.9 for 90 %"),
        (AtMost(limit=0.0, of="reference", metric="*", why="w"), KL, "no share of the reference"),
        (NotWorse(margin=0.1, metric="*", why="w"), GAP, "no better direction"),
        (NotWorse(margin=0.1, metric="*", why="w"), SQNR, "write at_least"),
        (NotWorse(margin=2, metric="*", why="w"), RATIO, "means 200 %"),
        (Retains(share=0.9, metric="*", why="w"), GAP, "no better direction"),
    ],
)
def test_a_metric_that_a_rule_cannot_judge_is_a_misfit(rule: Rule, metric: Metric, words: str) -> None:
    assert words in rule.bound(Facts.from_metric(metric)).misfit


@pytest.mark.parametrize(
    ("rule", "metric", "words"),
    [
        (AtLeast(limit=0.0, of="reference", metric="*", why="w"), ACCURACY, "no share of the reference"),
        (AtLeast(limit=0.01, of="reference", metric="*", why="w"), ACCURACY, ""),
        (AtLeast(limit=1.5, of="reference", metric="*", why="w"), ACCURACY, ""),
        (AtLeast(limit=0.0, metric="*", why="w"), ACCURACY, ""),
        (AtLeast(limit=1.0, metric="*", why="w"), ACCURACY, ""),
        (AtLeast(limit=1.01, metric="*", why="w"), ACCURACY, "is never above 1, so the limit 1.01 cannot be met"),
        (AtLeast(limit=1.5, of="change", metric="*", why="w"), ACCURACY, "cannot be met"),
        (AtMost(limit=0.0, of="reference", metric="*", why="w"), GAP, "no share of the reference"),
        (AtMost(limit=0.01, of="reference", metric="*", why="w"), GAP, ""),
        (AtMost(limit=1.5, of="reference", metric="*", why="w"), GAP, ""),
        (AtMost(limit=0.99, metric="*", why="w"), GAP, ""),
        (AtMost(limit=1.0, metric="*", why="w"), GAP, "is never above 1, so the limit 1 excludes nothing"),
        (NotWorse(margin=0.99, metric="*", why="w"), RATIO, ""),
        (NotWorse(margin=1.0, metric="*", why="w"), RATIO, "the margin 1 means 100 %; write 0.01 if 1 % is meant"),
        (NotWorse(margin=1.0, metric="*", why="w"), ACCURACY, "the margin 1 means 100 %; write 0.01 if 1 % is meant"),
        (NotWorse(margin=1.0, metric="*", why="w"), KL, ""),
        (
            NotWorse(margin=3.0, metric="*", why="w"),
            Metric(name="m", unit="nats", better="lower", neutral=1.0),
            "300 %",
        ),
    ],
)
def test_the_misfit_begins_at_the_very_number_that_makes_no_sense(rule: Rule, metric: Metric, words: str) -> None:
    misfit = rule.bound(Facts.from_metric(metric)).misfit
    assert words in misfit
    assert bool(misfit) == bool(words)


@pytest.mark.parametrize(("reference", "fits"), [(None, True), (1e-9, True), (0.0, False), (-1.0, False), (0.5, True)])
def test_a_reference_of_nothing_has_no_share(reference: float | None, fits: bool) -> None:
    for rule in (
        Retains(share=0.9, metric="*", why="w"), AtLeast(limit=0.9, of="reference", metric="*", why="w"),
    ):  # fmt: skip
        assert (rule.bound(Facts.from_metric(ACCURACY, reference=reference)).misfit == "") is fits
    own = AtLeast(limit=0.9, metric="*", why="w").bound(Facts.from_metric(ACCURACY, reference=reference))
    assert own.misfit == "", "the variant's own value needs none"


@pytest.mark.parametrize(
    ("rule", "numbers", "number", "words"),
    [
        (AtMost(limit=0.5, metric="*", why="w"), {"change"}, "change", ""),
        (AtMost(limit=0.5, metric="*", why="w"), {"variant"}, "variant", ""),
        (AtMost(limit=0.5, metric="*", why="w"), set(), "change", "no comparison with the reference"),
        (AtMost(limit=0.5, of="change", metric="*", why="w"), {"variant"}, "change", "no comparison"),
        (AtMost(limit=0.5, of="reference", metric="*", why="w"), {"change"}, "ratio", "no value on each"),
        (NotWorse(margin=0.1, metric="*", why="w"), {"variant"}, "change", "no comparison with the reference"),
    ],
)
def test_a_number_that_a_metric_lacks_is_a_misfit(rule: Rule, numbers: set[Any], number: str, words: str) -> None:
    bound = rule.bound(Facts.from_metric(KL, frozenset(numbers)))
    assert bound.number == number
    assert words in bound.misfit
    assert bool(bound.misfit) == bool(words)


def test_a_ratio_that_has_no_change_is_taken_of_its_sides() -> None:
    bound = AtMost(limit=1.05, of="reference", metric="*", why="w").bound(
        Facts.from_metric(RATIO, frozenset({"variant", "ratio"}))
    )
    assert (bound.number, bound.misfit) == ("ratio", "")


@pytest.mark.parametrize(
    ("rule", "metric", "expected"),
    [
        (NotWorse(margin=0.25, metric="*", why="w"), RATIO, "degradation < 0.25 from 1 (allowed: up to 1.25)"),
        (NotWorse(margin=0.25, metric="*", why="w"), ACCURACY, "degradation < 0.25 from 0 (allowed: down to -0.25)"),
        (NotWorse(margin=0.25, metric="*", why="w"), GAP, "degradation < 0.25"),
        (Retains(share=0.5, metric="*", why="w"), ACCURACY, "variant / reference > 0.5"),
        (Retains(share=0.5, metric="*", why="w"), RATIO, "variant / reference < 1/0.5 = 2"),
        (Retains(share=0.5, metric="*", why="w"), GAP, "at least 0.5 of the reference"),
        (AtMost(limit=0.25, metric="*", why="w"), KL, "at most 0.25"),
        (AtMost(limit=0.25, of="change", metric="*", why="w"), KL, "a change of at most 0.25"),
        (AtLeast(limit=0.25, of="reference", metric="*", why="w"), ACCURACY, "at least 0.25 of the reference"),
    ],
)
def test_what_is_expected_is_said_in_the_numbers_of_the_rule(rule: Rule, metric: Metric, expected: str) -> None:
    assert rule.bound(Facts.from_metric(metric)).expected == expected


def test_a_share_of_the_reference_needs_a_value_on_each_side_and_a_positive_one() -> None:
    rule = Retains(share=0.9, metric="*", why="w")
    assert "no value on each" in rule.bound(Facts.from_metric(ACCURACY, frozenset({"change"}))).misfit
    assert "is 0, so" in rule.bound(Facts.from_metric(ACCURACY, reference=0.0)).misfit


def test_every_rule_has_a_bound_on_a_metric_that_it_fits() -> None:
    settings = {"margin": 0.1, "share": 0.9, "limit": 0.5}
    for name in names(Rule):
        cls = load(Rule, name)
        given_settings: dict[str, Any] = {key: value for key, value in settings.items() if key in cls.model_fields}
        bounds = [
            bound_of(cls(**given_settings, metric="*", why="w"), Facts.from_metric(metric)) for metric in (KL, ACCURACY)
        ]
        assert any(bound.limits and not bound.misfit for bound in bounds), name


def test_a_bound_has_a_limit_or_a_reason_and_finite_numbers() -> None:
    with pytest.raises(ValueError, match="needs a lower limit"):
        Bound("anything")
    with pytest.raises(ValueError, match="expected finite numbers"):
        Bound("below infinity", upper=float("inf"))


@pytest.mark.parametrize(
    ("metric", "number", "wanted"),
    [
        (ACCURACY, "change", (-1.0, 1.0)), (ACCURACY, "variant", (0.0, 1.0)), (ACCURACY, "ratio", (TINY, math.inf)),
        (COSINE, "change", (-2.0, 2.0)), (COSINE, "variant", (-1.0, 1.0)),
        (AGREEMENT, "change", (0.0, 1.0)), (AGREEMENT, "variant", (0.0, 1.0)),
        (KL, "change", (-math.inf, math.inf)), (RATIO, "change", (TINY, math.inf)),
    ],
)  # fmt: skip
def test_the_range_of_a_number_is_that_of_its_unit_and_of_a_difference_of_two_values(
    metric: Metric, number: Number, wanted: tuple[float, float]
) -> None:
    assert Facts.from_metric(metric).range(number) == wanted


def test_a_difference_of_values_that_have_a_least_and_no_most_has_no_bounds() -> None:
    """Of a ratio with the neutral change 0: nothing bounds the difference but the unit."""
    assert Facts("m", "ratio", "lower", 0.0).range("change") == (TINY, math.inf)


def test_equal_is_what_a_variant_without_change_has() -> None:
    facts = Facts.from_metric(RATIO, reference=3.0)
    assert [facts.equal(number) for number in NUMBER_NAMES] == [1.0, 3.0, 1.0]
    assert Facts.from_metric(ACCURACY).equal("variant") is None


def test_facts_of_a_measurement_say_which_numbers_it_has() -> None:
    assert Facts.from_measurement(measured("accuracy")).numbers == {"change", "variant", "ratio"}
    assert Facts.from_measurement(measured("ratio")).numbers == {"change"}
    for missing, left in (("change", {"variant"}), ("variant", {"change"}), ("reference", {"change", "variant"})):
        found = measured("accuracy").model_copy(update={missing: None})
        assert Facts.from_measurement(found).numbers == left
    assert Facts.from_metric(SQNR).infinite_neutral
    assert not Facts("m", "dB", "higher", 0.0).infinite_neutral


@pytest.mark.parametrize(
    ("value", "inside", "tied"),
    [(0.9, False, False), (1.0, False, True), (1.5, True, True), (2.0, False, True), (2.1, False, False)],
)
def test_a_bound_contains_what_is_within_it_and_ties_where_they_count(value: float, inside: bool, tied: bool) -> None:
    both, lower, upper = Bound("", lower=1.0, upper=2.0), Bound("", lower=1.0), Bound("", upper=2.0)
    assert (both.contains(value), both.contains(value, ties=True)) == (inside, tied)
    assert (lower.contains(value), lower.contains(value, ties=True)) == (value > 1, value >= 1)
    assert (upper.contains(value), upper.contains(value, ties=True)) == (value < 2, value <= 2)


def test_a_misfit_needs_no_limit_and_a_limit_is_finite_whatever_the_misfit() -> None:
    assert Bound("", misfit="no").limits == ()
    assert Bound("", lower=0.0, upper=2.0).limits == (0.0, 2.0)
    for ends in ({"lower": math.nan}, {"upper": -math.inf}, {"lower": 1.0, "upper": math.inf}):
        with pytest.raises(ValueError, match="expected finite numbers"):
            Bound("", misfit="no", **ends)  # type: ignore[arg-type]


class Between(Rule):
    """Two limits on the change."""

    low: float
    high: float

    def bound(self, metric: Facts) -> Bound:
        return Bound(f"between {self.low} and {self.high}", lower=self.low, upper=self.high)


def between(low: float, high: float, **fields: Any) -> Between:
    return Between(low=low, high=high, metric="*", why="w", **fields)


@pytest.mark.parametrize(
    ("low", "high", "status", "words"),
    [
        (1.0, 1.02, "pass", "the whole interval is within the "),
        (1.0, 1.012, "inconclusive", "the interval crosses the upper limit 1.012"),
        (1.011, 1.02, "inconclusive", "the interval crosses the lower limit 1.011"),
        (1.0, 1.01, "fail", "the whole interval is beyond the upper limit 1.01"),
        (1.02, 1.03, "fail", "the whole interval is beyond the lower limit 1.02"),
        (1.011, 1.012, "inconclusive", "crosses"),
    ],
)
def test_both_limits_must_hold(low: float, high: float, status: str, words: str) -> None:
    decision = between(low, high).judge(measured("ratio"), identical=False)
    assert (decision.status, words in decision.because) == (status, True), decision.because


def test_the_margin_is_that_of_the_nearer_limit() -> None:
    assert between(1.0, 1.02).judge(measured("ratio"), False).margin == pytest.approx(1.02 - 1.016)
    assert between(1.01, 1.9).judge(measured("ratio"), False).margin == pytest.approx(1.0102 - 1.01)


@pytest.mark.parametrize(("low", "high", "status"), [(0.0, 1500.0, "fail"), (-2500.0, -2500.0, "pass")])
def test_counted_numbers_may_equal_both_limits(low: float, high: float, status: str) -> None:
    assert between(low, high).judge(measured("bytes"), False).status == status


@given(
    value=st.floats(-2, 2), half=st.floats(0.01, 1), ends=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    decide=st.sampled_from(["interval", "point"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_two_limits_are_as_strict_as_two_rules(
    value: float, half: float, ends: tuple[float, float], decide: str
) -> None:
    found = Measurement(
        name="m", unit="nats", better="neither", change=value, low=value - half, high=value + half, n=9, clusters=9,
        method="mean", basis="sampled",
    )  # fmt: skip
    order = ("fail", "inconclusive", "pass")

    def decided(bound: Bound) -> Decision:
        return compare(found, bound, decide, False)  # type: ignore[arg-type]

    low, high = sorted(ends)
    single = [decided(Bound("", lower=low)), decided(Bound("", upper=high))]
    both = decided(Bound("", lower=low, upper=high))
    assert both.status == min((each.status for each in single), key=order.index)
    if decide == "interval":
        assert both.p_value is not None
        assert both.p_value >= min(each.p_value or 0.0 for each in single) - 1e-12


def test_the_p_value_of_two_limits_holds_its_level() -> None:
    """The truth lies at the upper limit, the lower one is one standard error below: failures stay at their share."""
    rng = np.random.default_rng(5)
    half = float(norm.ppf(0.975))
    values = rng.normal(0.0, 1.0, 4000)
    p_values = []
    for value in values:
        found = Measurement(
            name="m", unit="nats", better="neither", change=value, low=value - half, high=value + half, n=9,
            clusters=0, method="mean", basis="sampled",
        )  # fmt: skip
        p_values.append(compare(found, Bound("", lower=-1.0, upper=0.0), "interval", False).p_value)
    for level in (0.025, 0.1, 0.3):
        share = float(np.mean([p is not None and p <= level for p in p_values]))
        assert share == pytest.approx(level, abs=4 * (level / 4000) ** 0.5)
