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
NARROWEST, LABEL, MARK, ABOVE, BELOW = 280, (20, 13), 9, 9, 17
"""Pixels: width of a drawing on a phone, a label of two digits, reach of a mark; from a mark to its label."""
MANY = 12
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


def name_marks(marks: Sequence[tuple[float, float, str]], zoom: bool = False) -> list[Markup]:
    """The labels of marks at (x in 0 … 1, y in pixels), earlier ones first, above them or else below.

    Each is seen from the zoom on at which it has room between marks and other labels.
    """
    placed: dict[int, tuple[float, int]] = {}
    for step in ZOOMS if zoom else ZOOMS[:1]:
        for index, (x, y, label) in enumerate(marks):
            if label and index not in placed:
                free = [at for at in (y - ABOVE, y + BELOW) if _has_room(x, at, step, marks, placed)]
                placed |= {index: (free[0], step)} if free else {}
    return [
        text(marks[index][0], at, marks[index][2], f"{_class_of(step for step in ZOOMS if step >= first)} name")
        for index, (at, first) in sorted(placed.items())
    ]


def _has_room(
    x: float, y: float, step: int, marks: Sequence[tuple[float, float, str]], placed: Mapping[int, tuple[float, int]]
) -> bool:
    """Whether a label whose text stands on ``y`` overlaps no mark and no label on the narrowest phone."""
    wide = NARROWEST * step
    others = [(marks[index][0], at) for index, (at, _) in placed.items()]
    beside_marks = all(abs(x - at) * wide > MARK or abs(y - LABEL[1] / 3 - height) > MARK for at, height, _ in marks)
    return beside_marks and all(abs(x - at) * wide > LABEL[0] or abs(y - height) > LABEL[1] for at, height in others)


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
