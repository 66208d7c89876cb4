from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score

from harness.errors import MeasureError
from harness.measures.divergence import METRICS, Divergence
from tests.helpers.observed import observe
from tests.helpers.results import by_name, measurements, number


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
