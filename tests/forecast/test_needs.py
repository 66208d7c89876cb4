"""What rules need: their limits as changes, spreads read back from intervals, and outlooks that hold at the judge."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, t
from statsmodels.stats.power import TTestPower

from harness.forecast.boundary import find_boundary
from harness.forecast.measured import Measured, list_measured
from harness.forecast.needs import Need, needs
from harness.forecast.spread import Spread, assume_spread, read_spread
from harness.measures import load_metrics
from harness.plan import load_gate, load_suite
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement, Metric, Run, find_metric
from harness.rules import Bound, Facts, Rule
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.rules.retains import Retains
from harness.statistics import mean_interval, tango_interval
from tests.helpers.made_run import make_run


def shipped(name: str, **fields: str) -> Metric:
    found = find_metric(name, load_metrics())
    assert found is not None
    return found.model_copy(update=fields)


RATIO, KL, AGREEMENT = map(shipped, ("perplexity.ratio", "divergence.kl_mean", "divergence.top1_agreement"))
ACCURACY = shipped("tasks.a.accuracy", unit="share", better="higher", units="documents")
FLIPS = shipped("tasks.a.flips_to_wrong")
BYTES = shipped("memory.weight_bytes")
GAP, DELTA = shipped("calibration.gap"), shipped("perplexity.nll_delta")
SIZE = 60


def gate(*rules: Rule) -> GateSpec:
    specs = tuple(RuleSpec(rule=rule, where=f"gate.yaml:{line}") for line, rule in enumerate(rules, 2))
    return GateSpec(name="gate", source="gate.yaml", rules=specs)


def need(rule: Rule, metric: Metric, documents: int | None, run: Run | None = None) -> Need:
    (found,) = needs([gate(rule)], [Measured(metric, "core", documents)], run)
    return found


@cache
def made() -> Run:
    return make_run().run


def run_with(*measurements: Measurement) -> Run:
    return made().model_copy(update={"measurements": measurements})


@pytest.mark.parametrize(
    ("rule", "metric", "limit", "subject"),
    [
        (NotWorse(metric="*", why="w", margin=0.02), RATIO, 1.02, "change"),
        (NotWorse(metric="*", why="w", margin=0.03), ACCURACY, -0.03, "change"),
        (AtMost(metric="*", why="w", limit=0.05), KL, 0.05, "change"),
        (AtLeast(metric="*", why="w", limit=0.9), AGREEMENT, 0.9, "change"),
        (AtLeast(metric="*", why="w", limit=0.6), ACCURACY, 0.6 - 0.75, "variant"),
        (Retains(metric="*", why="w", share=0.9), ACCURACY, -0.075, "change"),
        (AtMost(metric="*", why="w", limit=0.05, decide="point"), KL, 0.05, "number"),
        (AtMost(metric="*", why="w", limit=1e9), BYTES, 1e9 - 0.75, "number"),
    ],
)
def test_the_limit_of_a_rule_is_planned_as_a_change(rule: Rule, metric: Metric, limit: float, subject: str) -> None:
    found = find_boundary(rule, metric, assume_spread(metric))
    assert found is not None
    assert found.limit == pytest.approx(limit, rel=1e-7, abs=1e-9)
    assert (found.subject, found.reference_passes) == (subject, True)


def test_a_limit_above_the_reference_is_found_on_the_better_side() -> None:
    found = find_boundary(AtLeast(metric="*", why="w", limit=0.9), ACCURACY, Spread("paired", 0.05, True, 0.6))
    assert found is not None
    assert found.limit == pytest.approx(0.3)
    assert (found.subject, found.reference_passes) == ("variant", False)


class Broken(Rule):
    """Breaks on every metric, or returns no bound."""

    bound_is: Literal["broken", "missing"]

    def bound(self, metric: Facts) -> Bound:
        return None if self.bound_is == "missing" else 1 / 0  # type: ignore[return-value]


@pytest.mark.parametrize(("how", "words"), [("broken", "ZeroDivisionError"), ("missing", "returned None")])
def test_a_rule_without_a_bound_never_passes_and_says_why(how: Literal["broken", "missing"], words: str) -> None:
    rule = Broken(metric="*", why="w", bound_is=how)
    assert find_boundary(rule, RATIO, assume_spread(RATIO)) is None
    planned = need(rule, RATIO, 200)
    assert (planned.outlook, words in planned.said) == ("never", True), planned.said


class Between(Rule):
    """Two limits on the change."""

    low: float
    high: float

    def bound(self, metric: Facts) -> Bound:
        return Bound(f"between {self.low} and {self.high}", lower=self.low, upper=self.high)


@pytest.mark.parametrize(
    ("metric", "low", "high", "limits", "passes"),
    [
        (RATIO, 0.5, 1.5, (1.5, 0.5), True),  # the limit that damage meets comes first
        (ACCURACY, -0.3, 0.1, (-0.3, 0.1), True),
        (ACCURACY, -0.3, 2.0, (-0.3,), True),  # no accuracy rises by 2
        (GAP, -0.3, 0.1, (0.1, -0.3), True),  # without a better direction the nearer one
        (GAP, -0.1, 0.3, (-0.1, 0.3), True),
        (RATIO, -2.0, 1e9, (1e9,), True),
        (ACCURACY, -2.0, 2.0, (), True),
        (RATIO, 0.5, 0.9, (0.9,), False),
        (RATIO, 1.1, 1.2, (1.1,), False),
    ],
)
def test_both_limits_of_a_rule_are_planned(
    metric: Metric, low: float, high: float, limits: tuple[float, ...], passes: bool
) -> None:
    found = find_boundary(Between(metric="*", why="w", low=low, high=high), metric, assume_spread(metric))
    assert found is not None
    assert (found.limits, found.reference_passes) == (limits, passes)


@pytest.mark.parametrize(("metric", "low", "high"), [(RATIO, 1.5, 0.5), (RATIO, -2.0, -1.0), (ACCURACY, 1.0, 3.0)])
def test_limits_that_no_number_can_meet_have_no_boundary(metric: Metric, low: float, high: float) -> None:
    rule = Between(metric="*", why="w", low=low, high=high)
    assert find_boundary(rule, metric, assume_spread(metric)) is None
    assert need(rule, metric, 200).outlook == "never"


def test_documents_are_those_that_the_nearer_limit_needs() -> None:
    near = need(Between(metric="*", why="w", low=-0.01, high=9.0), DELTA, 200)
    assert near.needed == need(NotWorse(metric="*", why="w", margin=0.01), DELTA, 200).needed


@settings(max_examples=25, deadline=None)
@given(st.floats(0.001, 0.5), st.floats(0, 0.4))
def test_a_looser_margin_is_a_farther_limit_and_needs_no_more_documents(margin: float, looser: float) -> None:
    first = need(NotWorse(metric="*", why="w", margin=margin), ACCURACY, 200)
    second = need(NotWorse(metric="*", why="w", margin=margin + looser), ACCURACY, 200)
    assert first.needed is not None
    assert second.needed is not None
    assert second.needed <= first.needed


def test_the_deviation_between_documents_is_read_back_from_an_interval() -> None:
    rng = np.random.default_rng(3)
    per_document = rng.normal(0.01, 0.02, SIZE)
    interval = mean_interval(per_document, np.arange(SIZE))
    assert interval is not None
    run = run_with(
        Measurement(
            name="perplexity.ratio",
            unit="ratio",
            better="lower",
            neutral=1.0,
            change=math.exp(per_document.mean()),
            low=math.exp(interval.low),
            high=math.exp(interval.high),
            n=SIZE * 7,
            clusters=SIZE,
            basis="sampled",
            method="cluster t",
        )
    )
    spread = read_spread(run, RATIO)
    assert spread is not None
    assert spread.family == "log"
    assert spread.size == pytest.approx(per_document.std(ddof=1), rel=1e-9)
    assert run.name in spread.words()


def accuracy(gained: int, lost: int, items: int, score: float = 0.7) -> list[Measurement]:
    interval = tango_interval(gained, lost, items)
    assert interval is not None
    change = (gained - lost) / items
    main = Measurement(
        name="tasks.a.accuracy",
        unit="share",
        better="higher",
        reference=score,
        variant=score + change,
        change=change,
        low=interval.low,
        high=interval.high,
        variant_low=score + change - 0.05,
        variant_high=score + change + 0.05,
        n=items,
        clusters=items,
        basis="sampled",
        method="Tango score",
    )
    flips = [
        Measurement(
            name=f"tasks.a.{name}",
            labels={"metric": "accuracy"},
            unit="share",
            better="lower",
            change=count / items,
            low=0.0,
            high=1.0,
            n=items,
            clusters=items,
            basis="sampled",
            method="Clopper-Pearson",
        )
        for name, count in (("flips_to_wrong", lost), ("flips_to_right", gained))
    ]
    return [main, *flips]


def test_discordance_is_read_from_flips_each_way_and_is_never_none_at_all() -> None:
    spread = read_spread(run_with(*accuracy(6, 14, 400)), ACCURACY)
    assert spread is not None
    assert spread.family == "paired"
    assert spread.size == pytest.approx(20.5 / 401)
    none = read_spread(run_with(*accuracy(0, 0, 400)), ACCURACY)
    assert none is not None
    assert 0 < none.size < 0.002


def test_discordance_without_flips_is_read_from_the_interval() -> None:
    spread = read_spread(run_with(*accuracy(20, 20, 800)[:1]), ACCURACY)
    assert spread is not None
    assert spread.size == pytest.approx(0.05, rel=0.1)


def test_a_metric_that_a_run_does_not_have_leaves_nothing() -> None:
    assert read_spread(run_with(*accuracy(0, 0, 400)), RATIO) is None


@pytest.mark.parametrize(
    ("rule", "metric", "documents", "outlook", "words"),
    [
        (
            NotWorse(metric="*", why="w", margin=0.02),
            RATIO,
            200,
            "decides",
            "n = 200 documents; 80 % power needs n = 11",
        ),
        (NotWorse(metric="*", why="w", margin=0.03), ACCURACY, 200, "weak", "80 % power needs n = 512"),
        (NotWorse(metric="*", why="w", margin=0.01), ACCURACY, 200, "never", "even without any change"),
        (NotWorse(metric="*", why="w", margin=0.02), RATIO, 1, "never", "no interval at n = 1"),
        (NotWorse(metric="*", why="w", margin=0.02), RATIO, None, "unknown", "known only when it runs"),
        (NotWorse(metric="*", why="w", margin=0.02, min_documents=300), RATIO, 200, "never", "min_documents"),
        (AtMost(metric="*", why="w", limit=0.05, decide="point"), KL, 2, "free", "the point estimate alone"),
        (AtMost(metric="*", why="w", limit=1e9), BYTES, 0, "free", "counted, not sampled"),
        (AtMost(metric="*", why="w", limit=0.0), KL, 200, "never", "not even"),
        (AtLeast(metric="*", why="w", limit=0.9), KL, 200, "never", "better if lower"),
        (AtLeast(metric="*", why="w", limit=0.5), ACCURACY, 200, "unknown", "only from an earlier run"),
    ],
)
def test_what_is_said_about_a_rule(rule: Rule, metric: Metric, documents: int | None, outlook: str, words: str) -> None:
    found = need(rule, metric, documents)
    assert (found.outlook, words in found.said) == (outlook, True), found.said


def test_a_rule_that_never_passes_does_not_pass_at_the_judge_and_one_document_more_does() -> None:
    rule = NotWorse(metric="*", why="w", margin=0.03)
    outlooks = {n: need(rule, ACCURACY, n).outlook for n in range(100, 140)}
    for items, outlook in outlooks.items():
        decision = rule.judge(accuracy(0, 0, items)[0], identical=False)
        assert (outlook == "never") == (decision.status != "pass"), items
    assert set(outlooks.values()) == {"never", "weak"}


def test_with_a_run_a_limit_on_the_variant_itself_is_planned() -> None:
    run = run_with(*accuracy(0, 0, 400))
    assert need(AtLeast(metric="*", why="w", limit=0.5), ACCURACY, 400, run).outlook == "decides"
    below = need(AtLeast(metric="*", why="w", limit=0.8), ACCURACY, 400, run)
    assert (below.outlook, "reference itself" in below.said) == ("never", True)


def test_every_rule_of_every_shipped_gate_is_planned_on_its_suite() -> None:
    for name, suite in (("ship", "core"), ("strict", "core"), ("smoke", "smoke"), ("student", "student")):
        metrics = list_measured([load_suite(suite, Path())])
        spec = load_gate(name, Path())
        found = needs([spec], metrics)
        assert {id(each.spec) for each in found} == {id(rule) for rule in spec.rules}
        assert {each.outlook for each in found} <= {"decides", "weak", "free"}


def solved(effect: float) -> float:
    return float(TTestPower().solve_power(effect, None, 0.025, 0.8, alternative="larger"))


def test_the_documents_needed_are_those_of_other_libraries() -> None:
    ratio = need(NotWorse(metric="*", why="w", margin=0.005), RATIO, 200)
    assert ratio.needed == pytest.approx(solved(math.log(1.005) / 0.02), abs=1)
    relative = need(AtMost(metric="*", why="w", limit=0.05), KL, 200)
    assert relative.needed == pytest.approx(solved(1 / 1.5), abs=1)
    run = run_with(*accuracy(0, 0, 400))
    own = need(AtLeast(metric="*", why="w", limit=0.62), ACCURACY, 400, run)
    deviation = 0.05 * math.sqrt(400) / float(t.ppf(0.975, 399))
    assert own.needed == pytest.approx(solved(0.08 / deviation), abs=1)
    assert f"{deviation:.3g}" in own.basis


def test_the_items_needed_for_a_share_are_those_of_the_binomial_distribution() -> None:
    flips = need(AtMost(metric="*", why="w", limit=0.1), FLIPS, 300).needed
    assert flips is not None

    def power(items: int) -> float:
        most = max(k for k in range(items) if binom.cdf(k, items, 0.1) < 0.025)
        return float(binom.cdf(most, items, 0.05))

    assert all(power(items) >= 0.8 for items in range(flips, flips + 40))
    assert power(flips - 1) < 0.8


def test_limits_on_the_change_and_on_shares_of_the_reference_are_planned_too() -> None:
    change = find_boundary(AtLeast(metric="*", why="w", limit=-0.04, of="change"), ACCURACY, assume_spread(ACCURACY))
    share = find_boundary(AtLeast(metric="*", why="w", limit=0.9, of="reference"), ACCURACY, assume_spread(ACCURACY))
    assert change is not None
    assert share is not None
    assert change.limit == pytest.approx(-0.04)
    assert change.subject == "change"
    assert share.limit == pytest.approx(-0.075)


def test_a_run_tells_the_number_of_documents_that_files_do_not() -> None:
    suite = load_suite("standard", Path())
    assert {each.documents for each in list_measured([suite]) if each.metric.name == "perplexity.ratio"} == {None}
    clusters = next(m.clusters for m in made().measurements if m.name == "perplexity.ratio")
    told = {each.documents for each in list_measured([suite], made()) if each.metric.name == "perplexity.ratio"}
    assert told == {clusters}
