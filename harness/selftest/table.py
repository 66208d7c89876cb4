"""The kill table on the terminal: the outcome of every variation, then the score of every rule of the gate."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from harness.planning.specs import GateSpec
from harness.rules import Rule
from harness.selftest.outcomes import REQUIRED_KILL_RATE, Outcome, RuleFailure, exit_code, kill_rate, rule_scores
from harness.terminal import Terminal, defuse

COLOURS = {"killed": "green", "passed": "green", "survived": "red", "stopped": "red", "undecided": "yellow"}


def print_tables(outcomes: Sequence[Outcome], gate: GateSpec, terminal: Terminal) -> None:
    """Print both tables and the conclusion."""
    terminal.show(_variations(outcomes))
    terminal.show(_rules(outcomes, gate))
    for line in conclusion(outcomes, gate.name):
        terminal.stage(line)


def conclusion(outcomes: Sequence[Outcome], gate: str) -> list[str]:
    """The verdict on the gate, and the variations that need attention."""
    killed, counted = kill_rate(outcomes)
    mutants = [each for each in outcomes if each.kind == "mutant"]
    benign = [each for each in outcomes if each.kind == "benign" and each.result in ("passed", "stopped")]
    stopped = [each for each in benign if each.result == "stopped"]
    share = f" ({100 * killed / counted:.1f} %, required {100 * REQUIRED_KILL_RATE:g} %)" if counted else ""
    lines = [
        f"{'sharp enough' if exit_code(outcomes) == 0 else 'not good enough'}: gate {gate} kills {killed} of {counted} "
        f"mutants{share} and stops {len(stopped)} of {len(benign)} harmless changes"
    ]
    for result, what in (("survived", "survived"), ("undecided", "undecided, not counted as killed")):
        alive = [each for each in mutants if each.result == result]
        lines += [f"{what}: {each.name}: {each.summary}" for each in alive]
    lines += [f"harmless but stopped: {each.name}: {each.said}" for each in stopped]
    controls = [each.name for each in outcomes if each.kind == "control" and each.result == "stopped"]
    if controls:
        lines.append(f"good compression also stopped (by rules that then count for no kill): {', '.join(controls)}")
    refusals = [(each, caught) for each in mutants for caught in each.by if not caught.metric]
    lines += [f"killed by {caught.rule}: {each.name}: {caught.because}" for each, caught in refusals]
    aside = [each for each in outcomes if each.result in ("equivalent", "left out")]
    lines += [f"{each.result}, not counted: {each.name}: {each.said}" for each in aside]
    return lines


def _variations(outcomes: Sequence[Outcome]) -> Table:
    table = _table("variations", "kind", "name", "outcome", "by")
    for each in outcomes:
        by = [caught for caught in each.by if caught.level == "block"]
        text = ", ".join(dict.fromkeys(_describe(caught) for caught in by))
        result = Text(each.result, style=COLOURS.get(each.result, "bright_black"))
        table.add_row(each.kind, each.name, result, Text(defuse(text)))
    return table


def _rules(outcomes: Sequence[Outcome], gate: GateSpec) -> Table:
    table = _table(f"rules of {gate.name}", "rule", "level", "killed", "alone", "undecided")
    rules = {spec.where: (_name(spec.rule), _level(spec.rule)) for spec in gate.rules}
    for score in rule_scores(outcomes, rules):
        numbers = (str(score.killed), str(score.alone), str(score.undecided))
        table.add_row(Text(defuse(score.rule)), score.level, *numbers)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == "name", justify="right" if column in ("killed", "alone") else "left")
    return table


def _describe(caught: RuleFailure) -> str:
    if not caught.metric:
        return caught.rule
    return caught.metric if caught.status == "fail" else f"{caught.metric} ({caught.status})"


def _name(rule: object) -> str:
    return f"{rule.kind} {rule.metric}" if isinstance(rule, Rule) else str(rule)


def _level(rule: object) -> str:
    return rule.level if isinstance(rule, Rule) else ""
