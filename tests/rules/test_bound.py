"""Bounds: what a rule says of its limits, and how numbers are compared with one limit or with two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from harness.plugins import load, names
from harness.records import Measurement, Metric
from harness.rules import Bound, Decision, Facts, Rule, bound_of
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
