"""Heat maps: the largest error at each crossing of a row and a column, as many columns as a page can show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.report.display import in_full

MOST_COLUMNS, MOST_SQUARES = 128, 8192
DENSE, PACKED = 12, 32
"""From more columns than these on, numbers are not written into the squares, and squares are as narrow as they can be
told apart."""


@dataclass(frozen=True)
class Found:
    """The error of one module, named ``name``, at a crossing."""

    row: str
    column: int
    error: float
    name: str


@dataclass(frozen=True)
class Square:
    """The largest error at a crossing; shade 0 … 9, relative to the largest of the map; hint: where it is, in full."""

    error: float
    shade: int
    hint: str


@dataclass(frozen=True)
class HeatMap:
    """Squares by rows and columns, None where nothing is. labels: of the columns, which may be ranges of numbers.

    left_out: rows that are not shown.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square | None, ...]], ...]
    left_out: int

    @property
    def density(self) -> str:
        """The class of the style sheet by which the squares fit the page."""
        columns = len(self.labels)
        wide = "dense packed" if columns > PACKED else "dense" if columns > DENSE else ""
        return f"{wide} tall" if wide and len(self.rows) > PACKED else wide


def make_heat_map(found: Sequence[Found], most_rows: int) -> HeatMap | None:
    """The map of what was found, rows in order of appearance; too many columns are merged into ranges of one length."""
    if not found:
        return None
    columns = sorted({each.column for each in found})
    ranges = [part.tolist() for part in np.array_split(columns, min(len(columns), MOST_COLUMNS))]
    place = {column: index for index, part in enumerate(ranges) for column in part}
    worst = _keep_largest((each.row, place[each.column], each) for each in found)
    top = max(each.error for each in worst.values()) or 1.0
    names = list(dict.fromkeys(each.row for each in found))
    shown = names[: min(most_rows, MOST_SQUARES // len(ranges))]
    rows = tuple((name, tuple(_shade(worst.get((name, index)), top) for index in range(len(ranges)))) for name in shown)
    labels = tuple(f"{part[0]}" if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in ranges)
    return HeatMap(labels, rows, len(names) - len(shown))


def _keep_largest(found: Iterable[tuple[str, int, Found]]) -> dict[tuple[str, int], Found]:
    worst: dict[tuple[str, int], Found] = {}
    for row, column, each in found:
        other = worst.get((row, column))
        if other is None or each.error > other.error:
            worst[row, column] = each
    return worst


def _shade(found: Found | None, top: float) -> Square | None:
    if found is None:
        return None
    return Square(found.error, min(9, int(10 * found.error / top)), f"{found.name}: {in_full(found.error)}")
