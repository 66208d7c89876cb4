"""Check: the whole flow, from YAML files to verdicts and reports.

    plan ─▶ run ─▶ tables ─▶ measurements ─▶ judge ─▶ run.json ─▶ outputs

The run folders are held from before the first deletion until the last output is written. A verdict of an earlier run
is deleted before anything is computed. run.json is written last, so one that passes has all of its outputs next to it,
and the exit code 0 is given in one place only, after run.json has been read back from disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from harness.artifacts.fresh_process import start_early
from harness.errors import OUT_OF_MEMORY, HarnessError, WriteError, is_out_of_memory, trace_causes
from harness.forecast.cost import check_fits
from harness.forecast.notes import notes_before
from harness.forecast.passes import describe_passes, group_plans, split_to_fit
from harness.overview.variants import select_smallest
from harness.plan import make_all_plans, names_of, outputs_of
from harness.planning.specs import Plan
from harness.planning.target import target_notes
from harness.records import Run
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
from harness.running.publishing import EXIT_ERROR, Judged, exit_code_of, judge_variant, publish
from harness.system.environment import prepare_threads
from harness.system.foreign import contain
from harness.system.held_folder import count_holds, hold
from harness.system.lean_imports import import_transformers
from harness.system.library_log import keep_library_noise
from harness.system.stopwatch import keep_time, measure_shared, measure_time
from harness.terminal import Terminal
from harness.write import (
    add_suited,
    read_run,
    remove_outputs,
    write_failure,
)
from harness.writers import RUN_FILE

if TYPE_CHECKING:
    from harness.concluding.pair import Observed

R = TypeVar("R")
MARKER = ".lm-shipcheck"
"""The file by which a run folder is known as one, and which the process that writes there has locked."""
MARK_OF_OLD = "tables/journal.jsonl"
"""By which a run folder of an earlier version is known."""
MOST_NAMES = 3
"""Variants that a note names; of more it says how many."""
WORST_FIRST = (2, 1, 3, 0)


class Runner(Protocol):
    """Computes the records of the variants of one group of plans (see harness.run.run_group)."""

    def __call__(
        self, plans: Sequence[Plan], folders: Sequence[Path], progress: Terminal, /
    ) -> Sequence[Observed | Judged | HarnessError]:
        """The record of every variant, judged or not, or why there is none."""
        ...


def check(files: Sequence[Path], out: Path, terminal: Terminal, run: Runner | None = None) -> int:
    """Check every variant file and return the worst exit code.

    Each variant gets the folder ``out/<name>`` with run.json, its tables, and the outputs that its file requests.
    run: what computes their records; by default this process, which then opens the models.
    Raises PlanError before any model is loaded, with every mistake of every file.
    """
    with ExitStack() as held, keep_time():
        with measure_shared("plan"):
            plans = read_plans(files, out, terminal)
            for plan in plans:
                held.enter_context(hold_run_folder(out / plan.name))
        return _check(plans, out, terminal, run)


def read_plans(files: Sequence[Path], out: Path, terminal: Terminal) -> Sequence[Plan]:
    """The plans of all variant files. Raises PlanError, once that has been left and shown in place of any result."""
    try:
        return make_all_plans(files)
    except HarnessError as error:
        _refuse(files, error, out, terminal)
        raise


def _check(plans: Sequence[Plan], out: Path, terminal: Terminal, run: Runner | None) -> int:
    """Check every plan in its folder, which this process holds."""
    folders = {plan.name: out / plan.name for plan in plans}
    outcomes: list[Outcome] = []
    try:
        with measure_shared("plan"):
            try:
                _note_together(plans, folders, terminal)
            finally:
                begin_anew(plans, folders, terminal)
        _remove_overview(out)
        prepare_threads()
        with keep_library_noise(list(folders.values())):
            for outcome in _run_groups(plans, folders, terminal, run):
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
            run, _, failure = publish(run.model_copy(update={"selected": selected}), folders[plan.name], writers)
            if failure:
                terminal.error(f"{plan.name}: {failure}")
            counted += [EXIT_ERROR] if failure else [exit_code_of(run)] if plan.name == selected else []
        if selected in ("", plan.name):
            show_result(run, folders[plan.name], writers, terminal)
    return counted


def begin_anew(plans: Sequence[Plan], folders: Mapping[str, Path], terminal: Terminal) -> None:
    """Delete every result of an earlier check, and leave word that this one was started."""
    for plan in plans:
        for text in remove_outputs(folders[plan.name], add_suited(plan.outputs, os.environ)):
            terminal.note(f"{plan.name}: {text}")
    for plan in plans:
        record_start(plan, folders[plan.name])


def _note_together(plans: Sequence[Plan], folders: Mapping[str, Path], terminal: Terminal) -> None:
    """What is to be said of plans before they run; what holds for several is said once, with their names.

    What is said of one place of a gate may differ in its numbers, by their earlier runs: the first stands for all.
    """
    said: dict[tuple[str, int], dict[str, str]] = {}
    for plan in plans:
        of_target = {(note.text, 0): note.text for note in target_notes(plan)}
        for about, text in (of_target | notes_before(plan, folders[plan.name])).items():
            said.setdefault(about, {})[plan.name] = text
    for texts in said.values():
        names, first = list(texts), next(iter(texts.values()))
        more = f" and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES)
        others = sum(text != first for text in texts.values())
        alike = f" (for {others} of them with other numbers)" if others else ""
        terminal.note(f"{', '.join(names[:MOST_NAMES])}{more}: {first}{alike}")


def _run_groups(
    plans: Sequence[Plan], folders: Mapping[str, Path], terminal: Terminal, run: Runner | None
) -> Iterator[Outcome]:
    """Run, judge and write every plan, those together that share a reference pass."""
    several = len(plans) > 1
    for group in list_passes(plans, terminal) if run is None else [[plan] for plan in plans]:
        started = datetime.now(UTC)
        results = run_or_record(group, folders, terminal, run or _run_here)
        if isinstance(results, HarnessError):
            yield from (Outcome.from_error(plan.name, results) for plan in group)
            continue
        for plan, result in zip(group, results, strict=True):
            show = terminal.brief if several else terminal.verdict
            yield _conclude(plan, result, started, folders[plan.name], terminal, show)


def _run_here(
    plans: Sequence[Plan], folders: Sequence[Path], progress: Terminal, /
) -> Sequence[Observed | Judged | HarnessError]:
    if (spec := plans[0].run) is not None:
        from harness.cluster.run import run_group_on_cluster

        return run_group_on_cluster(plans, folders, list(map(_count_checks, folders)), spec, progress, progress.note)
    with start_early() if any(plan.reloads_artifact for plan in plans) else nullcontext():
        with measure_shared("imports"):
            import_transformers()
            from harness.run import run_group

        check_fits(plans)
        return run_group(plans, folders, progress)


def run_or_record(
    group: Sequence[Plan],
    folders: Mapping[str, Path],
    terminal: Terminal,
    run: Callable[[Sequence[Plan], Sequence[Path], Terminal], R],
) -> R | HarnessError:
    """What ``run`` returns for a group of plans; a failure that is common to all is left in every folder, and shown."""
    names = ", ".join(plan.name for plan in group)
    terminal.stage(f"{names}: reference {group[0].reference.model}")
    try:
        with _tell_of_memory(), contain(f"the run of {names}"):
            return run(group, [folders[plan.name] for plan in group], terminal)
    except HarnessError as error:
        terminal.error(str(error), error.failure)
        for plan in group:
            record_error(plan, error, folders[plan.name], terminal, shared=True)
        return error


def list_passes(plans: Sequence[Plan], terminal: Terminal) -> Iterator[list[Plan]]:
    """The plans that go through the reference together; says where memory asks for more passes than one."""
    for group in group_plans(plans):
        passes = [group] if group[0].run else split_to_fit(group)
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


@contextmanager
def hold_run_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder against other processes; its tables stay, to be resumed. Raises WriteError."""
    lock = hold(folder, MARKER, (MARK_OF_OLD,))
    try:
        yield
    finally:
        os.close(lock)


def _count_checks(folder: Path) -> int:
    return count_holds((folder / MARKER).read_bytes())


def _refuse(files: Sequence[Path], error: HarnessError, out: Path, terminal: Terminal) -> None:
    """Leave and show why nothing was run of files that have mistakes, in place of what an earlier check left."""
    for name, path in {name: each for each in files for name in sorted(names_of(each))}.items():
        folder = out / name
        judged = os.path.lexists(folder / RUN_FILE)
        try:
            with hold_run_folder(folder):
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
    result: Observed | Judged | HarnessError,
    started: datetime,
    folder: Path,
    terminal: Terminal,
    show: Callable[[Run, Sequence[Path]], None],
) -> Outcome:
    """Judge, write and show one variant."""
    if isinstance(result, HarnessError):
        terminal.error(f"{plan.name}: {result}", result.failure)
        record_error(plan, result, folder, terminal, shared=False)
        return Outcome.from_error(plan.name, result)
    for message in result.messages:
        terminal.note(message)
    writers = add_suited(plan.outputs, os.environ)
    if not isinstance(result, Judged):
        result = Judged(judge_variant(result, started, _count_checks(folder)))
    with measure_time({}, "outputs"):
        run, written, failure = publish(result.run, folder, writers, result.outputs)
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
