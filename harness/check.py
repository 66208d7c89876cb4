"""Check: the whole flow, from YAML files to verdicts and reports.

    plan ─▶ run ─▶ tables ─▶ measurements ─▶ judge ─▶ run.json ─▶ outputs

A verdict of an earlier run is deleted before anything is computed, and the exit code 0 is given in one place only,
after run.json has been read back from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.forecast.notes import notes_before
from harness.judge import OWN_GATE, judge, overall
from harness.measures import declared_metrics
from harness.plan import check_together, make_plan, resolved
from harness.planning.specs import Plan
from harness.planning.target import target_notes
from harness.records import Clock, Run, Verdict
from harness.system.environment import prepare_threads
from harness.system.foreign import contain
from harness.terminal import Terminal
from harness.write import read_run, remove_outputs, write_outputs, write_run

if TYPE_CHECKING:
    from harness.running.pairs import Observed

EXIT_ERROR = 2
WORST_FIRST = (2, 1, 3, 0)


def check(files: Sequence[Path], out: Path, terminal: Terminal) -> int:
    """Check every variant file and return the worst exit code.

    Each variant gets the folder ``out/<name>`` with run.json, its tables, and the outputs that its file asks for.
    Raises PlanError before any model is loaded, with every mistake of every file.
    """
    plans = check_together([make_plan(path) for path in files])
    for plan in plans:
        for note in target_notes(plan):
            terminal.note(f"{plan.name}: {note.text}")
        for text in notes_before(plan, out / plan.name):
            terminal.note(f"{plan.name}: {text}")
    folders = {plan.name: _fresh_folder(plan, out, terminal) for plan in plans}
    prepare_threads()
    from harness.run import group_plans, run_group

    codes = []
    for group in group_plans(plans):
        started = datetime.now(UTC)
        terminal.stage(f"{', '.join(plan.name for plan in group)}: reference {group[0].reference.model}")
        try:
            with contain(f"the run of {', '.join(plan.name for plan in group)}"):
                results = run_group(group, [folders[plan.name] for plan in group], terminal)
        except HarnessError as error:
            terminal.error(str(error))
            codes += [EXIT_ERROR] * len(group)
            continue
        for plan, result in zip(group, results, strict=True):
            codes.append(_conclude(plan, result, started, folders[plan.name], terminal))
    return min(codes, key=WORST_FIRST.index)


def exit_code_of(run: Run) -> int:
    """The exit code that a run, as read back from its run.json, deserves."""
    _, code = overall(run.verdicts)
    return code if code == run.exit_code else EXIT_ERROR


def _fresh_folder(plan: Plan, out: Path, terminal: Terminal) -> Path:
    """Make the run folder and delete what an earlier check wrote there; its tables stay, to be resumed."""
    folder = out / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    for text in remove_outputs(folder, plan.outputs):
        terminal.note(f"{plan.name}: {text}")
    return folder


def _conclude(plan: Plan, result: Observed | HarnessError, started: datetime, folder: Path, terminal: Terminal) -> int:
    """Judge and write one variant; returns its exit code."""
    if isinstance(result, HarnessError):
        terminal.error(f"{plan.name}: {result}")
        return EXIT_ERROR
    for message in [*result.messages, *(n.text for n in result.notes if n.topic == "hardware" and n.level == "warn")]:
        terminal.note(message)
    run = _judged(result, started)
    written: list[Path] = []
    code, failure = int(run.exit_code), ""
    try:
        write_run(run, folder)
        # Outputs are made from what was written, so that making them again gives the same bytes.
        run = read_run(folder)
        written = write_outputs(run, folder, plan.outputs)
        code = exit_code_of(run)
    except HarnessError as error:
        # A verdict that was reached stays what it is, but nothing passes without all of its outputs.
        code, failure = 1 if run.exit_code == 1 else EXIT_ERROR, f"{plan.name}: {error}"
    terminal.verdict(run, written)
    if failure:
        terminal.error(f"{failure}\nthe exit code is {code}: nothing passes without all of its outputs")
    return code


def _judged(observed: Observed, started: datetime) -> Run:
    identical = observed.reference.same_as(observed.variant)
    verdicts = judge(observed.plan.gates, observed.measurements, observed.skipped, identical, observed.slices)
    verdicts += tuple(_failure(text) for text in observed.failures)
    verdict, exit_code = overall(verdicts)
    finished = datetime.now(UTC)
    return Run(
        name=observed.plan.name,
        data_key=observed.data_key,
        verdict=verdict,
        exit_code=exit_code,
        asked=resolved(observed.plan),
        reference=observed.reference,
        variant=observed.variant,
        environment=observed.environment,
        clock=Clock(
            started=started.isoformat(timespec="seconds"),
            finished=finished.isoformat(timespec="seconds"),
            seconds=observed.seconds,
        ),
        metrics=declared_metrics(measure for suite in observed.plan.suites for measure in suite.measures),
        measurements=tuple(observed.measurements),
        skipped=tuple(observed.skipped),
        slices=tuple(observed.slices),
        stops=tuple(observed.stops.values()),
        verdicts=verdicts,
        notes=tuple(observed.notes),
        artifact=observed.artifact,
    )


def _failure(text: str) -> Verdict:
    """A measure that raised: the run cannot be judged, whatever its rules say."""
    return Verdict(
        gate=OWN_GATE,
        rule="every measure runs",
        metric="",
        status="error",
        expected="every measure of the suite computes",
        found=text,
        because=text,
        level="block",
        where="",
        why="numbers computed beside a failed measure cannot be trusted",
    )
