"""Outcome of a gate for each variation: which mutants it killed, by which rules, and which harmless ones it stopped.

A mutant is killed if a blocking rule fails (or cannot be judged) that passes on the good variant it is derived from, or
if the harness rejects it before judging. Inconclusive does not count as killed, because chance decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.errors import BackendError
from harness.records import Verdict
from harness.selftest.mutants import Variation, VariationKind

Result = Literal["killed", "undecided", "survived", "passed", "stopped", "equivalent", "left out"]
REQUIRED_KILL_RATE = 0.95
"""The share of mutants that an adequate gate kills."""
KILLING = frozenset({"fail", "error"})
INSPECTION, REFUSED = "inspection of the weights", "refused before measuring"
"""Kills without a rule: weights off the declared grid, and variants that cannot be measured."""
COUNTED = frozenset({"killed", "undecided", "survived"})


@dataclass(frozen=True)
class RuleFailure:
    """One rule that did not pass: its name, its place in the gate file, and its reason."""

    rule: str
    where: str
    metric: str
    status: str
    level: str
    because: str


@dataclass(frozen=True)
class Outcome:
    """Outcome of one variation. by: the rules that did not pass, blocking or warning; said: the reason in words."""

    name: str
    kind: VariationKind
    result: Result
    summary: str
    by: tuple[RuleFailure, ...] = ()
    said: str = ""


@dataclass(frozen=True)
class RuleScore:
    """Number of mutants a rule killed, number only it killed (``alone``), and number it left undecided."""

    rule: str
    where: str
    level: str
    killed: int
    alone: int
    undecided: int


def assess(variation: Variation, verdicts: Sequence[Verdict], control: Sequence[Verdict]) -> Outcome:
    """Assess a measured variation. control: the verdicts on the good variant it is derived from."""
    if variation.kind != "mutant":
        by = _list_not_passed(verdicts)
        stopped = [each for each in by if each.level == "block"]
        return _outcome(variation, "stopped" if stopped else "passed", by, stopped)
    # A rule that also stops the good variant is no evidence against the mutant.
    known = {(each.where, each.metric, each.status) for each in _list_not_passed(control)}
    by = tuple(each for each in _list_not_passed(verdicts) if (each.where, each.metric, each.status) not in known)
    blocking = [each for each in by if each.level == "block"]
    killing = [each for each in blocking if each.status in KILLING]
    if not blocking and any(each.level == "block" for each in _list_not_passed(verdicts)):
        return record_omission(variation, f"the gate stops {variation.control or 'the reference'} by the same rules")
    result: Result = "killed" if killing else "undecided" if blocking else "survived"
    return _outcome(variation, result, by, killing or blocking)


def record_refusal(variation: Variation, error: Exception) -> Outcome:
    """The outcome of a variation that the harness refused to measure."""
    result: Result = "killed" if variation.kind == "mutant" else "stopped"
    what = INSPECTION if isinstance(error, BackendError) else REFUSED
    caught = RuleFailure(what, what, "", "error", "block", str(error))
    return Outcome(variation.name, variation.kind, result, variation.summary, (caught,), str(error))


def record_omission(variation: Variation, reason: str) -> Outcome:
    """The outcome of a variation that is not applicable, undetectable by construction, or without evidence."""
    result: Result = "equivalent" if variation.equivalent else "left out"
    return Outcome(variation.name, variation.kind, result, variation.summary, said=reason)


def kill_rate(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Number of killed and of counted mutants; equivalent and left-out mutants are not counted."""
    counted = [each for each in outcomes if each.kind == "mutant" and each.result in COUNTED]
    return sum(each.result == "killed" for each in counted), len(counted)


def exit_code(outcomes: Sequence[Outcome]) -> Literal[0, 1]:
    """0 if enough mutants are killed and no harmless change is stopped; 1 otherwise, also if no mutant counts."""
    killed, counted = kill_rate(outcomes)
    stopped = any(each.kind == "benign" and each.result == "stopped" for each in outcomes)
    return 0 if counted and killed >= REQUIRED_KILL_RATE * counted and not stopped else 1


def rule_scores(outcomes: Sequence[Outcome], rules: Mapping[str, tuple[str, str]]) -> list[RuleScore]:
    """A score for every rule. rules: name and level of each rule, by its place in the gate file."""
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


def _list_not_passed(verdicts: Sequence[Verdict]) -> tuple[RuleFailure, ...]:
    return tuple(
        RuleFailure(f"{v.rule} {v.metric}", v.where, v.metric, v.status, v.level, v.because)
        for v in verdicts
        if v.status != "pass"
    )


def _outcome(variation: Variation, result: Result, by: tuple[RuleFailure, ...], why: Sequence[RuleFailure]) -> Outcome:
    said = "; ".join(each.because for each in why)
    return Outcome(variation.name, variation.kind, result, variation.summary, by, said)
