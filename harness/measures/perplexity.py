"""The measure ``perplexity``: perplexity, NLL change and bits per byte on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.measures import Measure, Sampled
from harness.measures._common.text_bits import BITS, TextBits
from harness.measures._shared import (
    TOKEN_SIDES,
    UNSEEN_CHANGE,
    Count,
    count_tokens,
    make_sampled,
    not_finite,
    unusable_tokens,
)
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Interval, Intervals, mean, ratio_of_sums

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

VALUE = Metric(
    name="perplexity.value",
    title="perplexity",
    unit="perplexity",
    better="lower",
    description="exp of the mean negative log-likelihood",
    sides=True,
    spread="mean",
    spread_size=0.05,
)
RATIO = Metric(
    name="perplexity.ratio",
    title="perplexity ratio",
    unit="ratio",
    better="lower",
    neutral=1.0,
    description="perplexity of the variant / perplexity of the reference, paired token by token",
    spread="log",
    spread_size=0.02,
    chance="v_over_perplexity",
    summary="quality",
)
DELTA = Metric(
    name="perplexity.nll_delta",
    title="change of NLL",
    unit="nats/token",
    better="lower",
    description="mean negative log-likelihood of the variant − that of the reference, paired token by token",
    spread="mean",
    spread_size=0.02,
    chance="ln_v_over_perplexity",
)
BROKEN = Metric(
    name="perplexity.broken_documents",
    title="broken documents",
    unit="share",
    better="lower",
    description="share of documents on which the variant loses more than broken_above nats per token",
    spread="share",
    spread_size=0.002,
)
BROKEN_ABOVE = 0.25
"""Nats per token, a perplexity 1.28 times as high over a whole document.

Far above what a variant that is fit for use does to its worst document (at 4 bits, nine times a mean loss of at most
0.02), so that rounding breaks none; and small enough that damage of 2 % on average which sits in 5 % of the documents
(0.4 on each of them) is counted.
"""


class Perplexity(Sampled):
    """Prediction of held-out text: perplexity, paired ratio, NLL change, bits per byte, broken documents."""

    table: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[Metric, ...]] = (VALUE, RATIO, DELTA, BITS, BROKEN)
    by_document: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...] | None] = (*TOKEN_SIDES, "bytes")

    broken_above: Annotated[
        float, Field(gt=0, le=20, description="a document that loses more nats per token counts as broken")
    ] = BROKEN_ABOVE

    def get_substitute(self) -> Measure:
        """Bits per byte, each side with its own tokens."""
        return TextBits()

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; bits per byte is Skipped if the tokenizer gives no byte spans."""
        if broken := unusable_tokens(table, self.columns or (), self.metrics):
            return broken
        documents = table["document"].to_numpy()
        reference = table["reference_nll"].to_numpy(dtype=np.float64)
        variant = table["variant_nll"].to_numpy(dtype=np.float64)
        count = count_tokens(table)
        delta = variant - reference
        return [
            *_perplexities(reference, variant, documents, count, intervals),
            make_sampled(
                DELTA,
                "mean over tokens of the paired difference",
                count,
                change=mean(delta),
                interval=intervals.mean(delta, documents, largest=UNSEEN_CHANGE),
            ),
            _bits_per_byte(reference, variant, table["bytes"].to_numpy(dtype=np.float64), documents, count, intervals),
            _broken(delta, documents, self.broken_above, intervals),
        ]


def _broken(delta: Floats, documents: Floats, above: float, intervals: Intervals) -> Measurement:
    """The share of broken documents with its exact interval; the label names the document that loses most, if any."""
    labels, member = np.unique(documents, return_inverse=True)
    tokens = np.bincount(member)
    parts = np.split(delta[np.argsort(member, kind="stable")], tokens.cumsum()[:-1])
    loss = np.array([math.fsum(part) for part in parts]) / tokens
    broken, worst = loss > above, int(loss.argmax())
    interval = intervals.share_of_clusters(broken)
    what = f"{broken.sum()} of {len(loss)} documents lose more than {above:g} nats/token"
    if loss[worst] > 0:
        what += f"; the worst loses {loss[worst]:.3g} nats/token"
    if interval:
        what += f"; so many documents cannot exclude a share of {100 * interval.high:.2g} %"
    return make_sampled(
        BROKEN,
        what,
        Count(len(delta), len(loss)),
        change=float(broken.mean()),
        interval=interval,
        labels={"worst_document": str(labels[worst])} if loss[worst] > 0 else {},
    )


def _perplexities(
    reference: Floats, variant: Floats, documents: Floats, count: Count, intervals: Intervals
) -> list[Measurement | Skipped]:
    """Value and ratio. A perplexity or ratio of infinity counts as non-finite on the side that caused it."""
    on_reference, on_variant = _exp(mean(reference)), _exp(mean(variant))
    delta = variant - reference
    ratio = _exp(mean(delta))
    if not 0 < on_reference < math.inf:
        what = f"the perplexity of the reference is {on_reference}"
        return [not_finite(metric, "reference", what, count) for metric in (VALUE, RATIO)]
    if not (0 < on_variant < math.inf and ratio < math.inf):
        what = f"the perplexity of the variant is {on_variant}, {ratio} times that of the reference"
        return [not_finite(metric, "variant", what, count) for metric in (VALUE, RATIO)]
    # Linearised difference of two exponentials: its mean is the difference, its residuals are the influences.
    change = on_variant - on_reference
    influence = change + on_variant * (variant - mean(variant)) - on_reference * (reference - mean(reference))
    same = bool((delta == 0).all())
    return [
        make_sampled(
            VALUE,
            "exp of the mean over tokens",
            count,
            reference=on_reference,
            variant=on_variant,
            change=change,
            interval=_extend_interval(change, intervals.mean(np.zeros_like(delta) if same else influence, documents)),
            variant_interval=_exp_interval(intervals.mean(variant, documents)),
        ),
        make_sampled(
            RATIO,
            "exp of the mean over tokens of the paired difference",
            count,
            change=ratio,
            interval=_exp_interval(intervals.mean(delta, documents, largest=UNSEEN_CHANGE)),
        ),
    ]


def _bits_per_byte(
    reference: Floats, variant: Floats, spans: Floats, documents: Floats, count: Count, intervals: Intervals
) -> Measurement | Skipped:
    if not np.isfinite(spans).all() or (spans < 0).any() or not spans.any():
        reason = "the tokenizer does not report which bytes of the text each token covers"
        return Skipped(measure=BITS.name, reason=reason)
    bits_reference, bits_variant = reference / math.log(2), variant / math.log(2)
    change = bits_variant - bits_reference
    return make_sampled(
        BITS,
        "ratio of sums over tokens",
        count,
        reference=ratio_of_sums(bits_reference, spans),
        variant=ratio_of_sums(bits_variant, spans),
        change=ratio_of_sums(change, spans),
        interval=intervals.ratio_of_sums(change, spans, documents),
        variant_interval=intervals.ratio_of_sums(bits_variant, spans, documents),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < math.log(np.finfo(np.float64).max) else math.inf


def _exp_interval(interval: Interval | None) -> Interval | None:
    """Ends of an interval, exponentiated; None when the upper end is too large to be a number."""
    if interval is None or _exp(interval.high) == math.inf:
        return None
    return Interval(_exp(interval.low), _exp(interval.high), f"exp of: {interval.method}")


def _extend_interval(change: float, interval: Interval | None) -> Interval | None:
    """The interval of a linearised change, extended to contain the change despite rounding; a width of zero stays."""
    if interval is None or interval.low == interval.high:
        return interval and Interval(change, change, interval.method)
    return Interval(min(interval.low, change), max(interval.high, change), f"linearised; {interval.method}")
