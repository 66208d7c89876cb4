"""Renders the output of ``harness lint``: plain lines, one finding after the other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from harness.forecast.linting.evidence import Evidence
from harness.forecast.linting.findings import Finding
from harness.planning.specs import GateSpec
from harness.terminal import defuse

_COLOURS = {"error": "bold red", "warning": "yellow"}


def print_findings(console: Console, gate: GateSpec, evidence: Evidence, findings: Sequence[Finding]) -> None:
    """Every finding with its place, reason and remedy, then what the gate was checked against, and the count."""
    for finding in findings:
        place = f"{finding.where} {finding.key}".strip()
        _line(console, Text.assemble((f"{finding.severity:<8}", _COLOURS[finding.severity]), (defuse(place), "bold")))
        for label, text in (("what", finding.what), ("why", finding.why), ("do", finding.do)):
            _line(console, Text(f"  {label:<5} {defuse(text, 2000)}"))
    _line(console, Text(f"gate {gate.name}, {len(gate.rules)} rules, checked against {_describe_evidence(evidence)}"))
    _line(console, Text(f"{_count(findings)}", style="bold"))


def _describe_evidence(evidence: Evidence) -> str:
    run = f"the run {defuse(evidence.run.name)}" if evidence.run else "declared variances (no earlier run given)"
    suites = ", ".join(dict.fromkeys(each.suite for each in evidence.metrics if each.suite))
    if suites:
        return f"suites {defuse(suites)} and {run}"
    return run if evidence.run else "the names of all metrics only; give --suite, --variant or --run to check limits"


def _count(findings: Sequence[Finding]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    if not findings:
        return "no findings"
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)
