"""What counts as a kill, on hand-made verdicts."""

from __future__ import annotations

from typing import Literal

import pytest

from harness.errors import BackendError, DataError
from harness.records import Level, Verdict
from harness.selftest.mutants import Variation
from harness.selftest.outcomes import (
    INSPECTION,
    REFUSED,
    Outcome,
    assess,
    exit_code,
    kill_rate,
    record_omission,
    record_refusal,
    rule_scores,
)

Status = Literal["pass", "fail", "inconclusive", "error"]
KL, RATIO, AGREE = "gate.yaml:3", "gate.yaml:4", "gate.yaml:5"


def verdict(where: str, status: Status, level: Level = "block", metric: str = "") -> Verdict:
    return Verdict(
        gate="g", rule="at_most", metric=metric or where, status=status, expected="", found="", because=f"{where} said",
        level=level, where=where,
    )  # fmt: skip


def mutant(name: str = "m") -> Variation:
    return Variation(name, "mutant", "A bug.")


def outcome(*verdicts: Verdict, control: tuple[Verdict, ...] = (), name: str = "m") -> Outcome:
    return assess(mutant(name), verdicts, control)


@pytest.mark.parametrize(
    ("statuses", "result"),
    [
        (("pass", "pass"), "survived"),
        (("pass", "fail"), "killed"),
        (("pass", "error"), "killed"),
        (("pass", "inconclusive"), "undecided"),
        (("inconclusive", "fail"), "killed"),
    ],
)
def test_a_mutant_is_killed_by_a_blocking_rule_that_fails_or_cannot_judge(
    statuses: tuple[Status, Status], result: str
) -> None:
    found = outcome(*(verdict(where, status) for where, status in zip((KL, RATIO), statuses, strict=True)))
    assert found.result == result


def test_warnings_are_shown_and_kill_nothing() -> None:
    found = outcome(verdict(KL, "pass"), verdict(AGREE, "fail", "warn"))
    assert found.result == "survived"
    assert [caught.where for caught in found.by] == [AGREE]


def test_what_stops_the_good_variant_too_is_no_evidence() -> None:
    control = (verdict(KL, "fail"), verdict(RATIO, "inconclusive"))
    assert outcome(verdict(KL, "fail"), verdict(RATIO, "inconclusive"), control=control).result == "left out"
    assert outcome(verdict(KL, "pass"), verdict(RATIO, "pass"), control=control).result == "survived"
    worse = outcome(verdict(KL, "fail"), verdict(RATIO, "fail"), control=control)
    assert worse.result == "killed"
    assert [caught.where for caught in worse.by] == [RATIO]


def test_harmless_changes_pass_or_are_stopped_and_undecided_is_stopped() -> None:
    benign = Variation("b", "benign", "A recast.")
    assert assess(benign, [verdict(KL, "pass"), verdict(AGREE, "fail", "warn")], ()).result == "passed"
    assert assess(benign, [verdict(KL, "inconclusive")], ()).result == "stopped"
    assert record_refusal(benign, DataError("no")).result == "stopped"
    assert record_refusal(mutant(), DataError("no")).result == "killed"


def test_the_rate_counts_what_could_be_killed() -> None:
    killed = [outcome(verdict(KL, "fail"), name=f"k{number}") for number in range(19)]
    alive = outcome(verdict(KL, "pass"), name="alive")
    aside = [
        record_omission(Variation("e", "mutant", "A bug.", equivalent="nobody looks"), "nobody looks"),
        record_omission(mutant("none"), "no experts"),
    ]
    assert [each.result for each in aside] == ["equivalent", "left out"]
    assert kill_rate([*killed, alive, *aside]) == (19, 20)
    assert exit_code([*killed, alive, *aside]) == 0
    assert exit_code([*killed[:-1], alive, *aside]) == 1
    assert exit_code(aside) == 1
    stopped = assess(Variation("b", "benign", "A recast."), [verdict(KL, "inconclusive")], ())
    assert exit_code([*killed, stopped]) == 1
    control = assess(Variation("c", "control", "A format."), [verdict(KL, "fail")], ())
    assert exit_code([*killed, control]) == 0


def test_a_rule_scores_what_it_killed_and_what_it_alone_killed() -> None:
    rules = {KL: ("at_most kl", "block"), RATIO: ("not_worse ratio", "block"), AGREE: ("at_least agreement", "warn")}
    outcomes = [
        outcome(verdict(KL, "fail"), verdict(RATIO, "fail"), verdict(AGREE, "fail", "warn")),
        outcome(verdict(KL, "fail", metric="kl.a"), verdict(KL, "fail", metric="kl.b"), verdict(RATIO, "inconclusive")),
        outcome(verdict(KL, "pass"), verdict(RATIO, "inconclusive")),
        record_refusal(mutant(), DataError("another tokenizer")),
        record_refusal(mutant(), BackendError("no such grid")),
    ]
    scores = {score.where: (score.killed, score.alone, score.undecided) for score in rule_scores(outcomes, rules)}
    assert scores == {KL: (2, 1, 0), RATIO: (1, 0, 2), AGREE: (1, 0, 0), REFUSED: (1, 1, 0), INSPECTION: (1, 1, 0)}
