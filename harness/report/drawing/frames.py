"""What the page's script offers beside a drawing: zoom along its horizontal axis, and an axis by logarithms.

The script draws nothing and computes no number: both axes and the ticks of every zoom are in the file, and it chooses
which are seen. Without it the first axis and the ticks of the whole drawing are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup

from harness.report.drawing.scales import Scale
from harness.report.drawing.svg import tag, text

ZOOMS = (1, 2, 4, 8)
"""How many times wider than the page a drawing may be made; style sheet and script know the same steps."""
NARROWEST, LABEL = 280, (20, 13)
"""Pixels of the width of a drawing on a phone, and of a label of two digits."""
MANY = 16
"""From so many places along an axis on a drawing can be zoomed."""


def mark_axis(scale: Scale, y: float, words: Callable[[float], str], about: int, zoom: bool = False) -> list[Markup]:
    """The tick labels of a horizontal axis, about that many; with ``zoom`` those of every zoom."""
    found = {step: scale.ticks(about * step) for step in (ZOOMS if zoom else ZOOMS[:1])}
    every = sorted({tick for ticks in found.values() for tick in ticks})
    return [
        text(scale(tick), y, words(tick), _class_of(step for step, ticks in found.items() if tick in ticks))
        for tick in every
    ]


def mark_places(across: Scale, y: float, labels: Sequence[str], about: int, zoom: bool = False) -> list[Markup]:
    """The labels of places 0, 1, …, of which about that many are seen at once; with ``zoom`` those of every zoom."""
    every = {step: _round_up(len(labels) / (about * step)) for step in (ZOOMS if zoom else ZOOMS[:1])}
    seen = [[step for step, apart in every.items() if place % apart == 0] for place in range(len(labels))]
    return [
        text(across(place), y, label, _class_of(steps))
        for place, (label, steps) in enumerate(zip(labels, seen, strict=True))
        if steps
    ]


def name_marks(labels: Sequence[tuple[float, float, str]], zoom: bool = False) -> list[Markup]:
    """Short labels at (x in 0 … 1, y in pixels), earlier ones first: each is seen at the zooms at which it has room."""
    taken: list[tuple[float, float, list[int]]] = []
    for x, y, _ in labels:
        steps = [
            step
            for step in (ZOOMS if zoom else ZOOMS[:1])
            if not any(step in seen and _is_near(x - at, y - height, step) for at, height, seen in taken)
        ]
        taken.append((x, y, steps))
    return [
        text(x, y, label, f"{_class_of(steps)} name")
        for (x, y, label), (_, _, steps) in zip(labels, taken, strict=True)
        if steps
    ]


def _is_near(across: float, down: float, step: int) -> bool:
    """Whether two labels that lie so far apart overlap on the narrowest phone."""
    return abs(across) * step * NARROWEST < LABEL[0] and abs(down) < LABEL[1]


def _round_up(apart: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 … that is not less."""
    return next(int(step) for power in range(18) for step in (10**power, 2 * 10**power, 5 * 10**power) if step >= apart)


def _class_of(steps: Iterable[int]) -> str:
    """Ticks that are seen without zoom only need no class: there is no zoom."""
    found = list(steps)
    return "tick" if found == [1] else " ".join(["tick", *(f"z{step}" for step in found)])


def frame(panes: Mapping[str, Markup]) -> Markup:
    """A drawing by the name of its axis (linear, log), and the same with another; the script shows the second."""
    shown = [
        tag("div", pane, class_="pane", data_axis=name, hidden=None if index == 0 else "")
        for index, (name, pane) in enumerate(panes.items())
    ]
    return tag("div", *shown, class_="frame")


def view(drawn: Markup, zoom: bool) -> Markup:
    """The part of a drawing that can be zoomed."""
    return tag("div", drawn, class_="view") if zoom else drawn
