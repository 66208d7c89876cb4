"""Publish: write the outputs of a judged run, then its run.json, and read that back: nothing passes without them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from harness.errors import HarnessError, WriteError
from harness.judge import conclude
from harness.records import FAILURE_FILE, Run
from harness.records.conclusion import overall
from harness.records.own_rules import OUTPUTS_WRITTEN
from harness.write import StoredTables, read_back, read_run, remove_outputs, write_outputs, write_run
from harness.writers import Writer

EXIT_ERROR = 2


def publish(run: Run, folder: Path, writers: Sequence[Writer]) -> tuple[Run, list[Path], str]:
    """Write the outputs, then run.json; returns the run as read back, the outputs, and what could not be written."""
    failure = ""
    try:
        # Outputs are made from what run.json will hold, so that making them again gives the same bytes.
        run = read_back(run)
        tables, began = StoredTables(folder / "tables", run.data_key), perf_counter()
        try:
            written = write_outputs(run, folder, writers, tables)
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
