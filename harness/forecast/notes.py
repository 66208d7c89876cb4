"""Notes before a check starts: defects of the plan's gates, using an earlier run if there is one."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.forecast.linting.evidence import Evidence, gather_for_plan
from harness.forecast.linting.findings import Finding
from harness.forecast.linting.lint import lint
from harness.planning.specs import Plan
from harness.records import Run
from harness.terminal import Terminal
from harness.write import read_run


def findings_of(plan: Plan, evidence: Evidence, needed: bool = True) -> list[Finding]:
    """Defects of the gates of a plan, without duplicates; a gate with only warnings is accepted if another one
    blocks."""
    findings = [finding for gate in plan.gates for finding in lint(gate, evidence, needed)]
    return [each for each in dict.fromkeys(findings) if each.key != "rules"]


def notes_before(plan: Plan, folder: Path) -> dict[tuple[str, int], str]:
    """Notes about the gates of a plan before a check starts; an earlier run in ``folder`` provides variances.

    By what they are about: a place in a gate file, and a number where there are several of one.
    """
    run, found = earlier_run(folder, None), dict[tuple[str, int], str]()
    for finding in findings_of(plan, gather_for_plan(plan, run, folder)):
        place = f"{finding.where}: {finding.key}"
        found[place, sum(known == place for known, _ in found)] = str(finding)
    return found


def earlier_run(folder: Path, terminal: Terminal | None) -> Run | None:
    """The finished run in a folder; None if there is none, or (with a note) if it cannot be read."""
    if not (folder / "run.json").is_file():
        return None
    try:
        return read_run(folder)
    except HarnessError as error:
        if terminal is not None:
            terminal.note(f"the earlier run is not used: {error}")
        return None
