"""The measure ``artifact`` on hand-made tables."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.artifacts.comparing import table
from harness.errors import MeasureError
from harness.measures.artifact import Artifact
from harness.records import Measurement, Skipped
from harness.rules import Decision
from harness.rules.at_most import AtMost

READ_BACK = {f"artifact.{name}" for name in ("kl_mean", "kl_max", "logits_max_abs_diff", "modules_changed")}
READ_BACK |= {"artifact.texts_changed"}
Rows = list[dict[str, Any]]


def tokens(part: str, kl: list[float], largest: float = 0.0) -> Rows:
    """Two tokens a document."""
    return [
        {"part": part, "document": at // 2, "position": at % 2 + 1, "kl": value, "max_abs_diff": largest}
        for at, value in enumerate(kl)
    ]


def modules(part: str, *errors: float) -> Rows:
    return [{"part": part, "name": f"m{at}", "error": error, "allowed": 1e-6} for at, error in enumerate(errors)]


def hashes(*same: int) -> Rows:
    names = ("weights", "config", "tokenizer")
    return [{"part": "same", "name": name, "count": count} for name, count in zip(names, same, strict=True)]


FILES: Rows = [
    {"part": "parameters", "count": 1000},
    {"part": "file", "name": "config.json", "count": 100, "text": "a"},
    {"part": "file", "name": "model.safetensors", "count": 500, "text": "b"},
]
TEXTS: Rows = [{"part": "text", "document": at, "count": 0} for at in range(4)]
EXACT: Rows = [
    *FILES, *TEXTS, *hashes(1, 1, 1), *tokens("reloaded", [0.0] * 8), *tokens("live", [0.0] * 8),
    *modules("reloaded_module", 0.0, 1e-7), *modules("live_module", 0.0, 0.0),
]  # fmt: skip


def measure(rows: Rows) -> dict[str, Measurement | Skipped]:
    found = Artifact().measure(table(rows))
    by_name = {entry.name if isinstance(entry, Measurement) else entry.measure: entry for entry in found}
    assert len(by_name) == len(found)
    assert by_name.keys() == {metric.name for metric in Artifact().produces()}
    return by_name


def number(rows: Rows, name: str) -> Measurement:
    found = measure(rows)[f"artifact.{name}"]
    assert isinstance(found, Measurement)
    return found


def without(part: str) -> Rows:
    return [row for row in EXACT if row["part"] != part]


def judged(found: Measurement, limit: float, **settings: Any) -> Decision:
    return AtMost(metric=found.name, limit=limit, why="w", **settings).judge(found, identical=False)


def test_what_came_back_as_it_was_is_exactly_zero() -> None:
    for name in ("kl_mean", "kl_max", "logits_max_abs_diff", "modules_changed", "texts_changed"):
        found = number(EXACT, name)
        assert (found.change, found.low, found.high) == (0.0, 0.0, 0.0)
        assert judged(found, 0.0).status == "pass"
    assert number(EXACT, "live_kl_max").change == 0.0
    assert number(EXACT, "bytes").variant == 600.0
    assert number(EXACT, "bits_per_weight").variant == 4.0


@pytest.mark.parametrize("same", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_equal_logits_of_other_bytes_are_a_sample(same: tuple[int, int, int]) -> None:
    """Eight documents that did not change say little about others where the files are not the same."""
    found = number([*without("same"), *hashes(*same)], "kl_mean")
    assert found.change == 0.0
    assert found.high is not None
    assert found.high > 0.0
    assert judged(found, 0.001).status == "inconclusive"


def test_hashes_that_are_missing_prove_nothing() -> None:
    assert number(without("same"), "kl_mean").high != 0.0


def test_divergences_are_those_of_the_tokens_by_document() -> None:
    kl = [0.1, 0.3, 0.2, 0.2, 0.0, 0.4, 0.1, 0.3]
    rows = [*without("reloaded"), *tokens("reloaded", kl, largest=2.5)]
    mean = number(rows, "kl_mean")
    assert mean.change == pytest.approx(0.2)
    assert (mean.n, mean.clusters) == (8, 4)
    assert mean.low is not None
    assert mean.low >= 0.0
    largest = number(rows, "kl_max")
    assert (largest.change, largest.low) == (0.4, None)
    assert number(rows, "logits_max_abs_diff").change == 2.5
    assert judged(largest, 0.01, decide="point").status == "fail"


@pytest.mark.parametrize(("error", "share"), [(1e-6, 0.0), (1.1e-6, 0.5), (math.inf, 0.5), (math.nan, 0.5)])
def test_a_module_is_changed_beyond_rounding(error: float, share: float) -> None:
    rows = [*without("reloaded_module"), *modules("reloaded_module", 0.0, error)]
    found = number(rows, "modules_changed")
    assert found.change == share
    assert ("m1 first" in found.method) == (share > 0)
    assert judged(found, 0.0).status == ("fail" if share else "pass")


def test_one_text_with_other_ids_fails_a_limit_of_zero() -> None:
    rows = [*without("text"), *TEXTS[:3], {"part": "text", "document": 3, "count": 1}]
    found = number(rows, "texts_changed")
    assert found.change == 0.25
    assert judged(found, 0.0).status == "fail"


@pytest.mark.parametrize("part", ["reloaded", "live"])
def test_logits_that_are_not_finite_are_not_averaged_away(part: str) -> None:
    rows = [*without(part), *tokens(part, [0.0] * 7 + [math.nan])]
    broken = {"reloaded": ("kl_mean", "kl_max", "logits_max_abs_diff"), "live": ("live_kl_max",)}[part]
    for name in broken:
        found = number(rows, name)
        assert (found.non_finite, found.change) == ("variant", None)


def test_a_divergence_below_zero_is_refused() -> None:
    with pytest.raises(MeasureError, match="contradicts its definition"):
        measure([*without("reloaded"), *tokens("reloaded", [-0.1] * 8)])


def test_a_refusal_leaves_its_reason_and_what_was_measured_before_it() -> None:
    kept = [row for row in EXACT if row["part"] in ("parameters", "file", "live", "live_module")]
    found = measure([*kept, {"part": "refused", "text": "transformers does not know it"}])
    reasons = {name: entry.reason for name, entry in found.items() if isinstance(entry, Skipped)}
    assert reasons == dict.fromkeys(READ_BACK, "transformers does not know it")
    nothing = measure([{"part": "parameters", "count": 9}, {"part": "refused", "text": "cannot be saved"}])
    assert all(isinstance(entry, Skipped) for entry in nothing.values())


def test_a_model_that_saving_left_unusable_is_said_and_the_files_are_compared_all_the_same() -> None:
    rows = [*without("live"), {"part": "live_refused", "text": "it cannot be called"}]
    found = measure(rows)["artifact.live_kl_max"]
    assert isinstance(found, Skipped)
    assert found.reason == "it cannot be called"
    assert number(rows, "kl_max").change == 0.0


def test_a_checkpoint_is_what_its_files_load_to() -> None:
    rows = [*FILES, {"part": "checkpoint"}]
    for name in READ_BACK | {"artifact.live_kl_max"}:
        found = number(rows, name.removeprefix("artifact."))
        assert found.change == 0.0
        assert "by construction" in found.method
        assert judged(found, 0.0).status == "pass"
    assert number(rows, "bytes").variant == 600.0


def test_where_nobody_asked_everything_is_skipped() -> None:
    found = measure([{"part": "parameters", "count": 9}, {"part": "none", "text": "variant.artifact is none"}])
    assert {entry.reason for entry in found.values() if isinstance(entry, Skipped)} == {"variant.artifact is none"}
    assert len(found) == len(Artifact().produces())


def test_an_empty_table_and_one_without_documents_yield_no_number() -> None:
    assert all(isinstance(entry, Skipped) for entry in measure([]).values())
    bare = [row for row in EXACT if row["part"] not in ("reloaded", "live", "text")]
    assert isinstance(measure(bare)["artifact.kl_max"], Skipped)
    assert isinstance(measure(bare)["artifact.texts_changed"], Skipped)


@pytest.mark.parametrize("parameters", [[], [0], [5, 5]])
def test_a_table_without_one_count_of_parameters_is_refused(parameters: list[int]) -> None:
    rows = [*without("parameters"), *({"part": "parameters", "count": count} for count in parameters)]
    with pytest.raises(MeasureError, match="parameters"):
        measure(rows)


def test_a_foreign_table_is_refused() -> None:
    with pytest.raises(MeasureError, match="lacks the columns"):
        Artifact().measure(pd.DataFrame({"part": ["reloaded"]}))


@settings(max_examples=25)
@given(st.sampled_from(sorted({row["part"] for row in EXACT})), st.integers(0, 20))
def test_rows_that_are_missing_never_turn_into_a_better_number(part: str, at: int) -> None:
    """Whatever is lost of a part: what it says is the same, or nothing."""
    of_part = [row for row in EXACT if row["part"] == part]
    lost = of_part[at % len(of_part)]
    try:
        found = measure([row for row in EXACT if row is not lost])
    except MeasureError:
        return
    whole = measure(EXACT)
    for name in READ_BACK:
        entry, before = found[name], whole[name]
        assert isinstance(before, Measurement)
        if isinstance(entry, Measurement):
            assert entry.change == before.change
            assert entry.high is None or entry.high >= (before.high or 0.0)
