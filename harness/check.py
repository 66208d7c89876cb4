"""Check: the whole flow, from YAML files to verdicts and reports.

    plan ─▶ run ─▶ tables ─▶ measurements ─▶ judge ─▶ run.json ─▶ outputs

The run folders are held from before the first deletion until the last output is written. A verdict of an earlier run
is deleted before anything is computed. run.json is written last, so one that passes has all of its outputs next to it,
and the exit code 0 is given in one place only, after run.json has been read back from disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import OUT_OF_MEMORY, HarnessError, WriteError, is_out_of_memory, trace_causes
from harness.forecast.cost import check_fits
from harness.forecast.notes import notes_before
from harness.forecast.passes import describe_passes, group_plans, split_to_fit
from harness.judge import conclude, judge
from harness.measures import collect_metrics
from harness.overview.variants import select_smallest
from harness.plan import make_all_plans, names_of, notes_on_plan, outputs_of, resolve_plan
from harness.planning.specs import Plan
from harness.planning.target import target_notes
from harness.records import FAILURE_FILE, Run
from harness.records.conclusion import conclusion, overall
from harness.records.own_rules import OUTPUTS_WRITTEN, judge_own_rules
from harness.report.display import shorten_path
from harness.report.outcomes import Outcome
from harness.running.failures import (
    describe_error,
    describe_mistakes,
    record_end,
    record_error,
    record_start,
    show_result,
)
from harness.running.stopwatch import Stopwatch, keep_time, measure_time, read_clock
from harness.system.environment import prepare_threads
from harness.system.foreign import contain
from harness.system.held_folder import count_holds, hold
from harness.system.lean_imports import import_transformers
from harness.system.library_log import keep_library_noise
from harness.terminal import Terminal
from harness.write import (
    StoredTables,
    add_suited,
    read_back,
    read_run,
    remove_outputs,
    write_failure,
    write_outputs,
    write_run,
)
from harness.writers import RUN_FILE, Writer

if TYPE_CHECKING:
    from harness.running.pair import Observed

EXIT_ERROR = 2
MARKER = ".lm-shipcheck"
"""The file by which a run folder is known as one, and which the process that writes there has locked."""
MARK_OF_OLD = "tables/journal.jsonl"
"""By which a run folder of an earlier version is known."""
MOST_NAMES = 3
"""Variants that a note names; of more it says how many."""
WORST_FIRST = (2, 1, 3, 0)


def check(files: Sequence[Path], out: Path, terminal: Terminal, stopwatch: Stopwatch | None = None) -> int:
    """Check every variant file and return the worst exit code.

    Each variant gets the folder ``out/<name>`` with run.json, its tables, and the outputs that its file requests.
    stopwatch: of the process that does nothing else; by default one that begins now. Raises PlanError before any model
    is loaded, with every mistake of every file.
    """
    stopwatch = stopwatch or Stopwatch()
    with ExitStack() as held, keep_time(stopwatch):
        with measure_time(stopwatch.shared, "plan"):
            try:
                plans = make_all_plans(files)
            except HarnessError as error:
                _refuse(files, error, out, terminal)
                raise
            for plan in plans:
                held.enter_context(_hold_run_folder(out / plan.name))
        return _check(plans, out, terminal, stopwatch)


def _check(plans: Sequence[Plan], out: Path, terminal: Terminal, stopwatch: Stopwatch) -> int:
    """Check every plan in its folder, which this process holds."""
    folders = {plan.name: out / plan.name for plan in plans}
    outcomes: list[Outcome] = []
    try:
        with measure_time(stopwatch.shared, "plan"):
            try:
                _note_together(plans, folders, terminal)
            finally:
                _begin_anew(plans, folders, terminal)
        _remove_overview(out)
        prepare_threads()
        with keep_library_noise(list(folders.values())):
            for outcome in _run_groups(plans, folders, terminal, stopwatch):
                outcomes.append(outcome)
    except BaseException as error:
        ended = [plan for plan in plans if plan.name not in {each.name for each in outcomes}]
        record_end(ended, [folders[plan.name] for plan in ended], error, terminal)
        raise
    codes = {outcome.name: outcome.code for outcome in outcomes}
    if len(plans) > 1:
        terminal.summarize([next(each for each in outcomes if each.name == plan.name) for plan in plans])
    counted = _settle(plans, folders, codes, terminal)
    if len(plans) > 1:
        counted.append(_write_overview(list(folders.values()), out, terminal))
    return min(counted, key=WORST_FIRST.index)


def _settle(
    plans: Sequence[Plan], folders: Mapping[str, Path], codes: Mapping[str, int], terminal: Terminal
) -> list[int]:
    """The exit codes that count: those of all variants, or of the one that its file asks for."""
    counted = [codes[plan.name] for plan in plans if plan.select == "all"]
    for source in dict.fromkeys(plan.source for plan in plans if plan.select != "all"):
        members = [plan for plan in plans if plan.source == source]
        counted += _settle_selection(members, folders, codes, terminal)
    return counted


def _settle_selection(
    plans: Sequence[Plan], folders: Mapping[str, Path], codes: Mapping[str, int], terminal: Terminal
) -> list[int]:
    """The exit codes that count of a file that asks for one of its variants, which all of its outputs then name."""
    judged = [plan for plan in plans if os.path.lexists(folders[plan.name] / RUN_FILE)]
    runs = {plan.name: read_run(folders[plan.name]) for plan in judged}
    passed = [run for name, run in runs.items() if codes[name] == 0]
    selected = select_smallest(passed)
    count = f"{plans[0].source}: {len(passed)} of {len(plans)} variants pass"
    if selected:
        terminal.note(f"{count}; selected {selected}, the smallest of them, whose exit code counts")
    else:
        terminal.note(f"{count}{', none of them of a known size' * bool(passed)}; the worst exit code of all counts")
    counted = [] if selected else [codes[plan.name] for plan in plans]
    for plan in judged:
        run, writers = runs[plan.name], add_suited(plan.outputs, os.environ)
        if selected:
            run, _, failure = _publish(run.model_copy(update={"selected": selected}), folders[plan.name], writers)
            if failure:
                terminal.error(f"{plan.name}: {failure}")
            counted += [EXIT_ERROR] if failure else [exit_code_of(run)] if plan.name == selected else []
        if selected in ("", plan.name):
            show_result(run, folders[plan.name], writers, terminal)
    return counted


def _begin_anew(plans: Sequence[Plan], folders: Mapping[str, Path], terminal: Terminal) -> None:
    """Delete every result of an earlier check, and leave word that this one was started."""
    for plan in plans:
        for text in remove_outputs(folders[plan.name], add_suited(plan.outputs, os.environ)):
            terminal.note(f"{plan.name}: {text}")
    for plan in plans:
        record_start(plan, folders[plan.name])


def _note_together(plans: Sequence[Plan], folders: Mapping[str, Path], terminal: Terminal) -> None:
    """What is to be said of plans before they run; what holds for several is said once, with their names."""
    names: dict[str, list[str]] = {}
    for plan in plans:
        for text in [*(note.text for note in target_notes(plan)), *notes_before(plan, folders[plan.name])]:
            names.setdefault(text, []).append(plan.name)
    for text, of in names.items():
        more = f" and {len(of) - MOST_NAMES} more" * (len(of) > MOST_NAMES)
        terminal.note(f"{', '.join(of[:MOST_NAMES])}{more}: {text}")


def _run_groups(
    plans: Sequence[Plan], folders: Mapping[str, Path], terminal: Terminal, stopwatch: Stopwatch
) -> Iterator[Outcome]:
    """Run, judge and write every plan, those together that share a reference pass."""
    with measure_time(stopwatch.shared, "imports"):
        import_transformers()
        from harness.run import run_group

    several = len(plans) > 1
    for group in _list_passes(plans, terminal):
        started = datetime.now(UTC)
        terminal.stage(f"{', '.join(plan.name for plan in group)}: reference {group[0].reference.model}")
        try:
            check_fits(group)
            with _tell_of_memory(), contain(f"the run of {', '.join(plan.name for plan in group)}"):
                results = run_group(group, [folders[plan.name] for plan in group], terminal)
        except HarnessError as error:
            terminal.error(str(error), error.failure)
            for plan in group:
                yield _record_failure(plan, error, folders[plan.name], terminal, shared=True)
            continue
        for plan, result in zip(group, results, strict=True):
            show = terminal.brief if several else terminal.verdict
            yield _conclude(plan, result, started, stopwatch, folders[plan.name], terminal, show)


def _list_passes(plans: Sequence[Plan], terminal: Terminal) -> Iterator[list[Plan]]:
    """The plans that go through the reference together; says where memory asks for more passes than one."""
    for group in group_plans(plans):
        passes = split_to_fit(group)
        if text := describe_passes(passes):
            terminal.note(text)
        yield from passes


@contextmanager
def _tell_of_memory() -> Iterator[None]:
    """Turn memory that runs out, wherever that is, into an error that a user can act on."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if not any(map(is_out_of_memory, trace_causes(error))):
            raise
        raise HarnessError(f"{OUT_OF_MEMORY} ({' '.join(str(error).split()) or type(error).__name__})") from error


def _remove_overview(out: Path) -> None:
    """Delete the overview of an earlier check: it may call a variant good that is checked again now."""
    from harness.overview.page import FILE_NAME, is_overview

    if is_overview(out / FILE_NAME):
        (out / FILE_NAME).unlink()


def _write_overview(folders: Sequence[Path], out: Path, terminal: Terminal) -> int:
    """Write one page about all variants; returns the exit code that this leaves possible."""
    from harness.overview.page import FILE_NAME, write_overview

    try:
        terminal.note(f"overview: {shorten_path(write_overview(folders, out / FILE_NAME))}")
    except HarnessError as error:
        terminal.error(str(error), error.failure)
        return EXIT_ERROR
    return 0


def exit_code_of(run: Run) -> int:
    """The exit code of a run, as read back from its run.json."""
    _, code = overall(run.verdicts)
    return code if code == run.exit_code else EXIT_ERROR


@contextmanager
def _hold_run_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder against other processes; its tables stay, to be resumed. Raises WriteError."""
    lock = hold(folder, MARKER, (MARK_OF_OLD,))
    try:
        yield
    finally:
        os.close(lock)


def _refuse(files: Sequence[Path], error: HarnessError, out: Path, terminal: Terminal) -> None:
    """Leave and show why nothing was run of files that have mistakes, in place of what an earlier check left."""
    for name, path in {name: each for each in files for name in sorted(names_of(each))}.items():
        folder = out / name
        judged = os.path.lexists(folder / RUN_FILE)
        try:
            with _hold_run_folder(folder):
                remove_outputs(folder, ())
                writers = add_suited(outputs_of(path), os.environ)
                write_failure(describe_mistakes(name, path, error), folder, writers)
        except HarnessError as unwritten:
            what = "the result of an earlier check stays" if judged else "failure.json was not written"
            terminal.error(f"{what}: {unwritten}", unwritten.failure)
        else:
            if judged:
                terminal.note(f"{folder}: the result of an earlier check was removed, because its files have changed")
    names = ", ".join(path.name for path in files)
    show_result(describe_mistakes(names, files[0], error), None, add_suited((), os.environ), terminal)


def _conclude(
    plan: Plan,
    result: Observed | HarnessError,
    started: datetime,
    stopwatch: Stopwatch,
    folder: Path,
    terminal: Terminal,
    show: Callable[[Run, Sequence[Path]], None],
) -> Outcome:
    """Judge, write and show one variant."""
    if isinstance(result, HarnessError):
        terminal.error(f"{plan.name}: {result}", result.failure)
        return _record_failure(plan, result, folder, terminal, shared=False)
    for message in result.messages:
        terminal.note(message)
    writers = add_suited(plan.outputs, os.environ)
    checks = count_holds((folder / MARKER).read_bytes())
    run, written, failure = _publish(_judge_variant(result, started, stopwatch, checks), folder, writers)
    code = exit_code_of(run)
    show(run, written)
    if plan.select == "all":  # else once it is known which counts
        show_result(run, folder, writers, terminal)
    if failure:
        if not os.path.lexists(folder / RUN_FILE):
            with suppress(WriteError):  # it is told below
                write_failure(describe_error(plan, WriteError(failure), shared=False), folder, writers)
        text = f"{plan.name}: {failure}\nthe exit code is {code}: nothing passes without all of its outputs"
        terminal.error(text)
    return Outcome.from_run(run, code, failure)


def _record_failure(plan: Plan, error: HarnessError, folder: Path, terminal: Terminal, shared: bool) -> Outcome:
    """Leave word of the failure where there will be no run.json."""
    record_error(plan, error, folder, terminal, shared)
    first = (str(error).splitlines() or [""])[0]
    return Outcome(plan.name, EXIT_ERROR, "error", error.failure, first)


def _publish(run: Run, folder: Path, writers: Sequence[Writer]) -> tuple[Run, list[Path], str]:
    """Write the outputs, then run.json; returns the run as read back, the outputs, and what could not be written."""
    failure, spent = "", dict[str, float]()
    try:
        # Outputs are made from what run.json will hold, so that making them again gives the same bytes.
        run = read_back(run)
        tables = StoredTables(folder / "tables", run.data_key)
        try:
            with measure_time(spent, "outputs"):
                written = write_outputs(run, folder, writers, tables)
            if tables.problem:  # an output does without, and says so; but these were written a moment ago
                raise WriteError(f"not every output shows all of its tables: {tables.problem}")
        except WriteError as error:
            failure, written = str(error), []
            run = read_back(_withhold_pass(run, failure))
            with suppress(WriteError):  # so that no output says that the run passed
                write_outputs(run, folder, writers)
        write_run(run.model_copy(update={"clock": run.clock.model_copy(update=spent)}), folder)
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


def _judge_variant(observed: Observed, started: datetime, stopwatch: Stopwatch, checks: int) -> Run:
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
        clock=read_clock(stopwatch, started, observed.seconds, checks),
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
