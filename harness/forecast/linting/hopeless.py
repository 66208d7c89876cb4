"""Finds suites that can never pass a gate, because they measure too few documents for one of its rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.forecast.causes import Cause
from harness.forecast.linting.findings import Finding
from harness.forecast.measured import list_measured
from harness.forecast.needs import Need, needs
from harness.planning.specs import GateSpec, SuiteSpec
from harness.records import Run

SHORT = (Cause.TOO_FEW, Cause.MIN_DOCUMENTS, Cause.NO_SAMPLE)
"""The causes that more documents remove."""


def find_hopeless(gates: Sequence[GateSpec], suites: Sequence[SuiteSpec], run: Run | None = None) -> Iterator[Finding]:
    """One finding for each suite and gate: the rule that needs most, and how many documents (items) that is.

    run: an earlier run with the variances; only blocking rules that a missing decision blocks count.
    """
    for gate in gates:
        for suite in suites:
            short = [need for need in needs([gate], list_measured([suite], run), run) if _blocks(need)]
            if short:
                yield _finding(gate, suite, short)


def _blocks(need: Need) -> bool:
    rule = need.rule
    decisive = rule.level == "block" and rule.on_inconclusive != "warn" and not need.spec.left_out
    return decisive and need.cause in SHORT and need.needed is not None


def _finding(gate: GateSpec, suite: SuiteSpec, short: Sequence[Need]) -> Finding:
    most = max(short, key=lambda need: need.needed or 0)
    others = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
    what = f"the suite {suite.name} can never pass the gate {gate.name}"
    why = (
        f"{most.metric}{others} takes {most.needed} {most.units} even where nothing is worse, and the suite has "
        f"{most.documents}"
    )
    do = f"measure {most.needed} {most.units} or more, or judge by a gate made for so few"
    return Finding("error", most.spec.where, "", what, why, do)
