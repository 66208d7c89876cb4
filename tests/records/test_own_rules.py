"""Rules of the harness itself, and which of them decides where several do not hold."""

from __future__ import annotations

from harness.records.conclusion import conclusion
from harness.records.own_rules import MEASURES_RUN, REFERENCE_PREDICTS, REPEATS, WEIGHTS_FINITE, judge_own_rules


def test_a_reference_that_predicts_nothing_keeps_a_run_from_being_judged() -> None:
    found = judge_own_rules({REFERENCE_PREDICTS: ["NLL 7.3"], REPEATS: ["differs"]})
    assert [(each.status, each.level) for each in found] == [("error", "block"), ("inconclusive", "block")]
    assert conclusion(found) == ("error", 2, "comparability")


def test_a_variant_that_fails_by_itself_fails_by_any_reference_and_both_are_told() -> None:
    found = judge_own_rules({REFERENCE_PREDICTS: ["NLL 7.3"], WEIGHTS_FINITE: ["1 tensor holds NaN"]})
    assert conclusion(found) == ("fail", 1, "numerics")
    assert [(each.rule, each.level, each.because) for each in found] == [
        (REFERENCE_PREDICTS.name, "warn", "NLL 7.3"),
        (WEIGHTS_FINITE.name, "block", "1 tensor holds NaN"),
    ]


def test_a_defect_of_the_run_is_not_excused_by_a_failure_of_the_variant() -> None:
    found = judge_own_rules({MEASURES_RUN: ["a measure failed"], WEIGHTS_FINITE: ["1 tensor holds NaN"]})
    assert conclusion(found) == ("error", 2, "accounting")


def test_nothing_broken_says_nothing() -> None:
    assert judge_own_rules({}) == ()
    assert judge_own_rules({REFERENCE_PREDICTS: [], WEIGHTS_FINITE: []}) == ()
