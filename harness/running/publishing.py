"""Judge a variant, and publish it: write its outputs, then run.json, and read that back: nothing passes without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

from harness.errors import HarnessError, WriteError
from harness.judge import conclude, judge
from harness.measures import collect_metrics
from harness.plan import notes_on_plan, resolve_plan
from harness.records import FAILURE_FILE, Run
from harness.records.conclusion import conclusion, overall
from harness.records.own_rules import OUTPUTS_WRITTEN, judge_own_rules
from harness.system.stopwatch import measure_time, read_clock
from harness.write import StoredTables, read_back, read_run, remove_outputs, write_outputs, write_run
from harness.writers import Writer

if TYPE_CHECKING:
    from harness.concluding.pair import Observed

EXIT_ERROR = 2


@dataclass(frozen=True)
class Judged:
    """The run of a variant that another process has judged. outputs: files that it has made of it, by name.

    messages: see Observed.
    """

    run: Run
    outputs: Mapping[str, bytes] = field(default_factory=dict)
    messages: Sequence[str] = ()


def judge_variant(observed: Observed, started: datetime, checks: int) -> Run:
    """The run of a variant with its verdicts. checks: how often its folder was held, this time included."""
    with measure_time(observed.seconds, "judge"):
        identical = observed.reference.same_as(observed.variant)
        metrics = collect_metrics(measure for suite in observed.plan.suites for measure in suite.measures)
        verdicts = judge(
            observed.plan.gates, observed.measurements, observed.skipped, identical, observed.slices, metrics=metrics
        )
        verdicts += judge_own_rules(observed.broken)
        concluded = conclusion(verdicts)
        notes = (*notes_on_plan(observed.plan), *observed.notes)
    return Run(
        name=observed.plan.name,
        data_key=observed.data_key,
        **concluded._asdict(),
        asked=resolve_plan(observed.plan),
        reference=observed.reference,
        variant=observed.variant,
        environment=observed.environment,
        clock=read_clock(started, observed.seconds, checks),
        metrics=metrics,
        measurements=tuple(observed.measurements),
        skipped=tuple(observed.skipped),
        slices=tuple(observed.slices),
        stops=tuple(observed.stops.values()),
        verdicts=verdicts,
        notes=notes,
        warnings=sum(note.level == "warn" for note in notes),
        artifact=observed.artifact,
        comparison=observed.comparison,
    )


def make_outputs(run: Run, tables: StoredTables, writers: Sequence[Writer]) -> dict[str, bytes]:
    """The files of portable writers, by name, made without the folder of the run. What cannot be made is left out: who
    has the folder tries again, and tells."""
    made: dict[str, bytes] = {}
    with suppress(HarnessError):
        run = read_back(run)
        for writer in writers:
            with TemporaryDirectory() as folder, suppress(WriteError):
                (path,) = write_outputs(run, Path(folder), [writer], tables)
                made[writer.file_name] = path.read_bytes()
    return {} if tables.problem else made


def publish(
    run: Run, folder: Path, writers: Sequence[Writer], made: Mapping[str, bytes] | None = None
) -> tuple[Run, list[Path], str]:
    """Write the outputs, then run.json; returns the run as read back, the outputs, and what could not be written.

    made: outputs that were made of the run elsewhere (see ``make_outputs``).
    """
    failure = ""
    try:
        # Outputs are made from what run.json will hold, so that making them again gives the same bytes.
        run = read_back(run)
        tables, began = StoredTables(folder / "tables", run.data_key), perf_counter()
        try:
            written = write_outputs(run, folder, writers, tables, made)
            if tables.problem:  # an output does without, and says so; but these were written a moment ago
                raise WriteError(f"not every output shows all of its tables: {tables.problem}")
        except WriteError as error:
            failure, written = str(error), []
            run = read_back(_withhold_pass(run, failure))
            with suppress(WriteError):  # so that no output says that the run passed
                write_outputs(run, folder, writers)
        clock = run.clock.model_copy(update={"outputs": perf_counter() - began})
        write_run(run.model_copy(update={"clock": clock}), folder)
        finished = read_run(folder)
        (folder / FAILURE_FILE).unlink(missing_ok=True)
        return finished, written, failure
    except HarnessError as error:
        with suppress(WriteError):
            remove_outputs(folder, writers)
        return _withhold_pass(run, str(error)), [], str(error)


def _withhold_pass(run: Run, failure: str) -> Run:
    """The run, of which something could not be written: it cannot pass. A failure that was found stays one."""
    failed = OUTPUTS_WRITTEN.break_with(failure)
    if run.verdict == "fail":
        failed = failed.model_copy(update={"level": "warn"})
    return conclude(run, (*run.verdicts, failed))


def exit_code_of(run: Run) -> int:
    """The exit code of a run, as read back from its run.json."""
    _, code = overall(run.verdicts)
    return code if code == run.exit_code else EXIT_ERROR
