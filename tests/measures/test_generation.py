"""Shares, positions and similarity from hand-made rows, with independent intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta
from scipy.stats import t as student_t

from harness.errors import MeasureError
from harness.measures.generation import Generation
from harness.records import Measurement, Skipped
from harness.statistics import tango_interval

NEW = 64


def table(count: int = 40, parted: int = 25, seed: int = 0, **columns: Any) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    diverged = np.arange(count) < parted
    first = np.where(diverged, generator.integers(0, NEW, count), NEW)
    rows = {
        "prompt": [f"p{index}" for index in range(count)],
        "reference_finite": True,
        "variant_finite": True,
        "reference_ended": np.arange(count) < count // 2,
        "variant_ended": np.arange(count) < count // 2,
        "reference_tokens": 40,
        "variant_tokens": 40,
        "same_tokens": True,
        "diverged": diverged,
        "first": first,
        "reach": NEW,
        "first_character": 4 * first,
        "characters": 4 * NEW,
        "similarity": np.where(diverged, generator.random(count), 1.0),
        "embedding_similarity": np.where(diverged, generator.uniform(-0.2, 1, count), 1.0),
    }
    return pd.DataFrame(rows | columns)


def measured(frame: pd.DataFrame, **settings: Any) -> dict[str, Any]:
    found = Generation(**({"new_tokens": NEW} | settings)).measure(frame)
    names = [m.name if isinstance(m, Measurement) else m.measure for m in found]
    assert names == [metric.name for metric in Generation(**({"new_tokens": NEW} | settings)).produces()]
    return {name.partition(".")[2]: entry for name, entry in zip(names, found, strict=True)}


def test_shares_are_counted_with_exact_intervals() -> None:
    found = measured(table())
    assert (found["exact_match"].change, found["diverged"].change) == (15 / 40, 25 / 40)
    size = 39  # that of the sample variance
    same = size * 15 / 40
    assert found["exact_match"].low == pytest.approx(beta.ppf(0.025, same, size - same + 1))
    assert found["exact_match"].high == pytest.approx(beta.ppf(0.975, same + 1, size - same))
    assert found["diverged"].low == pytest.approx(1 - found["exact_match"].high)
    assert found["exact_match"].clusters == 40


def test_positions_keep_texts_that_never_part() -> None:
    frame = table()
    found = measured(frame)
    assert found["first_divergence"].change == pytest.approx(frame["first"].mean())
    assert found["first_divergence"].change > frame.loc[frame["diverged"], "first"].mean()
    error = frame["first"].std(ddof=1) / np.sqrt(40)
    half = student_t.ppf(0.975, 39) * error
    assert found["first_divergence"].high == pytest.approx(min(frame["first"].mean() + half, NEW))
    assert found["first_divergence"].low == pytest.approx(frame["first"].mean() - half)
    assert found["first_divergence_median"].change == sorted(frame["first"])[19]
    assert measured(table(parted=15))["first_divergence_median"].change == NEW


def test_similarity_is_a_mean_over_prompts() -> None:
    frame = table()
    found = measured(frame, embedding="folder")
    assert found["similarity"].change == pytest.approx(frame["similarity"].mean())
    assert found["common_prefix"].change == pytest.approx((frame["first"] / NEW).mean())
    assert found["embedding_similarity"].change == pytest.approx(frame["embedding_similarity"].mean())
    error = frame["similarity"].std(ddof=1) / np.sqrt(40)
    assert found["similarity"].low == pytest.approx(frame["similarity"].mean() - student_t.ppf(0.975, 39) * error)


def test_the_same_prompt_twice_is_no_new_evidence() -> None:
    frame = table()
    twice = pd.concat([frame, frame], ignore_index=True)
    once, both = measured(frame), measured(twice)
    for name in ("exact_match", "similarity", "first_divergence", "common_prefix"):
        assert both[name].change == pytest.approx(once[name].change)
        assert both[name].high - both[name].low > 0.95 * (once[name].high - once[name].low)
        assert (both[name].n, both[name].clusters) == (80, 40)


def test_identity_changes_nothing_and_is_still_bounded() -> None:
    found = measured(table(parted=0))
    for name, entry in found.items():
        assert entry.change == entry.neutral, name
        if name != "first_divergence_median":
            assert entry.low < entry.high, name


def test_empty_texts_on_both_sides_are_equal() -> None:
    frame = table(parted=0).assign(characters=0, first_character=0, first=1, reach=1)
    assert measured(frame)["common_prefix"].change == 1.0


def test_other_tokens_have_no_positions_but_everything_else() -> None:
    found = measured(table(same_tokens=False, first=-1, reach=-1))
    for name in ("first_divergence", "first_divergence_median"):
        assert isinstance(found[name], Skipped)
        assert "generation.common_prefix" in found[name].reason
    assert found["common_prefix"].change is not None
    assert found["exact_match"].change == 15 / 40


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_nan_breaks_every_number_on_its_side(side: str) -> None:
    frame = table()
    frame.loc[3, f"{side}_finite"] = False
    for entry in measured(frame).values():
        assert entry.non_finite == side
        assert "after 1 of 40 prompts" in entry.method


def test_nothing_written_is_skipped() -> None:
    assert all(isinstance(entry, Skipped) for entry in measured(table().iloc[:0]).values())


@pytest.mark.parametrize(
    "columns", [{"first": NEW + 1}, {"first": 9, "reach": 8}, {"similarity": 1.5}, {"first_character": 5 * NEW}]
)
def test_what_cannot_be_is_an_error(columns: dict[str, Any]) -> None:
    with pytest.raises(MeasureError, match="generations"):
        measured(table(**columns))


def test_a_model_for_meanings_is_asked_for_by_name() -> None:
    assert "generation.embedding_similarity" not in [metric.name for metric in Generation().produces()]


def test_a_lost_stop_token_shows_on_both_shares_and_in_the_length() -> None:
    found = measured(table(40, reference_ended=True, variant_ended=False, variant_tokens=NEW))
    stopped, cut, length = found["stopped"], found["hit_limit"], found["length_ratio"]
    assert (stopped.reference, stopped.variant, stopped.change) == (1.0, 0.0, -1.0)
    assert (cut.reference, cut.variant, cut.change) == (0.0, 1.0, 1.0)
    assert stopped.high < -0.8
    assert cut.low == -stopped.high
    assert length.change == NEW / 40


def test_shares_that_stop_are_paired_by_prompt_with_tangos_interval() -> None:
    ended = np.arange(40) < 30
    found = measured(table(40, reference_ended=ended, variant_ended=np.roll(ended, 2)))["stopped"]
    wanted = tango_interval(2, 2, 40)
    assert wanted is not None
    assert (found.change, found.low, found.high) == (0.0, wanted.low, wanted.high)
    assert "30 of 40 prompts, reference 30" in found.method


def test_a_prompt_given_twice_is_one_pair() -> None:
    frame = table(40, variant_ended=np.arange(40) < 18)
    twice = measured(pd.concat([frame, frame], ignore_index=True))["stopped"]
    once = measured(frame)["stopped"]
    assert (twice.change, twice.low, twice.high, twice.clusters) == (once.change, once.low, once.high, 40)


def test_where_the_reference_never_stops_that_is_said() -> None:
    found = measured(table(40, reference_ended=False, variant_ended=False))["stopped"]
    assert "no text of the reference stops" in found.method


def test_lengths_in_other_tokens_are_not_compared() -> None:
    found = measured(table(40, same_tokens=False))["length_ratio"]
    assert isinstance(found, Skipped)


def test_lengths_are_a_paired_ratio() -> None:
    one = np.arange(20, 60).astype(float)
    two = one + np.tile([0.0, 3.0], 20)
    found = measured(table(40, reference_tokens=one, variant_tokens=two))["length_ratio"]
    ratio = two.sum() / one.sum()
    error = np.sqrt(((two - ratio * one) ** 2).sum() * 40 / 39) / one.sum()
    half = student_t.ppf(0.975, 39) * error
    assert (found.change, found.low, found.high) == pytest.approx((ratio, ratio - half, ratio + half))
    assert (found.reference, found.variant) == (one.mean(), two.mean())
