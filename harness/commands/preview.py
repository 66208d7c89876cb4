"""Preview: the plan and cost of a variant file, before a model is loaded, and the defects of a gate file.

plan ─▶ metrics and their numbers of documents ─▶ documents each rule needs, defects of each gate, cost
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import PlanError
from harness.forecast.cost import cost
from harness.forecast.linting.evidence import gather_for_plan, gather_for_suites
from harness.forecast.linting.findings import exit_code
from harness.forecast.linting.hopeless import find_hopeless
from harness.forecast.linting.lint import lint
from harness.forecast.linting.page import print_findings
from harness.forecast.needs import needs
from harness.forecast.notes import earlier_run, findings_of
from harness.forecast.page import print_plan
from harness.forecast.passes import describe_passes, group_plans, split_to_fit
from harness.plan import load_gate, load_suite, make_plans, named_in, notes_on_plan
from harness.planning.matrix import describe_choice
from harness.terminal import Terminal, standard_console
from harness.write import read_run


def preview_plan(file: Path, run_folder: Path | None, out: Path) -> int:
    """Print the plan of a variant file with the documents its rules need and the expected cost; returns 0.

    run_folder: an earlier run whose variances and timings are used; None: the run in ``out``, if there is one.
    Raises PlanError with every mistake in the files, and HarnessError for a given run that cannot be read.
    """
    terminal = Terminal()
    try:
        plans = make_plans(file)
    except PlanError:
        for finding in find_hopeless(*named_in(file)):  # beside mistakes, which would hide it until they are mended
            terminal.note(str(finding))
        raise
    told: set[str] = set()
    for number, plan in enumerate(plans):
        folder = run_folder or out / plan.name
        run = read_run(folder) if run_folder else earlier_run(folder, terminal)
        evidence = gather_for_plan(plan, run, folder)
        if number == 0:
            console = standard_console(sys.stdout)
            print_plan(console, plan, needs(plan.gates, evidence.metrics, run), cost(plan, run), run)
        else:
            terminal.note(f"{plan.name}: as {plans[0].name}, with {describe_choice(plan.choice)}")
        notes = [note.text for note in notes_on_plan(plan)]
        hopeless = find_hopeless(plan.gates, plan.suites, run)
        for text in [*notes, *map(str, [*hopeless, *findings_of(plan, evidence, needed=False)])]:
            if text not in told:
                terminal.note(text)
            told.add(text)
    for group in group_plans(plans):
        if text := describe_passes(split_to_fit(group)):
            terminal.note(text)
    return 0


def lint_gate(name: str, suites: Sequence[str], variant: Path | None, run_folder: Path | None) -> int:
    """Print every defect of a gate; returns 0, or 2 if a rule cannot work as written.

    Raises PlanError with every mistake in the files, and HarnessError for a run that cannot be read.
    """
    gate = load_gate(name, Path.cwd())
    run = read_run(run_folder) if run_folder else None
    if variant is not None:
        evidence = gather_for_plan(make_plans(variant)[0], run, run_folder)
    else:
        evidence = gather_for_suites([load_suite(suite, Path.cwd()) for suite in suites], run, run_folder)
    findings = lint(gate, evidence)
    print_findings(standard_console(sys.stdout), gate, evidence, findings)
    return exit_code(findings)
