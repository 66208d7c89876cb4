"""Estimators against independent references, each of which is shown to notice a broken argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from random import Random

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness.statistics import (
    Interval,
    bounded_mean_interval,
    brier_scores,
    calibration_error,
    clopper_pearson,
    holm,
    mcnemar_p,
    mean,
    mean_interval,
    p_value_of_interval,
    proportion_interval,
    quantile_intervals,
    quantiles,
    ratio_of_sums,
    ratio_of_sums_interval,
    tango_interval,
    wilson_interval,
)
from tests.helpers.results import interval


def clustered(count: int, size: int, seed: int, between: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Normal values of clusters of uneven size that have effects of their own."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(max(size // 2, 1), size * 2, count)
    labels = np.repeat(np.arange(count), sizes)
    return between * generator.normal(size=count)[labels] + generator.normal(size=len(labels)), labels


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def robust(values: np.ndarray, weights: np.ndarray, labels: np.ndarray, confidence: float) -> tuple[float, float]:
    """Cluster-robust t interval of a weighted mean, by statsmodels."""
    fit = sm.WLS(values, np.ones_like(values), weights=weights).fit(
        cov_type="cluster", cov_kwds={"groups": labels}, use_t=True
    )
    return tuple(fit.conf_int(1 - confidence)[0])


class TestMeans:
    @pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
    def test_mean_interval_is_the_cluster_robust_t_interval(self, confidence: float) -> None:
        values, labels = clustered(30, 20, seed=1)
        found = ends(mean_interval(values, labels, confidence))
        assert found == pytest.approx(robust(values, np.ones_like(values), labels, confidence), rel=1e-9)
        assert found != pytest.approx(
            robust(values, np.ones_like(values), np.arange(len(values)), confidence), rel=0.05
        ), "the reference must notice that clusters are ignored"

    def test_ratio_of_sums_interval_is_the_cluster_robust_interval_of_a_weighted_mean(self) -> None:
        values, labels = clustered(25, 15, seed=2)
        weights = np.random.default_rng(3).uniform(0.5, 4, len(values))
        found = ends(ratio_of_sums_interval(values * weights, weights, labels))
        assert found == pytest.approx(robust(values, weights, labels, 0.95), rel=1e-9)
        assert found != pytest.approx(robust(values, np.ones_like(weights), labels, 0.95), rel=1e-3)
        assert ratio_of_sums(values * weights, weights) == pytest.approx(np.average(values, weights=weights))

    def test_few_clusters_widen_the_t_interval_for_skewed_clusters(self) -> None:
        generator = np.random.default_rng(5)
        values = np.exp(1.2 * generator.normal(size=8)).repeat(10)
        labels = np.arange(8).repeat(10)
        low, high = ends(mean_interval(values, labels))
        plain_low, plain_high = robust(values, np.ones_like(values), labels, 0.95)
        assert low <= plain_low
        assert high > plain_high
        assert "bootstrap-t" in interval(mean_interval(values, labels)).method

    def test_one_cluster_or_none_gives_no_interval(self) -> None:
        assert mean_interval([1.0, 2.0, 3.0], [0, 0, 0]) is None
        assert mean_interval([], []) is None
        assert proportion_interval([1.0, 0.0], [4, 4]) is None
        assert bounded_mean_interval([0.2, 0.3], [4, 4], 0, 1) is None
        assert quantile_intervals([0.2, 0.3], [4, 4], [0.5]) == (None,)

    def test_equal_values_give_an_interval_that_calls_itself_none(self) -> None:
        found = interval(mean_interval([0.1] * 7, [0, 0, 0, 1, 1, 2, 2]))
        assert ends(found) == (0.1, 0.1)
        assert "no interval" in found.method
        assert mean([0.1] * 7) == 0.1

    def test_clusters_without_spread_are_not_taken_for_a_narrow_interval(self) -> None:
        values = np.random.default_rng(0).normal(size=50)
        found = interval(mean_interval(np.tile(values, 30), np.arange(30).repeat(50)))
        assert found.low == found.high, "copies of one document would give a width of a rounding error"
        assert "no spread" in found.method

    def test_bad_input_is_refused(self) -> None:
        for bad in (math.nan, math.inf):
            with pytest.raises(ValueError, match="NaN or infinity"):
                mean_interval([1.0, bad], [0, 1])
        with pytest.raises(ValueError, match="cluster labels"):
            mean_interval([1.0, 2.0], [0])
        with pytest.raises(ValueError, match="denominators sum"):
            ratio_of_sums_interval([1.0, 2.0], [0.0, 0.0], [0, 1])
        with pytest.raises(ValueError, match="at least one"):
            mean([])

    @given(seed=st.integers(0, 10_000), count=st.integers(2, 30))
    @settings(max_examples=25, deadline=None)
    def test_order_and_names_of_clusters_change_no_bit(self, seed: int, count: int) -> None:
        values, labels = clustered(count, 6, seed)
        weights = np.abs(values) + 0.1
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(values))
        renamed = np.array([f"d{name}" for name in generator.permutation(count)])[labels]
        for estimate in (
            lambda v, w, c: mean_interval(v, c),
            lambda v, w, c: ratio_of_sums_interval(v, w, c),
            lambda v, w, c: proportion_interval(v > 0, c),
            lambda v, w, c: quantile_intervals(v, c, [0.5, 0.9]),
            lambda v, w, c: mean(v),
        ):
            assert estimate(values, weights, labels) == estimate(values[order], weights[order], renamed[order])

    @pytest.mark.parametrize("count", [6, 12, 25])
    def test_coverage(self, count: int) -> None:
        """The t interval over documents covers 95 %; one over independent tokens covers far less."""
        generator = np.random.default_rng(4242 + count)
        labels = np.arange(count).repeat(40)
        document = 0.04 * generator.normal(size=(300, count)).repeat(40, axis=1)
        values = document + 0.2 * generator.normal(size=(300, count * 40))
        covered = np.mean([low <= 0 <= high for low, high in (ends(mean_interval(row, labels)) for row in values)])
        single = np.mean([abs(row.mean()) <= 1.96 * row.std(ddof=1) / math.sqrt(len(row)) for row in values])
        assert 0.92 <= covered <= 0.99
        assert single < 0.85


class TestProportions:
    @pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 17), (250, 1000)])
    def test_single_proportions_match_statsmodels(self, successes: int, n: int) -> None:
        exact, score = clopper_pearson(successes, n, 0.9), wilson_interval(successes, n, 0.9)
        assert ends(exact) == pytest.approx(proportion_confint(successes, n, 0.1, "beta"), abs=1e-12)
        assert ends(score) == pytest.approx(proportion_confint(successes, n, 0.1, "wilson"), abs=1e-12)
        assert ends(exact) != pytest.approx(proportion_confint(successes, n, 0.05, "beta"), abs=1e-6)
        assert ends(score) != pytest.approx(proportion_confint(successes, n, 0.05, "wilson"), abs=1e-6)

    def test_nothing_and_nonsense(self) -> None:
        assert clopper_pearson(0, 0) is wilson_interval(0, 0) is tango_interval(0, 0, 0) is None
        wrongs: list[Callable[[], object]] = [
            lambda: clopper_pearson(3, 2),
            lambda: wilson_interval(-1, 2),
            lambda: tango_interval(2, 2, 3),
        ]
        for wrong in wrongs:
            with pytest.raises(ValueError, match="expected"):
                wrong()

    @pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 20), (1, 0, 44), (9, 3, 60), (3, 9, 60), (20, 20, 40), (0, 7, 7)])
    def test_tango_matches_maximised_likelihood(self, b: int, c: int, n: int) -> None:
        low, high = ends(tango_interval(b, c, n))
        for end, quantile in ((low, 1.959963984540054), (high, -1.959963984540054)):
            if abs(end) < 1:
                assert score_by_likelihood(b, c, n, end) == pytest.approx(quantile, abs=2e-4)
                assert score_by_likelihood(c, b, n, end) != pytest.approx(quantile, abs=2e-4) or b == c
        assert (-high, -low) == ends(tango_interval(c, b, n)), "swapping the sides mirrors the interval"

    @pytest.mark.parametrize(("b", "c"), [(1, 0), (9, 3), (3, 9), (20, 20), (0, 7)])
    def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(self, b: int, c: int) -> None:
        assert mcnemar_p(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue)
        assert mcnemar_p(0, 0) == 1.0
        with pytest.raises(ValueError, match="expected"):
            mcnemar_p(-1, 2)

    def test_tango_without_discordance_is_not_a_point(self) -> None:
        z2 = stats.norm.ppf(0.975) ** 2
        assert ends(tango_interval(0, 0, 100)) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))

    @pytest.mark.parametrize(("n", "discordant"), [(50, 0.05), (100, 0.02), (100, 0.05)])
    def test_tango_seldom_passes_a_drop_as_large_as_the_margin(self, n: int, discordant: float) -> None:
        """Exact probability that the upper end is below the true drop; the plug-in error passes more."""
        margin = discordant * 0.6
        probabilities = [(discordant + margin) / 2, (discordant - margin) / 2, 1 - discordant]
        false_pass = {"tango": 0.0, "plug-in": 0.0}
        for b, c in product(range(16), range(16)):
            probability = stats.multinomial.pmf([b, c, n - b - c], n, probabilities)
            difference = (b - c) / n
            plug_in = difference + 1.96 * math.sqrt(b + c - (b - c) ** 2 / n) / n
            false_pass["tango"] += probability * (ends(tango_interval(b, c, n))[1] < margin)
            false_pass["plug-in"] += probability * (plug_in < margin)
        assert false_pass["tango"] <= 0.03
        assert false_pass["plug-in"] > 0.06

    def test_clustered_proportion_is_clopper_pearson_at_the_effective_size(self) -> None:
        generator = np.random.default_rng(8)
        labels = np.arange(40).repeat(25)
        right = (generator.random(1000) < generator.beta(9, 1, 40)[labels]).astype(float)
        fit = sm.OLS(right, np.ones(1000)).fit(cov_type="cluster", cov_kwds={"groups": labels}, use_t=True)
        share, error = fit.params[0], fit.bse[0]
        size = share * (1 - share) / error**2 * (stats.t.ppf(0.975, 999) / stats.t.ppf(0.975, 39)) ** 2
        wanted = (
            stats.beta.ppf(0.025, share * size, size - share * size + 1),
            stats.beta.ppf(0.975, share * size + 1, size - share * size),
        )
        assert ends(proportion_interval(right, labels)) == pytest.approx(wanted, rel=1e-9)
        assert ends(proportion_interval(right, np.arange(1000))) != pytest.approx(wanted, rel=1e-3)

    def test_agreement_without_exception_says_as_much_as_there_are_documents(self) -> None:
        bound = 1 - 0.025 ** (1 / 30)
        for labels in (np.arange(30).repeat(20), np.arange(30).repeat(2000)):
            ones = np.ones(len(labels))
            assert ends(proportion_interval(ones, labels)) == pytest.approx((1 - bound, 1.0))
            assert ends(proportion_interval(ones, labels, largest=0.25)) == pytest.approx((1 - bound / 4, 1.0))
            assert ends(proportion_interval(0 * ones, labels)) == pytest.approx((0.0, bound))
        found = proportion_interval(np.ones(60), np.arange(30).repeat(2), largest=0.25)
        assert found is not None
        assert "(none of 30 did), each by at most 0.25, as declared" in found.method
        for few in (proportion_interval, lambda ones, labels: bounded_mean_interval(ones, labels, 0.0, 1.0)):
            assert few(np.ones(4), np.zeros(4)) is None
            with pytest.raises(ValueError, match="cluster labels"):
                few(np.ones(4), np.arange(3))

    def test_agreement_in_all_documents_seen_seldom_passes_where_few_are_touched(self) -> None:
        """One document of twenty differs in a fifth of its tokens, so 99 % agree; of 20 documents often none is it."""
        generator, passed, clean = np.random.default_rng(8), 0, 0
        labels = np.arange(20).repeat(256)
        for _ in range(300):
            touched = generator.random(20) < 0.05
            same = ~(touched[labels] & (generator.random(len(labels)) < 0.2))
            low, _high = ends(proportion_interval(same, labels, largest=0.25))
            passed, clean = passed + (low >= 0.99), clean + bool(same.all())
        assert clean / 300 > 0.25
        assert passed / 300 <= 0.05

    def test_coverage_of_clustered_proportions(self) -> None:
        generator = np.random.default_rng(77)
        labels = np.arange(30).repeat(20)
        hits = 0
        for _ in range(300):
            right = generator.random(600) < generator.beta(19, 1, 30)[labels]
            low, high = ends(proportion_interval(right, labels))
            hits += low <= 0.95 <= high
        assert hits / 300 >= 0.93

    def test_bounded_means_keep_their_range_and_never_collapse(self) -> None:
        labels = np.arange(10).repeat(10)
        low, high = ends(bounded_mean_interval(np.zeros(100), labels, 0.0, 1.0))
        assert (low, high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
        low, high = ends(bounded_mean_interval(np.zeros(100), labels, -1.0, 1.0, largest=0.25))
        assert (low, high) == pytest.approx((-high, 0.25 * (1 - 0.025 ** (1 / 10))))
        skewed = np.where(np.arange(100) == 0, 1.0, 0.0)
        assert ends(bounded_mean_interval(skewed, labels, 0.0, 1.0))[0] == 0.0
        with pytest.raises(ValueError, match="expected 0"):
            bounded_mean_interval([0.5, 1.5], [0, 1], 0.0, 1.0)


def score_by_likelihood(b: int, c: int, n: int, difference: float) -> float:
    """Tango's statistic, with the likelihood maximised numerically instead of in closed form."""

    def minus_log_likelihood(second: float) -> float:
        parts = ((b, second + difference), (c, second), (n - b - c, 1 - 2 * second - difference))
        return -sum(times * math.log(max(p, 1e-300)) for times, p in parts if times)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    second = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (b - c - n * difference) / math.sqrt(n * (2 * second + difference - difference**2))


class TestQuantiles:
    def test_estimates_are_linear_quantiles(self) -> None:
        values = np.random.default_rng(0).normal(size=500)
        assert quantiles(values, [0.5, 0.99]) == pytest.approx(np.quantile(values, [0.5, 0.99]))

    def test_agrees_with_the_document_bootstrap(self) -> None:
        generator = np.random.default_rng(3)
        documents = np.exp(0.4 * generator.normal(size=(100, 1)) + generator.normal(size=(100, 100)))
        low, high = ends(quantile_intervals(documents.ravel(), np.arange(100).repeat(100), [0.95])[0])
        draws = [np.quantile(documents[generator.integers(100, size=100)], 0.95) for _ in range(400)]
        assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), rel=0.06)
        single = [np.quantile(generator.choice(documents.ravel(), 10_000), 0.95) for _ in range(400)]
        assert (low, high) != pytest.approx(np.quantile(single, [0.025, 0.975]), rel=0.06)

    def test_a_quantile_beyond_the_data_has_no_interval(self) -> None:
        values, labels = clustered(30, 20, seed=1)
        middle, far = quantile_intervals(values, labels, [0.5, 0.999])
        assert middle is not None
        assert far is None

    @pytest.mark.parametrize("probability", [0.5, 0.95])
    def test_coverage(self, probability: float) -> None:
        generator = np.random.default_rng(12)
        labels = np.arange(24).repeat(50)
        truth = stats.norm.ppf(probability, scale=math.sqrt(1.25))
        hits = 0
        for _ in range(300):
            values = (0.5 * generator.normal(size=(24, 1)) + generator.normal(size=(24, 50))).ravel()
            low, high = ends(quantile_intervals(values, labels, [probability])[0])
            hits += low <= truth <= high
        assert hits / 300 >= 0.92


class TestCalibration:
    def observed(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        sure = generator.beta(4, 2, 2000)
        return sure, (generator.random(2000) < 1.7 * sure - 0.45).astype(float)

    @pytest.mark.parametrize(("equal_mass", "strategy"), [(False, "uniform"), (True, "quantile")])
    def test_matches_sklearn(self, equal_mass: bool, strategy: str) -> None:
        sure, right = self.observed()
        accuracy, confidence = calibration_curve(right, sure, n_bins=10, strategy=strategy)
        edges = np.quantile(sure, np.arange(11) / 10) if equal_mass else np.arange(11) / 10
        sizes = np.histogram(sure, edges)[0]
        wanted = float(np.sum(sizes[sizes > 0] * np.abs(accuracy - confidence)) / len(sure))
        assert calibration_error(sure, right, 10, equal_mass) == pytest.approx(wanted, rel=1e-9)
        assert calibration_error(sure, 1 - right, 10, equal_mass) != pytest.approx(wanted, rel=0.1)
        assert calibration_error(sure, right, 3, equal_mass) != pytest.approx(wanted, rel=1e-2)

    @pytest.mark.slow
    def test_matches_torchmetrics(self) -> None:
        torch = pytest.importorskip("torch")
        functional = pytest.importorskip("torchmetrics.functional.classification")
        sure, right = self.observed(1)
        # Class 0 never is on top, so it is the target wherever the top class is to be wrong.
        classes = torch.tensor(np.stack([np.zeros_like(sure), sure, 1 - sure], axis=1))
        top = torch.tensor(np.maximum(sure, 1 - sure))
        predicted = np.where(sure >= 0.5, 1, 2)
        target = np.where(right > 0, predicted, 0)
        wanted = functional.multiclass_calibration_error(classes, torch.tensor(target), num_classes=3, n_bins=15)
        assert calibration_error(top.numpy(), right, 15) == pytest.approx(float(wanted), rel=1e-6)
        assert calibration_error(top.numpy(), right, 3) != pytest.approx(float(wanted), rel=1e-3)

    def test_brier_matches_sklearn(self) -> None:
        sure, right = self.observed()
        assert mean(brier_scores(sure, right)) == pytest.approx(brier_score_loss(right, sure))
        assert mean(brier_scores(sure, 1 - right)) != pytest.approx(brier_score_loss(right, sure), rel=0.1)

    @given(
        st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]), st.booleans()), min_size=1, max_size=40),
        st.randoms(),
    )
    @settings(max_examples=50, deadline=None)
    def test_order_does_not_matter_even_with_ties(self, rows: list[tuple[float, bool]], random: Random) -> None:
        shuffled = list(rows)
        random.shuffle(shuffled)
        for equal_mass in (False, True):
            first = calibration_error([c for c, _ in rows], [r for _, r in rows], 5, equal_mass)
            assert first == calibration_error([c for c, _ in shuffled], [r for _, r in shuffled], 5, equal_mass)
            assert 0 <= first <= 1

    def test_bad_input_is_refused(self) -> None:
        for sure, right in (([], []), ([0.5], [1, 0]), ([1.5], [1]), ([0.5], [2])):
            with pytest.raises(ValueError, match="found"):
                calibration_error(sure, right)
        with pytest.raises(ValueError, match="bins"):
            calibration_error([0.5], [1], 0)


class TestManyRules:
    @pytest.mark.parametrize("seed", range(8))
    def test_holm_matches_statsmodels(self, seed: int) -> None:
        p_values = (np.random.default_rng(seed).random(seed + 2) ** 6).tolist()
        assert holm(p_values, 0.025) == list(multipletests(p_values, alpha=0.025, method="holm")[0])

    def test_holm_is_not_bonferroni(self) -> None:
        p_values = [0.001, 0.0124, 0.02]
        assert holm(p_values, 0.025) == [True, True, True]
        assert list(multipletests(p_values, alpha=0.025, method="bonferroni")[0]) == [True, False, False]

    def test_p_value_is_that_of_the_t_test_behind_the_interval(self) -> None:
        values, labels = clustered(30, 10, seed=9)
        low, _ = ends(mean_interval(values, labels))
        limit = low - 0.1
        fit = sm.OLS(values - limit, np.ones_like(values)).fit(
            cov_type="cluster", cov_kwds={"groups": labels}, use_t=True
        )
        found = p_value_of_interval(mean(values) - limit, mean(values) - low, 0.95, 30)
        assert found == pytest.approx(fit.pvalues[0] / 2, rel=1e-6)
        assert found != pytest.approx(stats.norm.sf(fit.tvalues[0]), rel=1e-2)
        assert p_value_of_interval(0.1, 0.1, 0.95, 30) == pytest.approx(0.025)
        assert p_value_of_interval(0.1, 0.0, 0.95, 30) == 0.0


class TestSkewedMeans:
    def skewed(self, documents: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        labels = np.arange(documents).repeat(8)
        return np.exp(generator.normal(size=documents)[labels] + generator.normal(size=len(labels))), labels

    def test_ends_are_where_halls_transformation_is_the_t_quantile(self) -> None:
        values, labels = self.skewed(150, 1)
        low, high = ends(mean_interval(values, labels, skewed=True))
        sums = np.bincount(labels, weights=values - values.mean())
        error = math.sqrt(150 / 148 * 150 / 149 * (sums**2).sum()) / len(values)
        lean = stats.skew(sums) / math.sqrt(150)

        def transformed(end: float) -> float:
            t = (values.mean() - end) / error
            return float(t + lean * t**2 / 3 + lean**2 * t**3 / 27 + lean / 6)

        assert transformed(high) == pytest.approx(-stats.t.ppf(0.975, 149), rel=1e-9)
        plain = ends(mean_interval(values, labels))
        assert high > plain[1] + 0.05 * (plain[1] - plain[0]), "the long side"
        assert low <= plain[0]

    def test_without_skewness_it_is_the_t_interval(self) -> None:
        values = np.concatenate([np.arange(200.0), -np.arange(200.0)])
        plain, skewed = (ends(mean_interval(values, range(400), skewed=each)) for each in (False, True))
        assert skewed == pytest.approx(np.array(plain) * math.sqrt(400 / 398), rel=1e-9)

    def test_few_documents_ask_the_bootstrap_too(self) -> None:
        assert "bootstrap-t" in interval(mean_interval(*self.skewed(60, 2), skewed=True)).method
        assert "bootstrap-t" not in interval(mean_interval(*self.skewed(60, 2))).method
        assert "bootstrap-t" not in interval(mean_interval(*self.skewed(100, 2), skewed=True)).method


class TestCopies:
    """Copies of one document, however many tokens it has, count no more than as many single observations."""

    def test_of_shares(self) -> None:
        right, labels = np.tile([1.0] * 9 + [0.0], 30), np.arange(30).repeat(10)
        low, high = ends(proportion_interval(right, labels))
        wanted = proportion_confint(27, 30, method="beta")
        assert (low, high) == pytest.approx(wanted, abs=0.01)
        assert high - low > 2 * np.diff(ends(proportion_interval(right, np.arange(300))))

    def test_of_quantiles(self) -> None:
        values, labels = np.tile(np.arange(20.0), 30), np.arange(30).repeat(20)
        ((low, high),) = (ends(found) for found in quantile_intervals(values, labels, [0.5]))
        half = stats.t.ppf(0.975, 29) * 0.5 / math.sqrt(30)
        assert (low, high) == (
            np.quantile(values, 0.5 - half, method="lower"), np.quantile(values, 0.5 + half, method="higher"),
        )  # fmt: skip
