"""Outlier channels: the largest input channel of a module over the median channel, on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup

from harness.report import display
from harness.report.drawing import charts
from harness.report.drawing.scales import Scale, fit_scale
from harness.report.summaries.suite_tables import SuiteTables


@dataclass(frozen=True)
class InputOutliers:
    """The input channels of one module: largest maximum over the median of maxima, before and after."""

    module: str
    reference: float | None
    variant: float | None
    channel: int
    largest: float


def read_channels(suite: SuiteTables, most: int) -> tuple[list[InputOutliers], int] | None:
    """The modules with the largest ratios, in descending order, and how many modules there are."""
    frame = suite.read("channels", ("side", "module", "channel", "max_abs"))
    if frame is None:
        return None
    maxima = frame.groupby(["module", "side"], sort=True, observed=True)["max_abs"].agg(["max", "median"])
    # A median of zero, or NaN on the way, leaves no finite ratio; _finite says so.
    ratio = dict(zip(maxima.index, (maxima["max"] / maxima["median"]).tolist(), strict=True))
    widest = frame.loc[frame.groupby("module", sort=True, observed=True)["max_abs"].idxmax()]
    rows = [
        InputOutliers(
            module=str(row["module"]),
            reference=_keep_finite(ratio.get((row["module"], "reference"))),
            variant=_keep_finite(ratio.get((row["module"], "variant"))),
            channel=int(row["channel"]),
            largest=float(row["max_abs"]),
        )
        for row in widest.to_dict("records")
    ]
    rows.sort(key=lambda row: (-max(row.reference or 0.0, row.variant or 0.0), row.module))
    return rows[:most], len(rows)


def make_scale(rows: Sequence[InputOutliers]) -> Scale:
    """One scale for all modules, by powers of ten where they span more than one."""
    values = [side for row in rows for side in (row.reference, row.variant) if side is not None and side > 0]
    if not values:
        return Scale(0.0, 1.0)
    if max(values) / min(values) > 10:
        return Scale(min(values) / 1.15, max(values) * 1.15, log=True)
    return fit_scale(values, zero=True)


def draw_ratios(row: InputOutliers, scale: Scale) -> Markup:
    """Both sides of one module."""
    if row.reference is None or row.variant is None:
        return Markup()
    sides = display.format_together([row.reference, row.variant], 3)
    hint = f"{row.module}: reference {sides[0]}, variant {sides[1]}"
    return charts.pair(row.reference, row.variant, scale, hint)


def _keep_finite(value: float | None) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
