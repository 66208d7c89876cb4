"""Failures: what is left of variants that could not be run, and what is shown of them where the check runs.

A record stands in the run folder from the start of a check until its run.json is written, so that a process that is
killed leaves no folder without a word.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from harness import __version__
from harness.errors import FailureClass, HarnessError, PlanError, WriteError, classify
from harness.planning.specs import Plan
from harness.records import Failure, Fault, Run
from harness.system.foreign import EndedBySignal
from harness.system.yaml_file import read_yaml
from harness.terminal import Terminal
from harness.write import add_suited, announce, write_failure
from harness.writers import Writer

UNFINISHED = (
    "the check was started and did not end: it still runs, or its process was killed; what was measured is kept, and "
    "the same command resumes"
)


def record_start(plan: Plan, folder: Path) -> None:
    """Leave word that a check was started, in every output that can say it."""
    failure = _describe(plan.name, plan.source, "resources", UNFINISHED, 2)
    with suppress(WriteError):  # where nothing can be written, no verdict can
        write_failure(failure, folder, add_suited(plan.outputs, os.environ))


def record_error(plan: Plan, error: HarnessError, folder: Path, terminal: Terminal, shared: bool) -> None:
    """Leave and show why a variant could not be run. shared: the error is about all that share its reference pass."""
    _leave(describe_error(plan, error, shared), folder, add_suited(plan.outputs, os.environ), terminal)


def describe_error(plan: Plan, error: HarnessError, shared: bool) -> Failure:
    """Why a variant could not be run, at the line of the key that the error is about."""
    key = "reference" if shared and error.key == "variant" else error.key
    source = read_yaml(Path(plan.source), []) if key else None
    fault = Fault(file=plan.source, line=source.line((key,)) if source else 1, message=str(error))
    return _describe(plan.name, plan.source, error.failure, str(error), 2, (fault,))


def record_end(plans: Sequence[Plan], folders: Sequence[Path], error: BaseException, terminal: Terminal) -> None:
    """Leave and show that a check ended before these variants had a result. Raises nothing that is not a signal."""
    text, code = str(error) or type(error).__name__, 2
    failure = classify(error)
    if isinstance(error, EndedBySignal):
        name, code = signal.Signals(error.number).name, 128 + error.number
        text, failure = f"ended by {name}; what was measured is kept, and the same command resumes", "resources"
    for plan, folder in zip(plans, folders, strict=True):
        with suppress(Exception):  # the error that ended the check is the one to be told
            described = _describe(plan.name, plan.source, failure, text, code)
            _leave(described, folder, add_suited(plan.outputs, os.environ), terminal)


def describe_mistakes(name: str, source: Path, error: HarnessError) -> Failure:
    """Why a variant whose files have mistakes was not run."""
    problems = error.problems if isinstance(error, PlanError) else ()
    faults = tuple(Fault(file=each.file, line=each.line or 1, message=each.message) for each in problems)
    return _describe(name, str(source), error.failure, str(error), 2, faults)


def show_result(run: Run | Failure, folder: Path | None, writers: Sequence[Writer], terminal: Terminal) -> None:
    """Show a run, or why there is none, where the check runs."""
    said, unsaid = announce(run, folder, writers, os.environ)
    terminal.announce(said)
    if unsaid:
        terminal.note(f"{run.name}: {unsaid}")


def _leave(failure: Failure, folder: Path, writers: Sequence[Writer], terminal: Terminal) -> None:
    try:
        write_failure(failure, folder, writers)
    except WriteError as unwritten:
        terminal.error(str(unwritten), unwritten.failure)
    show_result(failure, folder, writers, terminal)


def _describe(
    name: str, source: str, failure: FailureClass, message: str, code: int, faults: Sequence[Fault] = ()
) -> Failure:
    return Failure(
        name=name,
        exit_code=code,
        failure=failure,
        message=message,
        source=source,
        faults=tuple(faults),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        harness=__version__,
    )
