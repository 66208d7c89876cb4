"""Bits per byte for sides with different tokenizers: per document, over the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness.errors import MeasureError
from harness.measures import Measure
from harness.measures._shared import ROUNDING, Count, make_sampled, not_finite, require
from harness.records import Measurement, Metric, Skipped
from harness.statistics import ratio_of_sums, ratio_of_sums_interval

if TYPE_CHECKING:
    import pandas as pd

    from harness.records.result import Side

BITS = Metric(
    name="perplexity.bits_per_byte",
    title="bits per byte",
    unit="bits/byte",
    better="lower",
    description="negative log-likelihood in bits for each UTF-8 byte of text, comparable between tokenizers",
    sides=True,
    spread="mean",
    spread_size=0.02,
)
LOSSY_SHARE = 0.01
"""If a tokenizer fails to reproduce more than this share of documents, the sides do not predict the same text."""
SIDES: tuple[Side, Side] = ("reference", "variant")


class TextBits(Measure):
    """Bits per byte of both sides, each by its own tokenizer."""

    kind: ClassVar[str] = "perplexity"
    table: ClassVar[str] = "texts"
    metrics: ClassVar[tuple[Metric, ...]] = (BITS,)
    by_document: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...] | None] = (
        "document",
        "total_bytes",
        "bytes",
        "reference_tokens",
        "variant_tokens",
        "reference_nll",
        "variant_nll",
        "lossy",
        "skipped",
    )

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Bits per byte; Skipped if a tokenizer loses text, or if nothing could be scored on both sides.

        Raises MeasureError for an impossible likelihood.
        """
        require(table, self.columns or (), "texts")
        documents = int(table["document"].nunique())
        lossy = table[table["lossy"]]
        if len(lossy) > LOSSY_SHARE * documents:
            reason = (
                f"{lossy['skipped'].iloc[0]} in {len(lossy)} of {documents} documents (it drops or changes "
                "characters), so both sides do not predict the same bytes"
            )
            return [Skipped(measure=BITS.name, reason=reason)]
        scored = table[table["skipped"] == ""]
        if scored.empty:
            reason = f"no document could be scored on both sides: {table['skipped'].iloc[0]}"
            return [Skipped(measure=BITS.name, reason=reason)]
        return [_bits(scored, _conditions(table, scored))]


def _bits(scored: pd.DataFrame, what: str) -> Measurement:
    spans = scored["bytes"].to_numpy(dtype=np.float64)
    documents = scored["document"].to_numpy()
    count = Count(len(scored), int(scored["document"].nunique()))
    bits = {side: scored[f"{side}_nll"].to_numpy(dtype=np.float64) / math.log(2) for side in SIDES}
    for side in SIDES:
        bad = ~np.isfinite(bits[side])
        if bad.any():
            found = f"{bad.sum()} of {len(scored)} texts have a likelihood of NaN or infinity on the {side}'s side"
            return not_finite(BITS, side, found, count)
        if (bits[side] < -ROUNDING * scored[f"{side}_tokens"].to_numpy()).any():
            raise MeasureError(f"{side}_nll is {bits[side].min() * math.log(2)} in a text, expected at least 0 nats")
    change = bits["variant"] - bits["reference"]
    return make_sampled(
        BITS,
        what,
        count,
        reference=ratio_of_sums(bits["reference"], spans),
        variant=ratio_of_sums(bits["variant"], spans),
        change=ratio_of_sums(change, spans),
        interval=ratio_of_sums_interval(change, spans, documents, skewed=True),
        variant_interval=ratio_of_sums_interval(bits["variant"], spans, documents, skewed=True),
    )


def _conditions(table: pd.DataFrame, scored: pd.DataFrame) -> str:
    """Conditions of the comparison: how many bytes were scored, and bytes per token on each side."""
    size, total = int(scored["bytes"].sum()), int(table["total_bytes"].sum())
    each = [f"{size / max(int(scored[f'{side}_tokens'].sum()), 1):.3g}" for side in SIDES]
    said = f"ratio of sums over the same {size} bytes, each side by its own tokens of {each[0]} and {each[1]} bytes"
    if size < total:
        said += f"; {total - size} bytes that one side cannot score, or beyond the context, are excluded on both sides"
    left = int(table["document"].nunique() - scored["document"].nunique())
    return said + (f"; {left} documents are excluded completely" if left else "")
