"""What a gate made of each variation: which mutants it killed, by which rules, and what harmless ones it stopped.

A mutant is killed when a blocking rule fails (or cannot be judged) that passes on the good variant it was made of, or
when the harness refuses it before anything is judged. Inconclusive is not killed: chance decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.errors import BackendError
from harness.records import Verdict
from harness.selftest.mutants import Kind, Variation

Result = Literal["killed", "undecided", "survived", "passed", "stopped", "equivalent", "left out"]
WANTED = 0.95
"""The share of mutants that a sharp gate kills."""
KILLING = frozenset({"fail", "error"})
INSPECTION, REFUSED = "inspection of the weights", "refused before measuring"
"""What kills in place of a rule: weights off the grid that is stated, and whatever else cannot be measured."""
COUNTED = frozenset({"killed", "undecided", "survived"})


@dataclass(frozen=True)
class Caught:
    """One rule that did not pass: its key in the gate, what it is called, and what it said."""

    rule: str
    where: str
    metric: str
    status: str
    level: str
    because: str


@dataclass(frozen=True)
class Outcome:
    """What became of one variation. by: the rules that count, for the verdict or as a warning; said: why, in words."""

    name: str
    kind: Kind
    result: Result
    summary: str
    by: tuple[Caught, ...] = ()
    said: str = ""


@dataclass(frozen=True)
class RuleScore:
    """How many mutants one rule killed, how many of them no other rule did, and how many it left undecided."""

    rule: str
    where: str
    level: str
    killed: int
    alone: int
    undecided: int


def judged(variation: Variation, verdicts: Sequence[Verdict], control: Sequence[Verdict]) -> Outcome:
    """The outcome of a variation that was measured. control: the verdicts on the good variant that it was made of."""
    if variation.kind != "mutant":
        by = _not_passed(verdicts)
        stopped = [each for each in by if each.level == "block"]
        return _outcome(variation, "stopped" if stopped else "passed", by, stopped)
    # What stops the good variant too says nothing about the mutant.
    known = {(each.where, each.metric, each.status) for each in _not_passed(control)}
    by = tuple(each for each in _not_passed(verdicts) if (each.where, each.metric, each.status) not in known)
    blocking = [each for each in by if each.level == "block"]
    killing = [each for each in blocking if each.status in KILLING]
    if not blocking and any(each.level == "block" for each in _not_passed(verdicts)):
        return left_out(variation, f"the gate stops {variation.control or 'the reference'} by the same rules")
    result: Result = "killed" if killing else "undecided" if blocking else "survived"
    return _outcome(variation, result, by, killing or blocking)


def refused(variation: Variation, error: Exception) -> Outcome:
    """The outcome of a variation that the harness would not measure."""
    result: Result = "killed" if variation.kind == "mutant" else "stopped"
    what = INSPECTION if isinstance(error, BackendError) else REFUSED
    caught = Caught(what, what, "", "error", "block", str(error))
    return Outcome(variation.name, variation.kind, result, variation.summary, (caught,), str(error))


def left_out(variation: Variation, reason: str) -> Outcome:
    """The outcome of a variation that the model has nothing for, that no measure can see, or that proves nothing."""
    result: Result = "equivalent" if variation.equivalent else "left out"
    return Outcome(variation.name, variation.kind, result, variation.summary, said=reason)


def kill_rate(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Killed mutants, and mutants that count: equivalent ones and those left out do not."""
    counted = [each for each in outcomes if each.kind == "mutant" and each.result in COUNTED]
    return sum(each.result == "killed" for each in counted), len(counted)


def exit_code(outcomes: Sequence[Outcome]) -> Literal[0, 1]:
    """0 if enough mutants are killed and no harmless change is stopped. Nothing to count is not enough."""
    killed, counted = kill_rate(outcomes)
    stopped = any(each.kind == "benign" and each.result == "stopped" for each in outcomes)
    return 0 if counted and killed >= WANTED * counted and not stopped else 1


def rule_scores(outcomes: Sequence[Outcome], rules: Mapping[str, tuple[str, str]]) -> list[RuleScore]:
    """A score for every rule. rules: by place in the gate file, what the rule is called and its level."""
    mutants = [each for each in outcomes if each.kind == "mutant"]
    refusals = {caught.where: (caught.rule, "block") for each in mutants for caught in each.by if not caught.metric}
    return [_score(where, *named, mutants) for where, named in {**rules, **refusals}.items()]


def _score(where: str, rule: str, level: str, mutants: Sequence[Outcome]) -> RuleScore:
    killed = alone = undecided = 0
    for mutant in mutants:
        by = {caught.where: caught for caught in mutant.by if caught.status in KILLING}
        if where in by:
            killed += 1
            others = [caught for place, caught in by.items() if place != where and caught.level == "block"]
            alone += not others and level == "block"
        elif any(caught.where == where for caught in mutant.by):
            undecided += 1
    return RuleScore(rule, where, level, killed, alone, undecided)


def _not_passed(verdicts: Sequence[Verdict]) -> tuple[Caught, ...]:
    return tuple(
        Caught(f"{v.rule} {v.metric}", v.where, v.metric, v.status, v.level, v.because)
        for v in verdicts
        if v.status != "pass"
    )


def _outcome(variation: Variation, result: Result, by: tuple[Caught, ...], why: Sequence[Caught]) -> Outcome:
    said = "; ".join(each.because for each in why)
    return Outcome(variation.name, variation.kind, result, variation.summary, by, said)
