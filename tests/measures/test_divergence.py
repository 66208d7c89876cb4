from __future__ import annotations

import contextlib

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score

from harness.errors import MeasureError
from harness.measures._shared import ROUNDING, UNSEEN_CHANGE, UNSEEN_SHARE
from harness.measures.divergence import METRICS, PERCENTILES, Divergence
from harness.statistics import Interval, Intervals
from tests.helpers.observed import observe
from tests.helpers.results import by_name, interval, measurements, number


def test_values_match_definitions_on_the_raw_distributions() -> None:
    seen = observe()
    found = by_name(Divergence().measure(seen.table))
    p, q = softmax(seen.reference, axis=1), softmax(seen.variant, axis=1)
    rows = np.arange(len(p))
    kl, reverse = rel_entr(p, q).sum(axis=1), rel_entr(q, p).sum(axis=1)
    delta = q[rows, seen.target] - p[rows, seen.target]
    wanted = {
        "divergence.kl_mean": kl.mean(),
        "divergence.kl_p50": np.median(kl),
        "divergence.kl_p99": np.percentile(kl, 99),
        "divergence.kl_p999": np.percentile(kl, 99.9),
        "divergence.kl_max": kl.max(),
        "divergence.reverse_kl_mean": reverse.mean(),
        "divergence.top1_agreement": accuracy_score(p.argmax(axis=1), q.argmax(axis=1)),
        "divergence.delta_p_mean": delta.mean(),
        "divergence.delta_p_rms": np.sqrt((delta**2).mean()),
        "divergence.total_variation": np.abs(p - q).sum(axis=1).mean() / 2,
    }
    assert set(wanted) == {metric.name for metric in METRICS}
    for name, value in wanted.items():
        assert found[name].change == pytest.approx(value, rel=1e-9), name
    assert kl.mean() != pytest.approx(reverse.mean(), rel=1e-4), "the reference tells both directions apart"


def test_direction_of_delta_p() -> None:
    seen = observe()
    seen.table["variant_nll"] += 0.5
    found = by_name(Divergence().measure(seen.table))["divergence.delta_p_mean"]
    assert number(found.change) < 0
    assert found.better == "higher"


def test_which_metrics_have_intervals() -> None:
    found = by_name(Divergence().measure(observe(documents=60, tokens=40).table))
    without = {name for name, entry in found.items() if entry.low is None}
    assert without == {"divergence.kl_max", "divergence.kl_p999"}
    for entry in found.values():
        if entry.low is not None:
            assert entry.low < number(entry.change) < number(entry.high)
    assert number(found["divergence.kl_mean"].low) > 0


def test_negative_kl_is_an_error_but_rounding_is_not() -> None:
    table = observe(noise=0.0).table
    table["kl"] = -5e-6
    found = by_name(Divergence().measure(table))["divergence.kl_mean"]
    assert found.change == -5e-6, "rounding is shown, not clipped"
    for column in ("kl", "reverse_kl"):
        table = observe().table
        table.loc[5, column] = -2e-5
        with pytest.raises(MeasureError, match=column):
            Divergence().measure(table)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_total_variation_out_of_range_is_an_error(value: float) -> None:
    table = observe().table
    table.loc[5, "total_variation"] = value
    with pytest.raises(MeasureError, match="total_variation"):
        Divergence().measure(table)


def test_infinite_kl_where_the_variant_gives_no_probability_fails_the_variant() -> None:
    table = observe().table
    table.loc[5, "kl"] = np.inf
    assert {entry.non_finite for entry in measurements(Divergence().measure(table))} == {"variant"}


def test_divergences_of_exactly_zero_leave_room_for_documents_that_were_not_seen() -> None:
    table = observe().table
    table["kl"] = table["reverse_kl"] = 0.0
    found = by_name(Divergence().measure(table))["divergence.kl_mean"]
    share = 1 - 0.025 ** (1 / table["document"].nunique())
    assert found.low == found.change == 0
    assert found.high == pytest.approx(0.5 * share, rel=1e-9)


def test_perfect_agreement_is_not_certainty() -> None:
    table = observe(noise=1e-6).table
    table["variant_top1"] = table["reference_top1"]
    found = by_name(Divergence().measure(table))["divergence.top1_agreement"]
    assert found.change == found.high == 1.0
    assert 0.9 < number(found.low) < 1.0


@pytest.mark.parametrize(
    ("column", "value", "refused"),
    [
        ("total_variation", 1 + ROUNDING, False), ("total_variation", 1 + 1.01 * ROUNDING, True),
        ("total_variation", -ROUNDING, False), ("total_variation", -1.01 * ROUNDING, True),
        ("kl", -ROUNDING, False), ("kl", -1.01 * ROUNDING, True),
        ("reverse_kl", -ROUNDING, False), ("reverse_kl", -1.01 * ROUNDING, True),
        ("kl", 1e6, False), ("reverse_kl", 1e6, False),
    ],
)  # fmt: skip
def test_the_range_of_each_column_is_its_definition_and_the_rounding(column: str, value: float, refused: bool) -> None:
    table = observe().table
    table.loc[5, column] = value
    with pytest.raises(MeasureError, match=column) if refused else contextlib.nullcontext():
        Divergence().measure(table)


def test_total_variation_of_one_by_rounding_is_one() -> None:
    table = observe().table
    table["total_variation"] = 1 + ROUNDING
    assert by_name(Divergence().measure(table))["divergence.total_variation"].change == 1.0
    table["total_variation"] = -ROUNDING
    assert by_name(Divergence().measure(table))["divergence.total_variation"].change == 0.0


def test_probabilities_above_one_by_rounding_are_one() -> None:
    table = observe().table
    table["reference_nll"] = -ROUNDING / 2
    table["variant_nll"] = np.log(2)
    assert by_name(Divergence().measure(table))["divergence.delta_p_mean"].change == pytest.approx(-0.5, rel=1e-12)
    table["reference_nll"], table["variant_nll"] = np.log(2), -ROUNDING / 2
    assert by_name(Divergence().measure(table))["divergence.delta_p_mean"].change == pytest.approx(0.5, rel=1e-12)


def test_each_interval_is_that_of_the_range_of_its_number() -> None:
    seen = observe(documents=30, tokens=40)
    found = by_name(Divergence().measure(seen.table))
    table, documents = seen.table, seen.table["document"].to_numpy()
    delta = np.exp(-table["variant_nll"].to_numpy()) - np.exp(-table["reference_nll"].to_numpy())
    square = interval(Intervals().bounded_mean(delta**2, documents, 0.0, 1.0, UNSEEN_SHARE))
    changed = Intervals().bounded_mean(delta, documents, -1.0, 1.0, UNSEEN_SHARE)
    varied = Intervals().bounded_mean(table["total_variation"].to_numpy(), documents, 0.0, 1.0, UNSEEN_SHARE)
    wanted = {
        "delta_p_mean": changed,
        "delta_p_rms": Interval(np.sqrt(square.low), np.sqrt(square.high), ""),
        "total_variation": varied,
        "kl_mean": Intervals().mean(table["kl"].to_numpy(), documents, skewed=True, largest=UNSEEN_CHANGE),
    }
    for name, around in wanted.items():
        ends_of = found[f"divergence.{name}"]
        assert (ends_of.low, ends_of.high) == pytest.approx((interval(around).low, interval(around).high), rel=1e-12)


def test_where_nothing_moves_the_bound_of_each_number_is_that_of_documents_not_seen() -> None:
    """1 − 0.025^(1/n) of unseen documents may change, each by a quarter at most."""
    table = observe(noise=0.0).table
    table["kl"] = table["reverse_kl"] = table["total_variation"] = 0.0
    table["variant_nll"] = table["reference_nll"]
    found = by_name(Divergence().measure(table))
    share = 1 - 0.025 ** (1 / table["document"].nunique())
    assert found["divergence.total_variation"].high == pytest.approx(0.25 * share, rel=1e-9)
    assert found["divergence.total_variation"].low == 0.0
    changed = found["divergence.delta_p_mean"]
    assert (changed.low, changed.high) == pytest.approx((-0.25 * share, 0.25 * share), rel=1e-9)


def test_a_divergence_of_rounding_alone_keeps_its_interval_around_it() -> None:
    """The lower end is at zero, the minimum of a divergence, or at the mean where rounding made that negative."""
    generator = np.random.default_rng(0)
    table = observe(documents=4, tokens=5).table
    table["kl"] = generator.exponential(1.0, len(table)) ** 4
    wide = by_name(Divergence().measure(table))["divergence.kl_mean"]
    assert number(wide.low) >= 0.0
    table["kl"] = -5e-6 + 1e-6 * generator.normal(size=len(table))
    negative = by_name(Divergence().measure(table))["divergence.kl_mean"]
    assert negative.low == negative.change
    table["kl"] = np.where(table["document"] == 0, 5e-5, -4e-6)
    crossing = by_name(Divergence().measure(table))["divergence.kl_mean"]
    assert number(crossing.change) > 0
    assert crossing.low == 0.0


def test_the_tail_is_named_by_its_share() -> None:
    assert PERCENTILES == {"divergence.kl_p50": 0.5, "divergence.kl_p99": 0.99, "divergence.kl_p999": 0.999}


def test_intervals_of_two_documents_end_where_the_numbers_do() -> None:
    table = observe(documents=2, tokens=20).table
    even = table["document"] == table["document"].min()
    table["reference_nll"], table["variant_nll"] = 0.7, np.where(even, 0.7, 6.0)
    table["total_variation"] = np.where(even, 0.1, 0.9)
    found = by_name(Divergence().measure(table))
    for name, ends_of in (("delta_p_mean", (-1.0, 1.0)), ("delta_p_rms", (0.0, 1.0)), ("total_variation", (0.0, 1.0))):
        entry = found[f"divergence.{name}"]
        assert (entry.low, entry.high) == ends_of
