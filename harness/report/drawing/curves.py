"""Learning curves: values by step, several series on one plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.report import display
from harness.report.drawing.charts import add_y_axis
from harness.report.drawing.scales import Scale, fit_scale
from harness.report.drawing.svg import dot, drawing, level, polyline, text, vertical_line

MOST_POINTS = 400
"""Of a line: more are not seen apart, and every one makes the page larger."""


@dataclass(frozen=True)
class Curve:
    """Values by step. tone: which colour; marked: whether every value has a dot with a hint."""

    name: str
    points: tuple[tuple[int, float], ...]
    tone: str
    marked: bool = False


def learning_curves(curves: Sequence[Curve], kept: int, title: str) -> Markup:
    """All curves over the same steps, by logarithm where all values are above 0. kept: the step that was kept."""
    top, bottom, height = 16, 190, 212
    values = [value for curve in curves for _, value in curve.points]
    steps = [step for curve in curves for step, _ in curve.points]
    if not values:
        return drawing(24, title, "no values")
    scale = _fit_upwards(values)
    across = Scale(0, max(1, *steps))

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * scale(value)

    ticks = scale.ticks(4)
    content = [level(height_of(tick), "grid") for tick in ticks] + [level(bottom, "axis")]
    content.append(vertical_line(across(kept), top, bottom, "neutral"))
    for curve in curves:
        places = [(across(step), height_of(value)) for step, value in _thin(curve.points)]
        content.append(polyline(places, height, f"line {curve.tone}"))
        if curve.marked:
            content += [
                dot(across(step), height_of(value), f"mark {curve.tone}", _hint(curve, step, value))
                for step, value in _thin(curve.points)
            ]
    content += [text(across(tick), bottom + 17, display.number(tick)) for tick in across.ticks(6)]
    labels = [(height_of(tick), display.number(tick)) for tick in ticks]
    return add_y_axis(height, labels, content, title, "; ".join(map(_describe, curves)))


def _hint(curve: Curve, step: int, value: float) -> str:
    return f"{curve.name} after step {step}: {display.number(value)}"


def _describe(curve: Curve) -> str:
    (first, before), (last, after) = curve.points[0], curve.points[-1]
    return f"{curve.name}: {display.number(before)} at step {first}, {display.number(after)} at step {last}"


def _fit_upwards(values: Sequence[float]) -> Scale:
    least, most = min(values), max(values)
    return Scale(least / 1.1, most * 1.1, log=True) if least > 0 else fit_scale(values)


def _thin(points: tuple[tuple[int, float], ...]) -> list[tuple[int, float]]:
    """Evenly chosen points, the last one among them."""
    every = max(1, -(-len(points) // MOST_POINTS))
    return [*points[:-1:every], points[-1]]
