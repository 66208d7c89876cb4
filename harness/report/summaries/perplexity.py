"""Perplexity and bits per byte by kind of document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from harness.report import display
from harness.report.drawing import charts
from harness.report.drawing.scales import Scale, fit_scale
from harness.report.summaries.tokens import SuiteTokens
from harness.statistics import ratio_of_sums_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class KindPerplexity:
    """One kind of document. ratio = exp(mean NLL change), with its interval if there are at least two documents."""

    name: str
    documents: int
    tokens: int
    reference: float
    variant: float
    ratio: float
    low: float | None
    high: float | None
    reference_bits: float | None
    variant_bits: float | None


def group_by_kind(found: SuiteTokens, most: int) -> list[KindPerplexity]:
    """One row per kind of document, a limited number, the one whose perplexity grew most first."""
    columns = ["reference_nll", "variant_nll", "bytes", "change"]
    frame = found.frame.assign(change=found.frame["variant_nll"] - found.frame["reference_nll"])
    wide = frame[["kind", "document", *columns]].astype(dict.fromkeys(columns, "float64"))
    grouped = wide.groupby(["kind", "document"], sort=True, observed=True)
    # skipna=False: one token without byte offsets makes the bytes of its document unknown, not smaller.
    sums = grouped[columns].sum(skipna=False)
    sums["n"] = grouped.size()
    whole = sums.groupby(level="kind", sort=True)[["change", "n"]].sum()
    growth = (whole["change"] / whole["n"]).sort_values(ascending=False, kind="stable")
    return [_kind(str(name), sums.loc[[name]]) for name in growth.index[:most]]


def make_scale(kinds: Sequence[KindPerplexity]) -> Scale:
    """One scale for the ratios of all kinds, with 1 (no change) on it."""
    return fit_scale([1.0, *(end for kind in kinds for end in (kind.low, kind.ratio, kind.high) if end is not None)])


def draw_ratio(kind: KindPerplexity, scale: Scale) -> Markup:
    """The ratio of one kind with its interval."""
    hint = f"{kind.name}: ratio {display.number(kind.ratio, 5)}"
    if kind.low is not None and kind.high is not None:
        hint += f", interval {display.number(kind.low, 5)} to {display.number(kind.high, 5)}"
    tone = "worse" if (kind.low or 0) > 1 else "better" if kind.high is not None and kind.high < 1 else "variant"
    return charts.interval(kind.ratio, kind.low, kind.high, scale, 1.0, tone, hint)


def _kind(name: str, rows: pd.DataFrame) -> KindPerplexity:
    tokens = int(rows["n"].sum())
    reference, variant, change, size = (
        float(rows[c].sum(skipna=False)) for c in ("reference_nll", "variant_nll", "change", "bytes")
    )
    documents = rows.index.get_level_values("document").to_numpy()
    interval = ratio_of_sums_interval(rows["change"].to_numpy(), rows["n"].to_numpy(), documents, skewed=True)
    if interval is not None and interval.low == interval.high:
        interval = None  # no spread between documents is no evidence about others
    per_byte = 1 / (size * math.log(2)) if size > 0 else None
    return KindPerplexity(
        name=name,
        documents=len(rows),
        tokens=tokens,
        reference=_exp(reference / tokens),
        variant=_exp(variant / tokens),
        ratio=_exp(change / tokens),
        low=None if interval is None else _exp(interval.low),
        high=None if interval is None else _exp(interval.high),
        reference_bits=None if per_byte is None else reference * per_byte,
        variant_bits=None if per_byte is None else variant * per_byte,
    )


def _exp(value: float) -> float:
    """e to the power of ``value``; infinite where that is too large for a float."""
    return math.exp(value) if value < 709 else math.inf
