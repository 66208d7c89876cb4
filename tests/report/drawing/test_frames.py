"""Ticks of every zoom are in the file, and the style sheet and the script know the same zooms."""

from __future__ import annotations

import re

from harness.report.drawing.charts import Bins, Dot, depth, histogram
from harness.report.drawing.frames import MANY, ZOOMS, mark_axis, mark_places, name_marks
from harness.report.drawing.scales import Scale
from harness.system.resources import folder


def classes_of(marks: list[str]) -> dict[str, set[str]]:
    """The zooms at which each label is seen."""
    found = {}
    for mark in marks:
        match = re.search(r'class="tick ?([^"]*)".*>([^<]+)</text>', mark)
        assert match is not None
        found[match[2]] = set(match[1].split())
    return found


def test_each_zoom_shows_the_places_that_have_room() -> None:
    labels = [str(place) for place in range(96)]
    seen = classes_of([*map(str, mark_places(Scale(-0.5, 95.5), 0, labels, 12, zoom=True))])
    assert [label for label, zooms in seen.items() if "z1" in zooms] == [str(place) for place in range(0, 96, 10)]
    assert [label for label, zooms in seen.items() if "z2" in zooms] == [str(place) for place in range(0, 96, 5)]
    assert [label for label, zooms in seen.items() if "z8" in zooms] == labels


def test_each_zoom_shows_round_numbers_and_no_others() -> None:
    seen = classes_of([*map(str, mark_axis(Scale(0.0, 1.0), 0, str, 5, zoom=True))])
    assert [float(label) for label, zooms in seen.items() if "z1" in zooms] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [float(label) for label, zooms in seen.items() if "z2" in zooms] == [k / 10 for k in range(11)]
    assert classes_of([*map(str, mark_axis(Scale(0.0, 1.0), 0, str, 5))])["0.2"] == set()


def test_style_sheet_and_script_know_the_zooms() -> None:
    style, script = ((folder("reports") / name).read_text() for name in ("style.css", "script.js"))
    assert f"const ZOOMS = {list(ZOOMS)};" in script
    for step in ZOOMS[1:]:
        assert f".z{step}:not(.z1)" in style
        assert f".zoom{step} .z{step}" in style
        assert f".zoom{step} .z1:not(.z{step})" in style


def test_few_places_are_not_zoomed_and_near_values_have_one_axis() -> None:
    few = depth([0.1, 0.2], [], ["0", "1"], "title", "")
    assert 'class="view"' not in few
    assert few.count('class="pane"') == 1
    many = depth([0.001 * 2**place for place in range(MANY)], [], [str(k) for k in range(MANY)], "title", "")
    assert many.count('class="view"') == many.count('class="pane"') == 2
    assert re.findall(r'data-axis="(\w+)"( hidden="")?', many) == [("linear", ""), ("log", ' hidden=""')]


def test_both_axes_show_the_same_marks() -> None:
    drawn = depth([0.0, 0.001, 1.0], [Dot(1, 0.5, "a hint", "mlp")], ["0", "1", "2"], "title", "")
    linear, log = drawn.split('data-axis="log"')
    assert linear.count("<circle") == log.count("<circle") == 4
    assert linear.count("a hint") == log.count("a hint") == 1
    bins = Bins((0.0, 1.0, 2.0, 3.0), (1, 0, 1000), Scale(0.0, 3.0))
    linear, log = histogram(bins, [], "title").split('data-axis="log"')
    heights = [[float(h) for h in re.findall(r'height="([\d.]+)" class="bin', half)] for half in (linear, log)]
    assert heights[0][0] / heights[0][1] < 0.01
    assert 0.05 < heights[1][0] / heights[1][1] < 0.2


def test_labels_are_seen_from_the_zoom_on_at_which_they_have_room() -> None:
    cluster = [(0.5, 100.0, "first"), (0.52, 102.0, "second"), (0.51, 101.0, "near")]
    apart = [(0.52, 160.0, "below"), (0.9, 100.0, "far")]
    seen = classes_of([*map(str, name_marks(cluster + apart, zoom=True))])
    assert {label: "z1" in zooms for label, zooms in seen.items()} == {
        "first": True, "second": True, "near": False, "below": True, "far": True,
    }  # fmt: skip
    assert "z8" in seen["near"]
    assert name_marks([(0.5, 100.0, "alone")], True)[0] == name_marks([(0.5, 100.0, "alone")])[0].replace(
        'class="tick name"', 'class="tick z1 z2 z4 z8 name"'
    )


def test_a_label_stands_below_a_mark_where_another_is_above() -> None:
    upper, lower = map(str, name_marks([(0.5, 84.0, "upper"), (0.5, 100.0, "lower")]))
    assert 'y="75"' in upper
    assert 'y="117"' in lower
