"""Charts with two axes of numbers: points on a plane, a number from run to run, and small copies of one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.report.drawing.charts import Words, add_y_axis
from harness.report.drawing.frames import MANY, frame, mark_axis, mark_places, name_marks
from harness.report.drawing.scales import Scale, fit_log_scale, fit_scale
from harness.report.drawing.svg import dot, drawing, level, polyline, vertical_line


@dataclass(frozen=True)
class Mark:
    """A point on a plane. label: stands above it if it is not empty and has room; hint: on hover."""

    x: float
    y: float
    tone: str
    hint: str
    label: str = ""


def plane(
    marks: Sequence[Mark], line: Sequence[tuple[float, float]], words: tuple[Words, Words], title: str, description: str
) -> Markup:
    """Marks on a plane, with a line through some of them. words: of the ticks across and upwards.

    Where the values upwards are positive and span more than a factor of 20, the axis is logarithmic, and can be
    switched.
    """
    heights = [mark.y for mark in marks]
    straight = fit_scale(heights, zero=min(heights, default=0.0) >= 0, pad=0.08)
    logarithmic = fit_log_scale(heights) if min(heights, default=0.0) > 0 else None
    scales = filter(None, (logarithmic, straight))
    return frame({each.name: _draw_plane(marks, line, words, title, description, each) for each in scales})


def _draw_plane(
    marks: Sequence[Mark],
    line: Sequence[tuple[float, float]],
    words: tuple[Words, Words],
    title: str,
    description: str,
    upwards: Scale,
) -> Markup:
    top, bottom, height = 14, 250, 276
    across, zoom = fit_scale([mark.x for mark in marks], pad=0.08), len(marks) >= MANY

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * upwards(value)

    ticks = upwards.ticks(5)
    content = [level(height_of(tick), "grid") for tick in ticks]
    content += [level(bottom, "axis"), polyline([(across(x), height_of(y)) for x, y in line], height, "line variant")]
    for mark in marks:
        place, y = across(mark.x), height_of(mark.y)
        content.append(dot(place, y, f"mark {mark.tone}", mark.hint, radius=5))
    named = [(across(mark.x), height_of(mark.y), mark.label) for mark in marks]
    content += [*name_marks(named, zoom), *mark_axis(across, bottom + 18, words[0], 5, zoom)]
    labels = [(height_of(tick), words[1](tick)) for tick in ticks]
    return add_y_axis(height, labels, content, title, description, zoom)


@dataclass(frozen=True)
class Reading:
    """A number at one of several places in order, with its interval. limits: those that held there."""

    place: int
    value: float
    low: float | None
    high: float | None
    limits: tuple[float, ...]
    tone: str
    hint: str


def course(readings: Sequence[Reading], labels: Sequence[str], words: Words, title: str) -> Markup:
    """A number from place to place, with its interval and its limits."""
    top, bottom, height = 10, 120, 142
    values = [each for r in readings for each in (r.value, r.low, r.high, *r.limits) if each is not None]
    upwards, across = fit_scale(values, pad=0.1), Scale(-0.5, max(1, len(labels)) - 0.5)

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * upwards(value)

    ticks, zoom = upwards.ticks(4), len(labels) >= MANY
    content = [level(height_of(tick), "grid") for tick in ticks]
    for r in readings:
        content += [
            level(height_of(limit), "limit", across(r.place - 0.5), across(r.place + 0.5)) for limit in r.limits
        ]
    content.append(polyline([(across(r.place), height_of(r.value)) for r in readings], height, "line reference"))
    for r in readings:
        if r.low is not None and r.high is not None:
            content.append(vertical_line(across(r.place), height_of(r.high), height_of(r.low), f"whisker {r.tone}"))
        content.append(dot(across(r.place), height_of(r.value), f"mark {r.tone}", r.hint, radius=4.5))
    content += mark_places(across, bottom + 17, labels, 8, zoom)
    said = "; ".join(r.hint for r in readings)
    drawn = add_y_axis(height, [(height_of(tick), words(tick)) for tick in ticks], content, title, said, zoom)
    return frame({upwards.name: drawn}) if zoom else drawn


def profile(line: Sequence[float], scale: Scale, title: str, description: str) -> Markup:
    """A small line over places in order, on a scale that several such charts share."""
    top, bottom, height = 6, 66, 72
    across = Scale(0, max(1, len(line) - 1))
    places = [(across(place), bottom - (bottom - top) * scale(value)) for place, value in enumerate(line)]
    frame = [level(bottom, "axis"), level(top, "grid")]
    return drawing(height, title, description, *frame, polyline(places, height, "line variant"))
