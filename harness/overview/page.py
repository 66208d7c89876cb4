"""The overview as one file of HTML, written beside the run folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from markupsafe import Markup

from harness.errors import HarnessError, WriteError
from harness.overview import history, variants
from harness.overview.history import Series, Step
from harness.overview.variants import Cost, Group, Point, Variant
from harness.records import FAILURE_FILE, Failure, Run
from harness.report import display, words
from harness.report.drawing import planes
from harness.report.drawing.scales import Scale, fit_log_scale, fit_scale
from harness.report.summaries.layers import read_layers
from harness.report.summaries.suite_tables import open_suites
from harness.system import resources
from harness.system.files import write_atomic
from harness.write import StoredTables, read_run
from harness.writers import RUN_FILE
from harness.writers.report_html import ReportHtml, make_environment, read_assets

FILE_NAME = "overview.html"
MARK = Markup('<meta name="generator" content="lm-shipcheck overview">')
"""By which an overview that this program wrote is known: no other file is replaced or removed."""


@dataclass(frozen=True)
class Frontier:
    """The chart of quality against one cost. dominated: each dominated variant with one that dominates it."""

    cost: Cost
    chart: Markup
    dominated: tuple[tuple[str, str], ...]
    missing: int


@dataclass(frozen=True)
class Profiles:
    """A small chart for each variant, all on one scale from low to high; log: by logarithms."""

    charts: tuple[tuple[Variant, Markup], ...]
    low: str
    high: str
    log: bool


@dataclass(frozen=True)
class Course:
    """The runs of one name in order of time."""

    name: str
    runs: tuple[Variant, ...]
    series: tuple[tuple[Series, Markup], ...]
    steps: tuple[Step, ...]


def write_overview(folders: Sequence[Path], path: Path) -> Path:
    """Write one page about the finished runs in ``folders`` and return its path.

    Folders of variants that could not be run count with their failure.json. Raises HarnessError for a folder without
    either, and WriteError.
    """
    found = [_read(folder, path.parent) for folder in folders]
    runs = [each for each in found if isinstance(each, Variant)]
    failures = [each for each in found if isinstance(each, Failure)]
    if path.exists() and not is_overview(path):
        raise WriteError(f"{path}: found a file that is no overview, expected a new path or an earlier overview")
    write_atomic(path, render(runs, failures).encode())
    return path


def is_overview(path: Path) -> bool:
    """Whether a file is an overview that this program wrote."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return MARK in stream.read(2000)
    except OSError:
        return False


def _read(folder: Path, beside: Path) -> Variant | Failure:
    failed = folder / FAILURE_FILE
    if failed.is_file() and not (folder / RUN_FILE).exists():
        return Failure.model_validate_json(failed.read_bytes())
    run = read_run(folder)
    report = folder / ReportHtml.file_name
    link = Path(os.path.relpath(report, beside)).as_posix() if report.is_file() else ""
    return Variant(run, folder, link)


def render(found: Sequence[Variant], failures: Sequence[Failure] = ()) -> str:
    """The page as HTML; the same runs and tables give the same text. Raises WriteError."""
    templates = resources.folder("reports")
    assets = read_assets(templates, "style.css", "overview.css")
    courses = list(find_courses(found))
    newest = {id(course.runs[-1]) for course in courses} | {
        id(each) for each in found if all(each not in course.runs for course in courses)
    }
    values = {
        "groups": variants.group_variants(each for each in found if id(each) in newest),
        "failures": failures,
        "courses": courses,
        "mark": MARK,
    }
    tools = {"variants": variants, "history": history, "page": _Tools}
    try:
        return make_environment(templates).get_template("overview.html").render(values | assets | tools)
    except TemplateError as error:
        raise WriteError(f"{FILE_NAME}: template overview.html failed: {error}") from error


def find_courses(found: Iterable[Variant]) -> Iterable[Course]:
    """The runs of every name that has several, in order of time."""
    named: dict[str, list[Variant]] = {}
    for each in found:
        named.setdefault(each.run.name, []).append(each)
    for name, several in named.items():
        if len(several) > 1:
            ordered = sorted(several, key=lambda each: (each.run.clock.started, str(each.folder)))
            runs = [each.run for each in ordered]
            drawn = tuple((series, _draw_series(series, runs)) for series in history.find_series(runs))
            yield Course(name, tuple(ordered), drawn, tuple(history.find_steps(runs)))


def _draw_series(series: Series, runs: Sequence[Run]) -> Markup:
    dates = [run.clock.started[:10] for run in runs]
    readings = [
        planes.Reading(
            p.run, p.value, p.low, p.high, p.limits, p.status,
            f"{runs[p.run].clock.started}: {display.quantity(p.value, series.unit)}, {words.STATUSES[p.status].word}",
        )
        for p in series.points
    ]  # fmt: skip
    return planes.course(readings, dates, display.number, series.title or series.name)


@dataclass(frozen=True)
class Cell:
    """A number at reading precision; full: all of it, with where it comes from, for hovering; value: to sort by."""

    shown: str
    full: str = ""
    value: float = 0.0


@dataclass(frozen=True)
class Column:
    """A column of the table of variants."""

    title: str
    cell: Callable[[Variant], Cell]


def _cell_of_change(name: str) -> Callable[[Variant], Cell]:
    def make_cell(variant: Variant) -> Cell:
        m = variant.find(name)
        if m is None or m.change is None:
            return Cell(NOTHING)
        interval = f", {m.low} to {m.high}" if m.low is not None else ""
        shown, _ = display.split_quantity(m.change, m.unit)
        return Cell(shown, f"{m.name}: {m.change}{interval}", m.change)

    return make_cell


def _cell_of_task(variant: Variant) -> Cell:
    m = variant.task
    return Cell(display.points(m.change), f"{m.name}: {m.change}", m.change or 0.0) if m else Cell(NOTHING)


def _cell_of(value: float | None, show: Callable[[float], str], unit: str = "") -> Cell:
    return Cell(show(value), f"{value}{unit}", value) if value else Cell(NOTHING)


NOTHING = "–"
COLUMNS = (
    Column("Bits per weight", lambda v: _cell_of(v.bits, display.number)),
    Column("Stored weights", lambda v: _cell_of(v.bytes, display.size, " bytes")),
    Column("Of reference", lambda v: _cell_of(v.size, display.percent)),
    Column("KL divergence, nats/token", _cell_of_change("divergence.kl_mean")),
    Column("Perplexity", _cell_of_change("perplexity.ratio")),
    Column("Largest task loss", _cell_of_task),
    Column("Time", _cell_of_change("latency.ratio")),
)


class _Tools:
    """What the template draws with."""

    @staticmethod
    def columns(group: Group) -> list[Column]:
        """The columns in which some variant has a number."""
        return [each for each in COLUMNS if any(each.cell(v).shown != NOTHING for v in group.variants)]

    @staticmethod
    def rows(group: Group) -> list[Variant]:
        """The variants, smallest first."""
        return _sort_by_size(group)

    @staticmethod
    def frontiers(group: Group) -> list[Frontier]:
        """The charts of all costs that at least two variants have."""
        found = [(cost, variants.find_frontier(group, cost)) for cost in variants.COSTS]
        return [_draw_frontier(group, cost, points) for cost, points in found if len(points) > 1]

    @staticmethod
    def profiles(group: Group) -> Profiles | None:
        """Relative error of the outputs of the blocks, of every variant on one scale, smallest first."""
        lines = [(each, line) for each in _sort_by_size(group) if len(line := _read_profile(each)) > 1]
        values = [value for _, line in lines for value in line]
        scale = fit_log_scale(values) or fit_scale(values, zero=True)
        charts = tuple((each, _draw_profile(each, line, scale)) for each, line in lines)
        low, high = (display.percent(end, 2) for end in (scale.low, scale.high))
        return Profiles(charts, low, high, scale.log) if charts else None


def _sort_by_size(group: Group) -> list[Variant]:
    return sorted(group.variants, key=lambda v: (v.bytes is None, v.bytes or 0, v.run.name))


def _draw_frontier(group: Group, cost: Cost, points: Sequence[Point]) -> Frontier:
    metric = group.variants[0].run.metric(group.quality)
    sign = -1 if metric.better == "higher" else 1
    numbers = {each.run.name: str(place) for place, each in enumerate(_sort_by_size(group), 1)}
    marks = [
        planes.Mark(
            point.cost,
            sign * point.loss,
            point.variant.run.verdict,
            _describe_point(point, cost, group.quality),
            numbers[point.variant.run.name],
        )
        for point in sorted(points, key=lambda point: bool(point.dominated_by))
    ]
    line = [(point.cost, sign * point.loss) for point in points if not point.dominated_by]
    across = display.size if cost.unit == "bytes" else display.number
    title = f"{metric.title} against {cost.title}"
    said = "; ".join(mark.hint for mark in marks)
    chart = planes.plane(marks, line, (across, display.number), title, said)
    dominated = tuple((p.variant.run.name, p.dominated_by) for p in points if p.dominated_by)
    return Frontier(cost, chart, dominated, len(group.variants) - len(points))


def _describe_point(point: Point, cost: Cost, quality: str) -> str:
    run, loss = point.variant.run, point.variant.find(quality)
    costs = display.add_exact(display.quantity(point.cost, cost.unit, 3), point.cost)
    lost = display.in_full(loss.change, loss.unit) if loss and loss.change is not None else ""
    return f"{run.name}: {costs}, {lost}, {words.STATUSES[run.verdict].headline.lower()}"


def _read_profile(variant: Variant) -> list[float]:
    try:
        suites, _ = open_suites(StoredTables(variant.folder / "tables", variant.run.data_key))
        found = next((layers for suite in suites if (layers := read_layers(suite))), None)
    except HarnessError:
        return []
    return [block.error for block in found.blocks] if found else []


def _draw_profile(variant: Variant, line: Sequence[float], scale: Scale) -> Markup:
    said = f"from {display.percent(line[0], 3)} after block 0 to {display.percent(line[-1], 3)} after the last"
    return planes.profile(line, scale, f"{variant.run.name}: relative error of the block outputs", said)
