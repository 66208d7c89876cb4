"""The measure of tasks on hand-made tables, against scipy, statsmodels, scikit-learn and plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from harness.errors import MeasureError
from harness.measures.tasks import Tasks
from harness.records import Measurement, Skipped
from tests.helpers.results import ends, measurement, number
from tests.helpers.symmetric_intervals import skewed_ends

MEASURE = Tasks(tasks=("quiz",))


def items(
    reference: list[float],
    variant: list[float],
    *,
    metric: str = "accuracy",
    output_type: str = "multiple_choice",
    better: str = "higher",
    documents: list[int] | None = None,
    answers: tuple[list[str], list[str]] | None = None,
    lls: tuple[list[list[float]], list[list[float]]] | None = None,
    weights: list[float] | None = None,
    **columns: Any,
) -> pd.DataFrame:
    """One task's items; by default the answer follows from the score, and documents are all different."""
    n = len(reference)
    documents = documents or list(range(n))
    by_score = ([str(s) for s in reference], [str(s) for s in variant])
    answers = answers or by_score
    lls = lls or ([[-1.0, -2.0]] * n, [[-1.0, -2.0]] * n)
    frame = pd.DataFrame(
        {
            "task": "quiz",
            "output_type": output_type,
            "metric": metric,
            "doc_id": range(n),
            "doc_hash": [f"d{d}" for d in documents],
            "prompt_hash": [f"p{d}" for d in documents],
            "target_hash": "t",
            "better": better,
            "target": "0",
            "reference_score": reference,
            "variant_score": variant,
            "reference_answer": answers[0],
            "variant_answer": answers[1],
            "reference_loglikelihoods": lls[0],
            "variant_loglikelihoods": lls[1],
            "weight": weights or 1.0,
            "skipped": "",
            "cut": False,
            "bos": "both",
        }
    )
    return frame.assign(**columns)


def measure(*tables: pd.DataFrame) -> dict[str, Measurement | Skipped]:
    found = MEASURE.measure(pd.concat(tables, ignore_index=True))
    by_name: dict[str, Measurement | Skipped] = {}
    for one in found:
        name = one.name if isinstance(one, Measurement) else one.measure
        assert name not in by_name
        by_name[name.removeprefix("tasks.quiz.")] = one
    return by_name


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    reference = [1.0] * both + [1.0] * lost + [0.0] * gained + [0.0] * neither
    variant = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return reference, variant


def independent_score(lost: int, gained: int, n: int, difference: float) -> float:
    """Score of H0 'p10 − p01 = −difference', its likelihood maximised numerically, not in closed form."""
    delta = -difference  # reference − variant

    def minus_likelihood(p01: float) -> float:
        p10, rest = p01 + delta, 1 - 2 * p01 - delta
        return -sum(k * math.log(p) if k else 0.0 for k, p in ((lost, p10), (gained, p01), (n - lost - gained, rest)))

    low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
    found = optimize.minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    p01 = float(found.x)
    return float((lost - gained - n * delta) / math.sqrt(n * (2 * p01 + delta - delta**2)))


@pytest.mark.parametrize(("both", "lost", "gained", "neither"), [(50, 7, 2, 41), (30, 1, 0, 19), (5, 9, 9, 5)])
def test_accuracy_change_has_the_interval_of_the_paired_score_test(
    both: int, lost: int, gained: int, neither: int
) -> None:
    n = both + lost + gained + neither
    found = measurement(measure(items(*pairs(both, lost, gained, neither)))["accuracy"])
    assert found.reference == pytest.approx((both + lost) / n)
    assert found.variant == pytest.approx((both + gained) / n)
    assert found.change == pytest.approx((gained - lost) / n)
    z = stats.norm.ppf(0.975)
    assert found.low is not None
    assert found.high is not None
    assert abs(independent_score(lost, gained, n, found.low)) == pytest.approx(z, abs=1e-4)
    assert abs(independent_score(lost, gained, n, found.high)) == pytest.approx(z, abs=1e-4)
    assert abs(independent_score(lost, gained, n, found.high + 0.01)) > z + 0.01
    alone = proportion_confint(both + gained, n, method="wilson")
    assert (found.variant_low, found.variant_high) == pytest.approx(alone)
    assert (found.n, found.clusters, found.unit, found.better, found.neutral) == (
        n,
        n,
        "share",
        "higher",
        0.0,
    )


def test_the_interval_agrees_with_mcnemar_about_whether_anything_changed() -> None:
    for lost, gained in ((12, 1), (4, 3), (0, 9), (30, 25)):
        table = [[50, lost], [gained, 40]]
        found = measurement(measure(items(*pairs(50, lost, gained, 40)))["accuracy"])
        assert found.low is not None
        assert found.high is not None
        assert (found.low > 0 or found.high < 0) == (mcnemar(table, exact=True).pvalue < 0.05)


def test_flips_count_both_ways_with_exact_intervals() -> None:
    found = measure(items(*pairs(50, 7, 2, 41)))
    for name, k, better in (
        ("flips", 9, "lower"),
        ("flips_to_wrong", 7, "lower"),
        ("flips_to_right", 2, "neither"),
    ):
        one = measurement(found[name])
        assert one.change == pytest.approx(k / 100)
        assert (one.low, one.high) == pytest.approx(proportion_confint(k, 100, method="beta"))
        assert (one.better, one.labels, one.neutral) == (better, {"metric": "accuracy"}, 0.0)


def test_another_wrong_answer_is_a_flip_too() -> None:
    table = items([0.0, 0.0, 1.0], [0.0, 0.0, 1.0], answers=(["1", "2", "0"], ["2", "2", "0"]))
    found = measure(table)
    assert measurement(found["flips"]).change == pytest.approx(1 / 3)
    assert measurement(found["flips_to_wrong"]).change == 0.0
    assert measurement(found["accuracy"]).change == 0.0


def test_where_less_is_better_a_one_is_wrong() -> None:
    found = measure(items([0.0, 0.0, 1.0], [1.0, 1.0, 0.0], better="lower", metric="hallucinated"))
    assert measurement(found["flips_to_wrong"]).change == pytest.approx(2 / 3)
    assert measurement(found["flips_to_right"]).change == pytest.approx(1 / 3)
    assert measurement(found["hallucinated"]).better == "lower"
    assert measurement(found["recovery"]).better == "lower"


def test_identity_is_exactly_neutral_and_never_certain() -> None:
    lls = [[-0.3, -1.7, -2.0], [-2.2, -0.1, -4.0], [-1.0, -1.1, -0.9]] * 20
    scores = [1.0, 0.0, 1.0] * 20
    found = measure(items(scores, scores, lls=(lls, lls)))
    assert set(found) == {"accuracy", "recovery", "flips", "flips_to_wrong", "flips_to_right", "ece", "brier"}
    for name in found:
        assert measurement(found[name]).change == measurement(found[name]).neutral
    accuracy, z2 = measurement(found["accuracy"]), stats.norm.ppf(0.975) ** 2
    assert (accuracy.low, accuracy.high) == pytest.approx((-z2 / (60 + z2), z2 / (60 + z2)))
    recovery = measurement(found["recovery"])
    assert recovery.low is not None
    assert recovery.high is not None
    assert recovery.low < 0.95 < 1.0 < 1.05 < recovery.high


def test_recovery_is_the_share_of_the_reference_that_is_kept() -> None:
    reference, variant = pairs(50, 7, 2, 41)
    one = measurement(measure(items(reference, variant))["recovery"])
    assert one.change == pytest.approx(52 / 57)
    assert one.neutral == 1.0
    # Linearised ratio estimator, one document an item, by hand.
    r, v, n = np.array(reference), np.array(variant), 100
    residuals = v - 52 / 57 * r
    error = math.sqrt(n / (n - 1) * (residuals**2).sum()) / r.sum()
    half = stats.t.ppf(0.975, n - 1) * error
    assert one.low is not None
    assert one.high is not None
    assert one.low <= 52 / 57 - half + 1e-12
    assert one.high >= 52 / 57 + half - 1e-12
    assert one.low >= 52 / 57 - 1.5 * half
    assert one.high <= 52 / 57 + 1.5 * half


def test_recovery_of_nothing_is_skipped_with_the_reason() -> None:
    one = measure(items([0.0, 0.0], [1.0, 0.0]))["recovery"]
    assert isinstance(one, Skipped)
    assert "reference scores 0.0" in one.reason


def test_graded_scores_have_an_interval_clustered_by_document() -> None:
    rng = np.random.default_rng(3)
    reference = rng.uniform(0, 1, 240)
    variant = reference - rng.uniform(-0.1, 0.3, 240)
    documents = [i // 2 for i in range(240)]
    table = items(list(reference), list(variant), metric="rouge", output_type="generate_until", documents=documents)
    found = measure(table)
    assert set(found) == {"rouge", "recovery"}
    one = measurement(found["rouge"])
    d = variant - reference
    sums = np.array([d[i] + d[i + 1] - 2 * d.mean() for i in range(0, 240, 2)])
    error = math.sqrt(120 / 119 * (sums**2).sum()) / 240
    assert one.change == pytest.approx(d.mean())
    assert ends(one) == pytest.approx(skewed_ends(d.mean(), error, sums))
    assert (one.n, one.clusters) == (240, 120)


def test_a_document_that_is_there_twice_is_one_observation() -> None:
    reference, variant = pairs(50, 7, 2, 41)
    single = measure(items(reference, variant))
    twice = measure(items(reference * 2, variant * 2, documents=list(range(100)) * 2))
    for name in ("accuracy", "flips", "flips_to_wrong", "flips_to_right"):
        once, again = measurement(single[name]), measurement(twice[name])
        assert again.change == pytest.approx(once.change)
        assert (again.low, again.high) == pytest.approx((once.low, once.high))
        assert (again.n, again.clusters) == (200, 100)
    assert measurement(twice["accuracy"]).variant_low == pytest.approx(measurement(single["accuracy"]).variant_low)


def test_ece_and_brier_are_of_the_softmax_over_plain_log_likelihoods() -> None:
    rng = np.random.default_rng(0)
    lls = [rng.normal(size=(300, 4)) * scale for scale in (1.0, 3.0)]
    right = [rng.integers(0, 2, 300).astype(float) for _ in lls]
    table = items(list(right[0]), list(right[1]), lls=tuple([list(map(list, x)) for x in lls]))  # type: ignore[arg-type]
    found = measure(table)
    ece, brier = measurement(found["ece"]), measurement(found["brier"])
    expected = []
    for logits, outcome in zip(lls, right, strict=True):
        sure = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
        gaps = [
            abs(outcome[inside].mean() - sure[inside].mean()) * inside.mean()
            for b in range(15)
            if (inside := (sure > b / 15) & (sure <= (b + 1) / 15)).any()
        ]
        expected.append((sum(gaps), ((sure - outcome) ** 2).mean()))
    assert (ece.reference, ece.variant) == pytest.approx((expected[0][0], expected[1][0]))
    assert ece.change == pytest.approx(expected[1][0] - expected[0][0])
    assert (ece.low, ece.high) == (None, None)
    assert "not normalised by length" in ece.method
    assert (brier.reference, brier.variant) == pytest.approx((expected[0][1], expected[1][1]))
    assert brier.low is not None


def test_confidence_is_measured_where_the_most_likely_choice_is_scored_alone() -> None:
    assert "ece" not in measure(items([1.0], [0.0], metric="acc_norm"))
    assert "ece" not in measure(items([1.0], [0.0], output_type="generate_until", lls=([[]], [[]])))


def rolling(metric: str, reference: list[float], variant: list[float], weights: list[float]) -> pd.DataFrame:
    scores = [[-ll / w for ll, w in zip(lls, weights, strict=True)] for lls in (reference, variant)]
    columns = ([[ll] for ll in reference], [[ll] for ll in variant])
    return items(
        *scores,
        metric=metric,
        output_type="loglikelihood_rolling",
        better="lower",
        lls=columns,
        weights=weights,
        answers=([""] * len(weights), [""] * len(weights)),
    )


def test_rolling_tasks_give_bits_per_byte_and_a_paired_perplexity_ratio() -> None:
    rng = np.random.default_rng(1)
    size = rng.integers(20, 200, 120).astype(float)
    reference = -size * rng.uniform(1, 2, 120)
    variant = reference - size * rng.uniform(0.0, 0.2, 120)
    lists = (list(reference), list(variant), list(size))
    found = measure(rolling("word_perplexity", *lists), rolling("bits_per_byte", *lists))
    assert set(found) == {"word_perplexity", "word_perplexity_ratio", "bits_per_byte"}
    bits, ratio, value = (
        measurement(found[name]) for name in ("bits_per_byte", "word_perplexity_ratio", "word_perplexity")
    )
    assert bits.reference == pytest.approx(-reference.sum() / size.sum() / math.log(2))
    assert bits.change == pytest.approx((reference - variant).sum() / size.sum() / math.log(2))
    assert value.reference == pytest.approx(math.exp(-reference.sum() / size.sum()))
    assert value.variant == pytest.approx(math.exp(-variant.sum() / size.sum()))
    assert value.change == pytest.approx(number(value.variant) - number(value.reference))
    delta = (reference - variant).sum() / size.sum()
    assert ratio.change == pytest.approx(math.exp(delta))
    residuals = (reference - variant) - delta * size
    low, high = skewed_ends(delta, math.sqrt(120 / 119 * (residuals**2).sum()) / size.sum(), residuals)
    assert ends(ratio) == pytest.approx((math.exp(low), math.exp(high)))
    assert ends(bits) == pytest.approx((low / math.log(2), high / math.log(2)))
    assert ratio.neutral == 1.0
    assert {one.better for one in (bits, ratio, value)} == {"lower"}


def test_rolling_identity_is_exactly_neutral() -> None:
    lls, sizes = [-11.3, -27.9, -3.1], [7.0, 19.0, 2.0]
    found = measure(rolling("word_perplexity", lls, lls, sizes), rolling("bits_per_byte", lls, lls, sizes))
    for name in found:
        assert measurement(found[name]).change == measurement(found[name]).neutral


def test_a_perplexity_beyond_numbers_is_not_finite_and_no_crash() -> None:
    found = measure(rolling("word_perplexity", [-10.0, -9.0], [-90_000.0, -10.0], [5.0, 5.0]))
    assert {measurement(found[name]).non_finite for name in found} == {"variant"}


@pytest.mark.parametrize(
    ("reference", "variant", "side"),
    [([1.0, 0.0], [math.nan, 0.0], "variant"), ([math.nan, 0.0], [1.0, 0.0], "reference"),
     ([math.nan, 0.0], [1.0, math.nan], "reference"), ([0.5, 0.0], [math.inf, 0.0], "variant")],
)  # fmt: skip
def test_one_nan_is_never_averaged_away(reference: list[float], variant: list[float], side: str) -> None:
    found = measure(items(reference, variant))
    assert {"accuracy", "recovery"} <= set(found)
    for name in found:
        one = measurement(found[name])
        assert (one.non_finite, one.change, one.variant, one.low) == (side, None, None, None)
    assert ("1 of 2 items" in measurement(found["accuracy"]).method) or side == "reference"


def test_a_nan_breaks_as_many_metrics_as_a_number_would_give() -> None:
    whole = measure(items([1.0, 0.0], [1.0, 0.0]))
    assert set(measure(items([1.0, 0.0], [math.nan, 0.0]))) == set(whole)
    lists = ([-1.0, -2.0], [-1.0, math.nan], [1.0, 2.0])
    assert set(measure(rolling("word_perplexity", *lists))) == {"word_perplexity", "word_perplexity_ratio"}


def test_a_metric_of_the_whole_set_is_skipped_with_the_reason() -> None:
    table = items([math.nan] * 2, [math.nan] * 2, metric="f1", skipped="computed over the whole set")
    one = measure(table)["f1"]
    assert isinstance(one, Skipped)
    assert one.measure == "tasks.quiz.f1"
    assert one.reason == "computed over the whole set"


def test_conditions_of_the_prompts_are_told() -> None:
    table = items([1.0, 0.0], [1.0, 0.0], bos="neither", cut=[True, False])
    method = measurement(measure(table)["accuracy"]).method
    assert "prompts begin without BOS" in method
    assert "1 of 2 prompts cut to the context" in method


def test_an_item_twice_or_a_column_less_is_an_error() -> None:
    table = items([1.0, 0.0], [1.0, 0.0])
    with pytest.raises(MeasureError, match="document 0 is accuracy twice"):
        MEASURE.measure(pd.concat([table, table], ignore_index=True))
    with pytest.raises(MeasureError, match="lacks the columns variant_answer"):
        MEASURE.measure(table.drop(columns="variant_answer"))


def test_several_tasks_and_metrics_stay_apart() -> None:
    other = items([1.0, 1.0], [0.0, 0.0]).assign(task="other")
    found = MEASURE.measure(pd.concat([items([1.0, 0.0], [1.0, 0.0]), other], ignore_index=True))
    changes = {one.name: one.change for one in found if isinstance(one, Measurement) and one.name.endswith("accuracy")}
    assert changes == {"tasks.quiz.accuracy": 0.0, "tasks.other.accuracy": -1.0}


def test_the_probe_gets_every_setting() -> None:
    measure = Tasks(tasks=("a", "b"), limit=3, fewshot=2, batch_size=4, include=("x",), bos=False)
    assert measure.probe_settings() == measure.model_dump()
    names = {metric.name for metric in measure.produces()}
    assert {"tasks.a.flips", "tasks.b.ece", "tasks.*.*"} <= names


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_order_does_not_matter_and_sides_mirror(scores: list[tuple[bool, bool]], shuffle: Any) -> None:
    table = items([float(r) for r, _ in scores], [float(v) for _, v in scores])
    rows = list(range(len(scores)))
    shuffle.shuffle(rows)
    found, again = measure(table), measure(table.iloc[rows])
    assert found == again
    mirrored = measure(items([float(v) for _, v in scores], [float(r) for r, _ in scores]))
    one, other = measurement(found["accuracy"]), measurement(mirrored["accuracy"])
    assert one.low is not None
    assert other.high is not None
    assert one.change == -other.change  # type: ignore[operator]
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert measurement(found["flips_to_wrong"]).change == measurement(mirrored["flips_to_right"]).change


@pytest.mark.parametrize("fields", [{"limit": 0}, {"batch_size": 0}, {"fewshot": -1}, {"limit": -1}])
def test_counts_of_nothing_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Tasks(tasks=("quiz",), **fields)  # type: ignore[arg-type]
    least = {name: value + 1 for name, value in fields.items() if value == 0} or {"fewshot": 0}
    Tasks(tasks=("quiz",), **least)  # type: ignore[arg-type]


def test_mcnemar_is_told_where_items_are_independent_and_not_where_they_share_documents() -> None:
    right, wrong = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    apart = measurement(measure(items(right, wrong))["accuracy"])
    assert "1 items gained, 3 lost (exact McNemar p = 0.625); " in apart.method
    shared = measurement(measure(items(right, wrong, documents=[0, 0, 1, 2]))["accuracy"])
    assert "McNemar" not in shared.method
