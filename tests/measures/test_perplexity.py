from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.stats.proportion import proportion_confint

from harness.measures._common.text_bits import BITS
from harness.measures.perplexity import Perplexity
from harness.records import Measurement, Skipped
from harness.rules.at_most import AtMost
from tests.helpers.observed import observe
from tests.helpers.results import by_name, ends, measurement, number, with_skipped
from tests.helpers.symmetric_intervals import SymmetricIntervals


def clustered_t(values: np.ndarray, document: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Document-clustered t interval of a (weighted) mean, by statsmodels."""
    weights = np.ones_like(values) if weights is None else weights
    fit = sm.WLS(values, np.ones_like(values), weights=weights).fit(
        cov_type="cluster", cov_kwds={"groups": document}, use_t=True
    )
    return np.asarray(fit.conf_int()[0])


@pytest.mark.parametrize(
    ("losses", "share", "worst"),
    [
        ((0.25, 0.25, 0.0), 0.0, "0"), ((0.25, 0.2501, 0.3), 2 / 3, "2"), ((-1.0, 0.0, -0.5), 0.0, None),
        ((0.0, 1.0, 0.0), 1 / 3, "1"), ((-1.0, 0.001, -0.5), 0.0, "1"),
    ],
)  # fmt: skip
def test_a_document_is_broken_beyond_the_very_loss_and_the_worst_is_named_only_if_it_loses(
    losses: tuple[float, ...], share: float, worst: str | None
) -> None:
    table = observe(documents=3, tokens=8).table
    table["document"] = np.arange(len(table)) * 3 // len(table)
    table["reference_nll"] = 1.0
    table["variant_nll"] = 1.0 + np.array(losses)[table["document"]]
    found = by_name(Perplexity().measure(table))["perplexity.broken_documents"]
    assert found.change == share
    assert found.labels.get("worst_document") == worst
    assert ("the worst loses" in found.method) is (worst is not None)


@pytest.mark.parametrize(
    ("spans", "measured"),
    [
        ([0.0, 3.0], True), ([0.0, 0.0], False), ([-1.0, 3.0], False), ([np.nan, 3.0], False), ([np.inf, 3.0], False),
        ([1.0, 2.0], True),
    ],
)  # fmt: skip
def test_bytes_of_tokens_are_none_or_some_and_never_unknown(spans: list[float], measured: bool) -> None:
    """A token may cover no byte (BOS, half a character); a tokenizer that reports none has no bits per byte."""
    table = observe().table
    table["bytes"] = np.resize(spans, len(table))
    found = Perplexity().measure(table)
    names = {entry.name for entry in found if isinstance(entry, Measurement)}
    assert (BITS.name in names) is measured


def test_values_and_intervals_match_statsmodels() -> None:
    seen = observe(documents=40)
    table = seen.table
    found = by_name(Perplexity().measure_by(table, SymmetricIntervals()))
    reference, variant = table["reference_nll"].to_numpy(), table["variant_nll"].to_numpy()
    delta = variant - reference
    value, ratio = found["perplexity.value"], found["perplexity.ratio"]
    assert value.reference == pytest.approx(math.exp(reference.mean()))
    assert value.variant == pytest.approx(math.exp(variant.mean()))
    assert value.change == number(value.variant) - number(value.reference)
    assert (value.variant_low, value.variant_high) == pytest.approx(np.exp(clustered_t(variant, seen.document)))
    assert ratio.change == pytest.approx(number(value.variant) / number(value.reference))
    assert (ratio.low, ratio.high) == pytest.approx(np.exp(clustered_t(delta, seen.document)))
    assert ratio.reference is ratio.variant is None
    nll = found["perplexity.nll_delta"]
    assert nll.change == pytest.approx(delta.mean())
    assert (nll.low, nll.high) == pytest.approx(clustered_t(delta, seen.document))
    assert (nll.low, nll.high) != pytest.approx(clustered_t(delta, np.arange(len(delta))), rel=1e-2)


def test_difference_of_perplexities_has_the_delta_method_interval() -> None:
    seen = observe(documents=40)
    value = by_name(Perplexity().measure_by(seen.table, SymmetricIntervals()))["perplexity.value"]
    sums = seen.table.groupby("document")[["reference_nll", "variant_nll"]].sum()
    size = seen.table.groupby("document").size().to_numpy()

    def difference(keep: np.ndarray) -> float:
        means = sums[keep].sum() / size[keep].sum()
        return math.exp(means["variant_nll"]) - math.exp(means["reference_nll"])

    jackknife = np.array([difference(np.arange(40) != left_out) for left_out in range(40)])
    error = math.sqrt(39 / 40 * ((jackknife - jackknife.mean()) ** 2).sum())
    low, high = ends(value)
    assert (high - low) / 2 == pytest.approx(2.0227 * error, rel=0.05)


def test_pairing_beats_the_difference_of_two_intervals() -> None:
    value = by_name(Perplexity().measure(observe(noise=0.02).table))["perplexity.value"]
    low, high = ends(value)
    assert high - low < (number(value.variant_high) - number(value.variant_low)) / 5


def test_bits_per_byte() -> None:
    seen = observe(documents=40)
    found = by_name(Perplexity().measure_by(seen.table, SymmetricIntervals()))["perplexity.bits_per_byte"]
    spans = seen.table["bytes"].to_numpy(dtype=float)
    delta = (seen.table["variant_nll"] - seen.table["reference_nll"]).to_numpy() / math.log(2)
    assert found.variant == pytest.approx(seen.table["variant_nll"].sum() / math.log(2) / spans.sum())
    assert found.change == pytest.approx(number(found.variant) - number(found.reference))
    assert (found.low, found.high) == pytest.approx(clustered_t(delta / spans, seen.document, spans))


@pytest.mark.parametrize("spans", [np.nan, 0.0, -1.0])
def test_unknown_bytes_are_skipped_by_name(spans: float) -> None:
    table = observe().table
    table["bytes"] = table["bytes"].where(table.index != 4, spans) if spans != 0.0 else 0.0
    found = with_skipped(Perplexity().measure(table))
    assert isinstance(found["perplexity.bits_per_byte"], Skipped)
    assert measurement(found["perplexity.ratio"]).change is not None


@pytest.mark.parametrize(("side", "other"), [("reference", "variant"), ("variant", "reference")])
def test_perplexity_of_infinity_is_not_a_number(side: str, other: str) -> None:
    table = observe().table
    table[f"{side}_nll"] = 1000.0
    table[f"{other}_nll"] = 2.0
    found = by_name(Perplexity().measure(table))
    assert found["perplexity.value"].non_finite == side
    assert found["perplexity.ratio"].non_finite == side
    assert f"perplexity of the {side} is inf" in found["perplexity.value"].method
    assert found["perplexity.nll_delta"].non_finite is None


@pytest.mark.parametrize("documents", [20, 200])
def test_no_change_at_all_is_bounded_by_what_unseen_documents_are_declared_to_change(documents: int) -> None:
    table = pd.DataFrame({"document": np.repeat(np.arange(documents), 3), "bytes": 1.0})
    table["reference_nll"] = table["variant_nll"] = 2.0
    table["reference_top1_p"] = table["variant_top1_p"] = 0.5
    found = by_name(Perplexity().measure(table))["perplexity.nll_delta"]
    share = 1 - 0.025 ** (1 / documents)  # the exact bound when none of so many was seen
    assert found.change == 0
    assert found.high == pytest.approx(0.5 * share, rel=1e-9)
    assert found.low == -number(found.high)
    assert f"none of {documents}" in found.method


def test_constant_damage_is_no_interval() -> None:
    table = observe().table
    table["reference_nll"], table["variant_nll"] = 2.0, 2.25
    found = by_name(Perplexity().measure(table))
    for name in ("perplexity.ratio", "perplexity.nll_delta", "perplexity.value"):
        assert found[name].low == found[name].high == found[name].change
        assert "no interval" in found[name].method


def loss_table(losses: np.ndarray, tokens: int = 4) -> pd.DataFrame:
    """Documents on every token of which the variant loses so many nats more than the reference."""
    documents = np.repeat(np.arange(len(losses)), tokens)
    table = pd.DataFrame({"document": documents, "bytes": 1.0, "reference_nll": 2.0})
    table["variant_nll"] = 2.0 + losses[documents]
    table["reference_top1_p"] = table["variant_top1_p"] = 0.5
    return table


def broken(losses: np.ndarray, **settings: float) -> Measurement:
    return by_name(Perplexity(**settings).measure(loss_table(losses)))["perplexity.broken_documents"]


def test_intervals_mind_that_damage_sits_in_few_documents() -> None:
    losses = np.random.default_rng(1).lognormal(-4.6, 1.2, 50)
    table = loss_table(losses)
    for name in ("perplexity.ratio", "perplexity.nll_delta", "perplexity.value", "perplexity.bits_per_byte"):
        found = by_name(Perplexity().measure(table))[name]
        plain = by_name(Perplexity().measure_by(table, SymmetricIntervals()))[name]
        assert ends(found)[1] - number(found.change) > 1.2 * (ends(plain)[1] - number(plain.change))
        assert "Hall" in found.method


def test_broken_documents_are_counted_exactly_and_the_worst_is_named() -> None:
    losses = np.full(200, 0.01)
    losses[[3, 17, 40]] = 0.3, 0.9, 0.26
    found = broken(losses)
    assert found.change == 3 / 200
    low, high = proportion_confint(3, 200, method="beta")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.labels == {"worst_document": "17"}
    assert "3 of 200 documents lose more than 0.25 nats/token" in found.method
    assert "cannot exclude a share of 4.3 %" in found.method
    assert (found.n, found.clusters) == (800, 200)


def test_what_counts_as_broken_is_a_setting() -> None:
    losses = np.full(100, 0.01)
    losses[:2] = 0.1
    assert broken(losses).change == 0
    assert broken(losses, broken_above=0.05).change == 0.02
    with pytest.raises(ValueError, match="broken_above"):
        Perplexity(broken_above=0.0)


@pytest.mark.parametrize("documents", [20, 71, 72, 500])
def test_where_no_document_is_broken_their_number_bounds_the_share(documents: int) -> None:
    found = broken(np.linspace(0, 0.02, documents))
    assert found.change == found.low == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / documents))
    assert (number(found.high) < 0.05) == (documents >= 72)


def test_five_percent_of_broken_documents_never_pass_the_gate_ship() -> None:
    rule = AtMost(metric="perplexity.broken_documents", limit=0.05, why="as in the gate ship")
    for documents in (20, 100, 1000, 20_000):
        losses = np.zeros(documents)
        losses[: documents // 20] = 0.4
        assert rule.judge(broken(losses), identical=False).status != "pass"
