"""Published answers of four systems to the same 1,319 problems: every pair compared as scipy and statsmodels do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from harness.judge import judge
from harness.measures.tasks import Tasks
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement
from harness.rules.not_worse import NotWorse
from harness.statistics import mcnemar_p, mean_interval, tango_interval, tango_score

SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PAIRS = list(itertools.combinations(SYSTEMS, 2))
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])


@pytest.fixture(scope="module")
def answered(shared_data: Path) -> list[dict[str, Any]]:
    file = shared_data / "tasks" / "gsm8k_paired_outcomes_4systems.jsonl"
    if not file.is_file():
        pytest.skip(f"needs {file.name}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(answered: list[dict[str, Any]], pair: tuple[str, str]) -> pd.DataFrame:
    """The items table that the probe would have left."""
    before, after = ([row[system] for row in answered] for system in pair)
    return pd.DataFrame(
        {
            "task": "gsm8k", "output_type": "generate_until", "metric": "exact_match", "better": "higher",
            "doc_id": range(len(answered)), "doc_hash": [row["id"] for row in answered],
            "prompt_hash": [row["question_sha1"] for row in answered], "target_hash": [row["gold"] for row in answered],
            "reference_score": [float(one["correct"]) for one in before],
            "variant_score": [float(one["correct"]) for one in after],
            "reference_answer": [str(one["answer"]) for one in before],
            "variant_answer": [str(one["answer"]) for one in after],
            "reference_loglikelihoods": [()] * len(answered), "variant_loglikelihoods": [()] * len(answered),
            "weight": 1.0, "skipped": "", "cut": False, "bos": "both",
        }
    )  # fmt: skip


def found(rows: pd.DataFrame) -> dict[str, Measurement]:
    entries = Tasks(tasks=("gsm8k",)).measure(rows)
    return {entry.name.removeprefix("tasks.gsm8k."): entry for entry in entries if isinstance(entry, Measurement)}


@every_pair
def test_exact_mcnemar(answered: list[dict[str, Any]], pair: tuple[str, str]) -> None:
    rows = table(answered, pair)
    first, second = rows["reference_score"] == 1, rows["variant_score"] == 1
    lost, gained = int((first & ~second).sum()), int((~first & second).sum())
    wanted = mcnemar(pd.crosstab(first, second), exact=True).pvalue
    assert mcnemar_p(lost, gained) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar_p(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-9)
    score = found(rows)["exact_match"]
    assert f"{gained} items gained, {lost} lost (exact McNemar p = {wanted:.3g})" in score.method
    assert score.change == pytest.approx((gained - lost) / 1319)


@every_pair
def test_shares_and_flips(answered: list[dict[str, Any]], pair: tuple[str, str]) -> None:
    rows = table(answered, pair)
    measured, second = found(rows), int(rows["variant_score"].sum())
    score = measured["exact_match"]
    assert (score.reference, score.variant) == (rows["reference_score"].mean(), rows["variant_score"].mean())
    assert (score.variant_low, score.variant_high) == pytest.approx(proportion_confint(second, 1319, method="wilson"))
    changed = rows["reference_answer"] != rows["variant_answer"]
    differs = changed | (rows["reference_score"] != rows["variant_score"])
    for name, count in (
        ("flips", int(differs.sum())),
        ("flips_to_wrong", int(((rows["reference_score"] == 1) & (rows["variant_score"] == 0)).sum())),
        ("flips_to_right", int(((rows["reference_score"] == 0) & (rows["variant_score"] == 1)).sum())),
    ):
        assert measured[name].change == count / 1319
        assert (measured[name].low, measured[name].high) == pytest.approx(
            proportion_confint(count, 1319, method="beta"), rel=1e-9
        )


@every_pair
def test_paired_differences(answered: list[dict[str, Any]], pair: tuple[str, str]) -> None:
    """The t interval is scipy's and statsmodels'; the score interval that is judged agrees with it at this size."""
    rows = table(answered, pair)
    first, second = rows["reference_score"].to_numpy(), rows["variant_score"].to_numpy()
    plain = mean_interval(second - first, rows["doc_hash"])
    assert plain is not None
    test = stats.ttest_rel(second, first)
    assert (plain.low, plain.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)
    fit = sm.OLS(second - first, np.ones(1319)).fit(cov_type="cluster", cov_kwds={"groups": range(1319)}, use_t=True)
    assert (plain.low, plain.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-6)
    score = found(rows)["exact_match"]
    assert (score.low, score.high) == pytest.approx((plain.low, plain.high), abs=5e-4)
    gained, lost = int(((first == 0) & (second == 1)).sum()), int(((first == 1) & (second == 0)).sum())
    interval = tango_interval(gained, lost, 1319)
    assert interval is not None
    assert (score.low, score.high) == (interval.low, interval.high)
    # At a difference of 0 Tango's score is McNemar's statistic without continuity correction.
    asymptotic = mcnemar(pd.crosstab(first, second), exact=False, correction=False)
    assert tango_score(gained, lost, 1319, 0.0) ** 2 == pytest.approx(asymptotic.statistic, rel=1e-9)


@every_pair
def test_verdicts_are_those_of_the_paired_interval(answered: list[dict[str, Any]], pair: tuple[str, str]) -> None:
    """A drop is judged against 3 points: the other direction of every pair fails where the first one gains enough."""
    gate = GateSpec(
        name="g", source="g",
        rules=(RuleSpec(rule=NotWorse(metric="tasks.gsm8k.exact_match", why="w", margin=0.03), where="g:1"),),
    )  # fmt: skip
    for both in (pair, pair[::-1]):
        rows = table(answered, both)
        entry = found(rows)["exact_match"]
        (verdict,) = judge([gate], [entry], [], False)
        assert entry.low is not None
        assert entry.high is not None
        wanted = "pass" if entry.low > -0.03 else "fail" if entry.high < -0.03 else "inconclusive"
        assert verdict.status == wanted
        again = found(rows.sample(frac=1, random_state=1))["exact_match"]
        assert again == entry, "the order of items changes nothing"
