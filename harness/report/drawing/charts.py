"""The charts of the report, each a pure function from numbers to SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.report import display
from harness.report.drawing.frames import MANY, frame, mark_axis, mark_places, view
from harness.report.drawing.scales import SPAN, Scale, fit_log_scale, fit_scale
from harness.report.drawing.svg import block, dot, drawing, level, polyline, tag, text, vertical_line

Words = Callable[[float], str]


@dataclass(frozen=True)
class Bins:
    """Counts between edges; ``scale`` places the edges, ``unit`` names what is counted."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    scale: Scale
    unit: str = "tokens"


@dataclass(frozen=True)
class Dot:
    """One mark of a depth chart: at block ``place``, with a hint."""

    place: int
    value: float
    hint: str
    tone: str


@dataclass(frozen=True)
class Limited:
    """A number with its interval, and a lower limit, an upper limit, or both. tone: the status, which colours it."""

    value: float
    interval: tuple[float, float] | None
    bounds: tuple[float | None, float | None]
    tone: str
    title: str

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval; the number itself where there is none."""
        return self.interval or (self.value, self.value)

    @property
    def edges(self) -> list[float]:
        """The limits that there are."""
        return [bound for bound in self.bounds if bound is not None]

    @property
    def shown(self) -> list[str]:
        """The number, its ends and its limits, each distinct from the others."""
        return display.format_together([self.value, *self.ends, *self.edges])

    @property
    def description(self) -> str:
        """What the drawing shows, for those who cannot see it."""
        shown, low, high, *edges = self.shown
        sides = [side for side, bound in zip(("above", "below"), self.bounds, strict=True) if bound is not None]
        allowed = "; ".join(f"limit {words}, passes {side} it" for words, side in zip(edges, sides, strict=True))
        return f"measured {shown}{f', interval {low} to {high}' if self.interval else ''}; {allowed}"

    @property
    def hint(self) -> str:
        """The same with all digits that tell anything."""
        value, low, high = map(display.full, (self.value, *self.ends))
        between = f", interval {low} to {high}" if self.interval else ""
        edges = " and ".join(map(display.full, self.edges))
        return f"{self.title}: {value}{between}; limit {edges}"

    def shade(self, scale: Scale, top: float, height: float) -> Markup:
        """The passing side."""
        lower, upper = self.bounds
        start, end = (0.0 if lower is None else scale(lower)), (1.0 if upper is None else scale(upper))
        return block(start, end, top, height, "good")


def limits(found: Limited, neutral: tuple[float, str] | None) -> Markup:
    """One interval against its limits: the passing side is shaded.

    neutral: the value of no change, with its name, drawn as a dotted line.
    """
    low, high = found.ends
    scale = fit_scale([found.value, low, high, *found.edges, *((neutral[0],) if neutral else ())], pad=0.14)
    shown, _, _, *shown_edges = found.shown
    place = scale(found.value)
    content = [found.shade(scale, 18, 26), level(31, "axis"), *_neutral(neutral, scale, place)]
    for edge, words in zip(found.edges, shown_edges, strict=True):
        content += [vertical_line(scale(edge), 14, 48, "limit"), text(scale(edge), 11, f"limit {words}", "tick strong")]
    content += [
        _whisker(scale(low), scale(high), 31, found.tone) if found.interval else Markup(),
        dot(place, 31, f"mark {found.tone}", found.hint, radius=5),
        text(place, 60, shown, "tick strong"),
    ]
    return drawing(64, found.title, found.description, *content)


def limits_in_row(found: Limited) -> Markup:
    """The same on one line of a table, without words."""
    scale = fit_scale([found.value, *found.ends, *found.edges], pad=0.14)
    low, high = map(scale, found.ends)
    ends = level(12, f"whisker {found.tone}", low, high) if found.interval else Markup()
    edges = [vertical_line(scale(edge), 3, 21, "limit") for edge in found.edges]
    mark = dot(scale(found.value), 12, f"mark {found.tone}", found.hint)
    return drawing(24, found.title, found.description, found.shade(scale, 4, 16), *edges, ends, mark)


def _neutral(neutral: tuple[float, str] | None, scale: Scale, taken: float) -> list[Markup]:
    """The dotted line, with its name where that does not run into the value."""
    if neutral is None:
        return []
    at = scale(neutral[0])
    line = vertical_line(at, 18, 44, "neutral")
    return [line, text(at, 60, neutral[1])] if abs(at - taken) > 0.33 else [line]


def interval(
    value: float, low: float | None, high: float | None, scale: Scale, neutral: float, tone: str, hint: str
) -> Markup:
    """One interval on a scale shared by the rows of a table."""
    hint = display.add_exact(hint, value)
    ends = _whisker(scale(low), scale(high), 12, tone) if low is not None and high is not None else Markup()
    return drawing(
        24, hint, "", vertical_line(scale(neutral), 0, 24, "neutral"), ends, dot(scale(value), 12, f"mark {tone}")
    )


def pair(reference: float, variant: float, scale: Scale, hint: str) -> Markup:
    """Both sides of one quantity, joined: a ring is the reference, a filled dot the variant."""
    first, second = scale(reference), scale(variant)
    hint = display.add_exact(hint, reference, variant)
    content = (
        level(12, "hair"),
        level(12, "join", min(first, second), max(first, second)),
        dot(first, 12, "ring reference", radius=4.5),
        dot(second, 12, "mark variant", radius=4),
    )
    return drawing(24, hint, "", *content)


def bar(value: float, scale: Scale, tone: str, hint: str) -> Markup:
    """One bar from the left edge."""
    hint = display.add_exact(hint, value)
    return drawing(16, hint, "", level(8, "hair"), block(0.0, scale(value), 3, 10, f"fill {tone}"))


def axis(scale: Scale, words: Words = display.number, about: int = 4, height: int = 20) -> Markup:
    """The tick labels of the rows above or below; decorative, hidden from screen readers."""
    content = [text(scale(tick), 13, words(tick)) for tick in scale.ticks(about)]
    return tag("svg", *content, class_="chart", width="100%", height=height, aria_hidden="true")


def histogram(
    bins: Bins,
    marks: Sequence[tuple[float, str]],
    title: str,
    words: Words = display.number,
    tone: str = "variant",
) -> Markup:
    """Number of values between each pair of edges. marks: values to point out, with a short label each."""
    counts = [count for count in bins.counts if count] or [1]
    scales = [Scale(0, max(counts))]
    if max(counts) > SPAN * min(counts):
        scales.append(Scale(min(counts) / 2, max(counts), log=True))
    return frame({each.name: _draw_bins(bins, marks, title, words, tone, each) for each in scales})


def _draw_bins(
    bins: Bins, marks: Sequence[tuple[float, str]], title: str, words: Words, tone: str, upwards: Scale
) -> Markup:
    top, bottom, height = 34, 170, 192
    total, zoom = sum(bins.counts) or 1, len(bins.counts) >= MANY
    content = [level(bottom, "axis")]
    for count, low, high in zip(bins.counts, bins.edges, bins.edges[1:], strict=False):
        if count:
            tall = max(1.0, (bottom - top) * upwards(count))
            hint = f"{words(low)} to {words(high)}: {display.number(count)} {bins.unit}"
            hint = f"{hint} ({display.percent(count / total, 3)})"
            content.append(block(bins.scale(low), bins.scale(high), bottom - tall, tall, f"bin {tone}", hint))
    for value, label in marks:
        content += [
            vertical_line(bins.scale(value), 16, bottom, "limit"),
            text(bins.scale(value), 11, label, "tick strong"),
        ]
    content += mark_axis(bins.scale, bottom + 16, words, 9 if bins.scale.log else 5, zoom)
    said = "; ".join(f"{label} at {words(value)}" for value, label in marks)
    description = f"{display.number(total)} {bins.unit}; {said}"
    if not upwards.log:
        return view(drawing(height, title, description, *content), zoom)
    labels = [(bottom - (bottom - top) * upwards(tick), display.number(tick)) for tick in upwards.ticks(4)]
    return add_y_axis(height, labels, content, title, description, zoom)


def depth(line: Sequence[float], dots: Sequence[Dot], labels: Sequence[str], title: str, description: str) -> Markup:
    """A line through the outputs of the blocks in order, with dots for the modules inside each block."""
    values = [*line, *(mark.value for mark in dots)]
    scales = filter(None, (fit_scale(values, zero=True), fit_log_scale(values)))
    return frame({each.name: _draw_depth(line, dots, labels, title, description, each) for each in scales})


def _draw_depth(
    line: Sequence[float], dots: Sequence[Dot], labels: Sequence[str], title: str, description: str, scale: Scale
) -> Markup:
    top, bottom, height = 10, 190, 212
    across, zoom = Scale(-0.5, max(1, len(labels)) - 0.5), len(labels) >= MANY
    ticks = scale.ticks(4)

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * scale(value)

    content = [level(bottom, "axis"), *(level(height_of(tick), "grid") for tick in ticks if tick)]
    content.append(
        polyline([(across(place), height_of(value)) for place, value in enumerate(line)], height, "line variant")
    )
    content += [
        dot(across(mark.place), height_of(mark.value), f"spot {mark.tone}", mark.hint, radius=3.5) for mark in dots
    ]
    if len(line) <= 200:
        content += [
            dot(across(place), height_of(value), "mark variant", f"block {labels[place]}: {display.in_full(value)}")
            for place, value in enumerate(line)
        ]
    content += mark_places(across, bottom + 17, labels, 12, zoom)
    marks = [(height_of(tick), display.percent(tick)) for tick in ticks]
    return add_y_axis(height, marks, content, title, description, zoom)


def reliability(
    sides: Sequence[tuple[str, Sequence[tuple[float, float, int]]]], title: str, description: str
) -> Markup:
    """Reliability diagram: accuracy (up) by confidence (across) for each side; perfect calibration is the diagonal.

    sides: (tone, [(mean confidence, accuracy, count) of each bin]).
    """
    top, bottom, height = 10, 270, 292
    scale = Scale(0.0, 1.0)

    def height_of(value: float) -> float:
        return bottom - (bottom - top) * scale(value)

    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    content = [level(height_of(tick), "grid" if tick else "axis") for tick in quarters]
    content.append(tag("line", x1="0%", y1=height_of(0), x2="100%", y2=height_of(1), class_="neutral"))
    for tone, bins in sides:
        filled = [(confidence, accuracy, count) for confidence, accuracy, count in bins if count]
        content.append(polyline([(c, height_of(a)) for c, a, _ in filled], height, f"line {tone}"))
        for confidence, accuracy, count in filled:
            hint = f"{tone}: confidence {display.percent(confidence, 3)}, right {display.percent(accuracy, 3)}"
            content.append(
                dot(confidence, height_of(accuracy), f"mark {tone}", f"{hint}, {display.number(count)} tokens")
            )
    content += [text(tick, bottom + 17, display.percent(tick)) for tick in quarters]
    labels = [(height_of(tick), display.percent(tick)) for tick in quarters]
    return add_y_axis(height, labels, content, title, description)


def _whisker(start: float, end: float, y: float, tone: str) -> Markup:
    caps = [vertical_line(at, y - 4, y + 4, f"whisker {tone}") for at in (start, end)]
    return Markup("").join([level(y, f"whisker {tone}", start, end), *caps])


def add_y_axis(
    height: int,
    labels: Sequence[tuple[float, str]],
    content: Sequence[Markup],
    title: str,
    description: str,
    zoom: bool = False,
) -> Markup:
    """Give the labels of the vertical axis a separate column, so that the drawing may take any width."""
    marks = [tag("text", words, x="100%", y=y + 4, class_="tick", text_anchor="end") for y, words in labels]
    scale = tag("svg", *marks, class_="chart ruler", width="48", height=height, aria_hidden="true")
    return tag("div", scale, view(drawing(height, title, description, *content), zoom), class_="plot")


__all__ = [
    "Bins",
    "Dot",
    "Limited",
    "axis",
    "bar",
    "depth",
    "histogram",
    "interval",
    "limits",
    "limits_in_row",
    "pair",
    "reliability",
]
