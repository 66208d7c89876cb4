"""Drawing without a drawing library: escaped tags, and a frame whose width is whatever the page gives it.

Horizontal places are percentages and vertical ones pixels, so a chart fits a phone and a wide screen
alike while its text keeps its size. There is no style attribute anywhere, because the page's content
security policy refuses them: colours come from classes.
"""

from __future__ import annotations

from markupsafe import Markup, escape

from harness.report.display import clean

Attribute = str | float | int | None


def tag(name: str, *content: str | Markup, **attributes: Attribute) -> Markup:
    """One element. Text and attribute values are escaped; ``class_`` is class, ``text_anchor`` is
    text-anchor.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(part) for part in content)
    # The name is a literal of this package, attributes and content were escaped above.
    return Markup(f"<{name}{written}>{inside}</{name}>")  # noqa: S704


def _plain(value: Attribute) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"
    return str(value)


def share(at: float) -> str:
    """A place between 0 and 1 as a percentage of the width."""
    return f"{at * 100:.2f}".rstrip("0").rstrip(".") + "%"


def drawing(height: int, title: str, description: str, *content: Markup, class_: str = "chart") -> Markup:
    """An image of the page's width with a name and a description for those who cannot see it."""
    named = [tag("title", clean(title))]
    if description:
        named.append(tag("desc", clean(description, 2000)))
    return tag("svg", *named, *content, class_=class_, width="100%", height=height, role="img")


def text(at: float, y: float, words: str, class_: str = "tick", anchor: str = "") -> Markup:
    """Words at a place; near the left or right edge they are set inwards, so none are cut off."""
    inwards = "start" if at < 0.06 else "end" if at > 0.94 else "middle"
    return tag("text", words, x=share(at), y=y, class_=class_, text_anchor=anchor or inwards)


def vertical_line(at: float, top: float, bottom: float, class_: str) -> Markup:
    """A vertical line."""
    return tag("line", x1=share(at), x2=share(at), y1=top, y2=bottom, class_=class_)


def level(y: float, class_: str, start: float = 0.0, end: float = 1.0) -> Markup:
    """A horizontal line."""
    return tag("line", x1=share(start), x2=share(end), y1=y, y2=y, class_=class_)


def block(start: float, end: float, top: float, height: float, class_: str, hint: str = "") -> Markup:
    """A filled rectangle from ``start`` to ``end``, with a hint shown by the pointer."""
    hints = [tag("title", clean(hint))] if hint else []
    width = share(max(0.0, end - start))
    return tag("rect", *hints, x=share(start), width=width, y=top, height=height, class_=class_)


def dot(at: float, y: float, class_: str, hint: str = "", radius: float = 4.0) -> Markup:
    """A filled circle, with a hint shown by the pointer."""
    hints = [tag("title", clean(hint))] if hint else []
    return tag("circle", *hints, cx=share(at), cy=y, r=radius, class_=class_)


def polyline(places: list[tuple[float, float]], height: int, class_: str) -> Markup:
    """A line through places (x in 0 … 1, y in pixels) that stretches with the page but keeps its stroke."""
    points = " ".join(f"{at * 100:.2f},{y:.1f}" for at, y in places)
    path = tag("polyline", points=points, class_=class_)
    return tag(
        "svg",
        path,
        x="0",
        y="0",
        width="100%",
        height=height,
        viewBox=f"0 0 100 {height}",
        preserveAspectRatio="none",
    )
