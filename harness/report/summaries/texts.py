"""Bits per byte by kind of document, for sides with different tokenizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.report import display
from harness.report.drawing import charts
from harness.report.drawing.scales import Scale, fit_scale
from harness.report.summaries.suite_tables import SuiteTables
from harness.statistics import ratio_of_sums_interval

COLUMNS = ("document", "bytes", "reference_nll", "variant_nll", "skipped")


@dataclass(frozen=True)
class KindBits:
    """One kind of document; change in bits per byte, with its interval if there are at least two documents."""

    name: str
    documents: int
    reference: float
    variant: float
    change: float
    low: float | None
    high: float | None


def group_by_kind(suite: SuiteTables, most: int) -> list[KindBits]:
    """One row per kind, the largest increase first; empty if no text was scored on both sides."""
    frame, documents = suite.read("texts", COLUMNS), suite.read("documents", ("document", "kind"))
    if frame is None or documents is None:
        return []
    scored = frame[frame["skipped"] == ""].merge(documents, on="document", how="left", validate="many_to_one")
    numbers = ["bytes", "reference_nll", "variant_nll"]
    finite = scored[scored[numbers].notna().all(axis=1)]
    kinds = []
    for name, rows in finite.groupby("kind", sort=True):
        sums = rows.groupby("document")[numbers].sum()
        size = sums["bytes"].to_numpy(dtype="float64")
        bits = {side: sums[f"{side}_nll"].to_numpy() / math.log(2) for side in ("reference", "variant")}
        change = bits["variant"] - bits["reference"]
        interval = ratio_of_sums_interval(change, size, sums.index.to_numpy(), skewed=True)
        if interval is not None and interval.low == interval.high:
            interval = None  # no spread between documents is no evidence about others
        kinds.append(
            KindBits(
                name=str(name),
                documents=len(sums),
                reference=float(bits["reference"].sum() / size.sum()),
                variant=float(bits["variant"].sum() / size.sum()),
                change=float(change.sum() / size.sum()),
                low=None if interval is None else interval.low,
                high=None if interval is None else interval.high,
            )
        )
    return sorted(kinds, key=lambda kind: (-kind.change, kind.name))[:most]


def make_scale(kinds: Sequence[KindBits]) -> Scale:
    """One scale for the changes of all kinds, with no change on it."""
    return fit_scale([0.0, *(end for kind in kinds for end in (kind.low, kind.change, kind.high) if end is not None)])


def draw_change(kind: KindBits, scale: Scale) -> Markup:
    """The change of one kind with its interval."""
    hint = f"{kind.name}: {display.format_signed(kind.change)}"
    if kind.low is not None and kind.high is not None:
        hint += f", interval {display.format_signed(kind.low)} to {display.format_signed(kind.high)}"
    tone = "worse" if (kind.low or 0) > 0 else "better" if kind.high is not None and kind.high < 0 else "variant"
    return charts.interval(kind.change, kind.low, kind.high, scale, 0.0, tone, hint)
