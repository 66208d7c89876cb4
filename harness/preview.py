"""Preview: what a variant file asks for, before a model is loaded, and what a gate file is worth.

    plan ─▶ metrics and their numbers of documents ─▶ what each rule needs, what is wrong with each gate, the cost
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.linting.evidence import Evidence, of_plan, of_suites
from harness.linting.findings import Finding, exit_code
from harness.linting.lint import lint
from harness.linting.page import print_findings
from harness.plan import load_gate, load_suite, make_plan
from harness.planning.cost import cost
from harness.planning.needs import needs
from harness.planning.page import print_plan
from harness.records import Plan, Run
from harness.terminal import Terminal, standard_console
from harness.write import read_run


def preview_plan(file: Path, run_folder: Path | None, out: Path) -> int:
    """Print the plan of a variant file with what its rules need and what it will cost; returns 0.

    run_folder: an earlier run whose variance and clock are used; without one that in ``out``, if there is any.
    Raises PlanError with every mistake of the files, and HarnessError for a run that was named and cannot be read.
    """
    plan, terminal = make_plan(file), Terminal()
    folder = run_folder or out / plan.name
    run = read_run(folder) if run_folder else earlier_run(folder, terminal)
    evidence = of_plan(plan, run, folder)
    console = standard_console(sys.stdout)
    print_plan(console, plan, needs(plan.gates, evidence.metrics, run), cost(plan, run), run)
    for finding in findings_of(plan, evidence, needed=False):
        terminal.note(str(finding))
    return 0


def lint_gate(name: str, suites: Sequence[str], variant: Path | None, run_folder: Path | None) -> int:
    """Print everything that is wrong with a gate; returns 0, or 2 where a rule cannot do its work.

    Raises PlanError with every mistake of the files, and HarnessError for a run that cannot be read.
    """
    gate = load_gate(name, Path.cwd())
    run = read_run(run_folder) if run_folder else None
    if variant is not None:
        evidence = of_plan(make_plan(variant), run, run_folder)
    else:
        evidence = of_suites([load_suite(suite, Path.cwd()) for suite in suites], run, run_folder)
    findings = lint(gate, evidence)
    print_findings(standard_console(sys.stdout), gate, evidence, findings)
    return exit_code(findings)


def findings_of(plan: Plan, evidence: Evidence, needed: bool = True) -> list[Finding]:
    """What is wrong with the gates of a plan, each thing once; a gate of warnings beside one that blocks is not."""
    found = [finding for gate in plan.gates for finding in lint(gate, evidence, needed)]
    return [each for each in dict.fromkeys(found) if each.key != "rules"]


def notes_before(plan: Plan, folder: Path) -> list[str]:
    """What a check says about the gates of its plan before it starts; an earlier run in ``folder`` gives variances."""
    run = earlier_run(folder, None)
    return [str(finding) for finding in findings_of(plan, of_plan(plan, run, folder))]


def earlier_run(folder: Path, terminal: Terminal | None) -> Run | None:
    """The finished run in a folder; None where there is none, or (with a note) where it cannot be read."""
    if not (folder / "run.json").is_file():
        return None
    try:
        return read_run(folder)
    except HarnessError as error:
        if terminal is not None:
            terminal.note(f"the earlier run is not used: {error}")
        return None
