"""Terminal output of the command line: progress while it works, verdicts when it is done.

A terminal gets a live progress line; a file or CI log gets plain lines, few enough to read. Names come from files
written by others, so they are never interpreted as markup, terminal escapes, or commands to a CI runner. A reader that
goes away (``harness check … | head``) ends the output, never the work.
"""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO, cast

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from harness.errors import FailureClass
from harness.progress import detail_of, rows_of
from harness.records import Run, Verdict
from harness.report import comparability, display, stops, verdict, words
from harness.report.display import shorten_path
from harness.report.outcomes import Outcome
from harness.report.rules import Judged, prepare_verdicts
from harness.system.streams import EnduringStream

EVERY_SECONDS = 5.0
"""Minimum interval between progress lines without a terminal."""
_COLOURS = {
    "pass": "green",
    "fail": "red",
    "inconclusive": "yellow",
    "error": "magenta",
    "skipped": "bright_black",
}
# GitHub takes "::set-output …" at the start of a line, and "##[…]" anywhere, as a command, Azure "##vso[…]".
# Terminals wrap lines, so no position in a line is safe.
_COMMANDS = re.compile(r"::(?=\S)|##(?=\w*\[)")
_MOST_PASSED = 20
_TITLES = ("variant", "verdict", "class", "bits", "size", "KL", "perplexity")
_NUMBERS = _TITLES[3:]
_GAP, _INDENT = "  ", "    "
_MOST_WARNINGS = 20


class Terminal:
    """The command line's output. Its ``stage`` and ``step`` serve as the progress of probes."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console if console is not None else standard_console(sys.stdout)
        self._clock = clock
        self._live: _Live | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._last_line = -EVERY_SECONDS
        self._began: tuple[str, float, int] | None = None
        """What is under way, since when, and how many units were done then."""

    def stage(self, text: str) -> None:
        """Announce a new stage of the work."""
        self._end_live()
        self._print(Text(defuse(text), style="bold"))

    def step(self, what: str, done: int, of: int) -> None:
        """Report that ``done`` of ``of`` units of ``what`` are done."""
        if self._console.is_terminal:
            self._show_live(what, done, of)
        else:
            self._print_step(what, done, of)
        if done >= of:
            self._end_live()

    def note(self, text: str) -> None:
        """Print information that changes no verdict."""
        self._print(Text.assemble(("note ", "cyan"), defuse(text, 2000)))

    def error(self, text: str, failure: FailureClass | None = None) -> None:
        """Print an error that prevents a variant from being run or judged, one output line per line of the message,
        and its class where no verdict says it."""
        self._end_live()
        first, *rest = text.splitlines() or [""]
        self._print(Text.assemble(("error ", "bold red"), defuse(first, 2000)))
        for line in rest:
            self._print(Text(f"      {defuse(line, 2000)}"))
        if failure:
            self._print(Text(f"      {words.name_failure(failure)}"))

    def verdict(self, run: Run, outputs: Sequence[Path] = ()) -> None:
        """One line a rule, the verdict with its reason, and where the outputs are."""
        self._end_live()
        self._print(Text(""))
        items = prepare_verdicts(run)
        passed = [item for item in items if item.verdict.status == "pass"]
        hidden = {id(item) for item in passed[_MOST_PASSED:]}
        for item in items:
            if id(item) not in hidden:
                self._print(_rule_line(item))
        if hidden:
            self._print(Text(f"  … and {len(hidden)} more rules that pass", style="bright_black"))
        status = words.STATUSES[run.verdict]
        headline = f"{status.mark} {verdict.headline(run)}"
        self._print(Text.assemble((headline, f"bold {_COLOURS[run.verdict]}"), f"  {defuse(run.name)}"))
        self._print(Text(f"  {defuse(verdict.reason(run), 2000)}"))
        if run.comparison is not None:
            self._print(Text(f"  {defuse(comparability.verdict_line(run.comparison), 2000)}"))
        if run.failure:
            self._print(Text(f"  {words.name_failure(run.failure)}"))
        self._print_warnings(run)
        for sentence in stops.describe_stops(run):
            self._print(Text(f"  {defuse(sentence, 2000)}"))
        for path in outputs:
            self._print(Text(f"  report: {defuse(shorten_path(path), 2000)}"))

    def brief(self, run: Run, outputs: Sequence[Path] = ()) -> None:
        """The verdict of one of several variants: its reason, its warnings by number, and where the outputs are."""
        self._end_live()
        headline = f"{words.STATUSES[run.verdict].mark} {verdict.headline(run)}"
        self._print(Text.assemble((headline, f"bold {_COLOURS[run.verdict]}"), f"  {defuse(run.name)}"))
        self._print(Text(f"  {defuse(verdict.reason(run), 2000)}"))
        if run.warning_notes:
            self._print(Text(f"  {words.count_warnings(run)}, in run.json and the report"))
        for path in outputs:
            self._print(Text(f"  report: {defuse(shorten_path(path), 2000)}"))

    def summarize(self, outcomes: Sequence[Outcome]) -> None:
        """A table of several variants, in the order of the files, and the worst exit code behind it."""
        self._end_live()
        self._print(Text(""))
        rows, width = [_list_cells(each) for each in outcomes], self._console.width
        titles = _choose_titles(rows, width)
        header, *lines = _align_rows(titles, rows) if titles else ["", *map(_name_cells, rows)]
        reasons = [_explain(each, "class" in titles) for each in outcomes]
        beside = [f"{line}{_GAP}{reason}" for line, reason in zip(lines, reasons, strict=True)]
        fits = bool(titles) and all(cell_len(each.rstrip()) <= width for each in beside)
        if titles:
            with_reason = f"{header}{_GAP}reason"
            self._print(Text(with_reason if cell_len(with_reason) <= width else header, style="bold"))
        for each, line, reason in zip(outcomes, beside if fits else lines, reasons, strict=True):
            self._print_wrapped(line, _COLOURS[each.status])
            if reason and not fits:
                self._print_wrapped(f"{_INDENT}{reason}", "")

    def _print_wrapped(self, text: str, style: str) -> None:
        """Text with its further lines indented. Files and pipes get it on one line, by which it is found again."""
        width = self._console.width if self._console.is_terminal else len(text) + 1
        for part in textwrap.wrap(text, width, subsequent_indent=_INDENT, break_on_hyphens=False):
            self._print(Text(part, style=style))

    def _print_warnings(self, run: Run) -> None:
        """The warnings that a verdict must not be read without, with their number."""
        for note in run.warning_notes[:_MOST_WARNINGS]:
            text = f"{defuse(note.topic)}: {defuse(note.text, 2000)}"
            self._print(Text.assemble(("  warning ", _COLOURS["inconclusive"]), text))
        if run.warning_notes:
            self._print(Text(f"  {words.count_warnings(run)}"))

    def announce(self, lines: str) -> None:
        """Print what a writer says to the CI runner, which it has escaped: workflow commands start their line."""
        self._end_live()
        for line in lines.splitlines():
            self._print(Text(line))

    def show(self, table: Table) -> None:
        """Print a table whose cells are already sanitized."""
        self._end_live()
        self._console.print(table)

    def _show_live(self, what: str, done: int, of: int) -> None:
        if self._live is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn())
            self._live = _Live(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True
            )
            self._live.start()
            self._task = None
        if self._task is None or what != self._what:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task, self._what = self._live.add_task(defuse(what), total=of), what
        self._live.rows = tuple(map(defuse, rows_of(what)))
        self._live.update(self._task, completed=done, total=of, description=defuse(_name_stage(what)))

    def _print_step(self, what: str, done: int, of: int) -> None:
        now = self._clock()
        if self._began is None or self._began[0] != what or done < self._began[2]:
            self._began = (what, now, done)
        if done >= of or now - self._last_line >= EVERY_SECONDS:
            self._last_line = now
            stage = defuse(_name_stage(what))
            self._print(Text(f"  {stage} {done}/{of}{self._estimate_rest(now, done, of)}"))

    def _estimate_rest(self, now: float, done: int, of: int) -> str:
        """The time left, by the rate since the first report; nothing while no unit has passed since."""
        _, start, first = self._began or ("", now, done)
        if not first < done < of or now <= start:
            return ""
        return f", about {display.format_duration((now - start) / (done - first) * (of - done))} left"

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live, self._task = None, None

    def _print(self, text: Text) -> None:
        # soft_wrap: lines are not folded in a log, so that words can be searched and paths copied.
        self._console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)


class _Live(Progress):
    """A progress line, and below it a line a worker."""

    rows: tuple[str, ...] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        """The lines, from above."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"{_INDENT}{row}", no_wrap=True, overflow="ellipsis") for row in self.rows)


def _name_stage(what: str) -> str:
    detail = detail_of(what)
    return f"{what} ({detail})" if detail else what


def _rule_line(item: Judged) -> Text:
    """Status, metric, value with its interval, limit; and the reason if the rule does not pass."""
    found: Verdict = item.verdict
    status = words.STATUSES[found.status]
    name = defuse(words.add_labels(found.metric, found.labels) or found.rule)
    advisory = " (advisory)" if found.level == "warn" else ""
    line = Text.assemble(
        (f"  {status.mark} {status.word:<9} ", _COLOURS[found.status]),
        (name, "bold"),
        advisory,
        f"  {defuse(item.line)}",
    )
    return line if found.status == "pass" else line.append(f"\n      {defuse(item.because, 2000)}")


def _list_cells(outcome: Outcome) -> dict[str, str]:
    """The cells of a variant by their titles."""
    status = words.STATUSES[outcome.status]
    texts = (defuse(outcome.name), f"{status.mark} {status.word}", outcome.failure or "")
    return dict(zip(_TITLES, (*texts, outcome.bits, outcome.size, outcome.kl, outcome.perplexity), strict=True))


def _choose_titles(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """The columns of a table of variants: without the class if that has no room, none at all if the rest has none."""
    for titles in (list(_TITLES), [title for title in _TITLES if title != "class"]):
        widths = (max(cell_len(each) for each in (title, *(row[title] for row in rows))) for title in titles)
        if sum(widths) + len(_GAP) * len(titles) <= width + len(_GAP):
            return titles
    return []


def _explain(outcome: Outcome, has_class: bool) -> str:
    """The reason of a verdict, after the class of failure if that has no column."""
    parts = ("" if has_class else outcome.failure or "", defuse(outcome.reason, 2000))
    return ": ".join(part for part in parts if part)


def _align_rows(titles: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """A line of titles and one a row, with the cells under one another, numbers at the right."""
    table = [dict(zip(titles, titles, strict=True)), *rows]
    widths = {title: max(cell_len(row[title]) for row in table) for title in titles}
    for row in table:
        free = {title: " " * (widths[title] - cell_len(row[title])) for title in titles}
        yield _GAP.join(free[t] + row[t] if t in _NUMBERS else row[t] + free[t] for t in titles)


def _name_cells(row: Mapping[str, str]) -> str:
    """A row as a sentence that names its numbers, where columns have no room."""
    numbers = [f"{title} {row[title]}" for title in _NUMBERS if row[title] != "–"]
    return f"{row['variant']}: {', '.join([row['verdict'], *numbers])}"


def defuse(text: str, most: int = 300) -> str:
    """``text`` on one line without control characters, secrets, and commands to a CI runner."""
    return _COMMANDS.sub(lambda found: f"{found[0][0]} {found[0][1:]}", display.clean(text, most))


def defuse_lines(text: str) -> str:
    """``text`` with every line made harmless."""
    return "\n".join(defuse(line, 2000) for line in text.splitlines())


def standard_console(stream: TextIO) -> Console:
    """A console that can write every character to any stream and survives the end of its reader or a full disk."""
    return Console(file=cast("TextIO", EnduringStream(stream)), emoji=False, markup=False, highlight=False)
