"""The measure ``generation``: how similar are the greedy continuations of reference and variant?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from harness.data.documents import documents_in
from harness.errors import MeasureError
from harness.measures import ExtraWork, Measure
from harness.measures._shared import Count, make_sampled, not_finite, require
from harness.records import Bos, Measurement, Metric, Skipped
from harness.statistics import (
    Interval,
    bounded_mean_interval,
    mean,
    mean_interval,
    median_time,
    paired_share_interval,
    proportion_interval,
    ratio_of_sums,
    ratio_of_sums_interval,
    restricted_mean,
    restricted_mean_interval,
)

if TYPE_CHECKING:
    import pandas as pd

    from harness.records.result import Side
    from harness.statistics.interval import Floats

Positive = Annotated[int, Field(gt=0)]

EXACT = Metric(
    name="generation.exact_match",
    units="prompts",
    title="same greedy text",
    unit="share",
    better="higher",
    neutral=1.0,
    description="share of prompts with identical continuations on both sides",
    spread="share",
)
DIVERGED = Metric(
    name="generation.diverged",
    units="prompts",
    title="greedy texts that diverge",
    unit="share",
    better="lower",
    description="share of prompts whose continuations diverge before the end",
    spread="share",
)
FIRST = Metric(
    name="generation.first_divergence",
    units="prompts",
    title="equal tokens before texts diverge",
    unit="tokens",
    better="higher",
    description="equal tokens before the first difference, mean; texts that never diverge are censored (Kaplan-Meier)",
    spread="mean",
    spread_size=20.0,
)
MEDIAN = Metric(
    name="generation.first_divergence_median",
    units="prompts",
    title="equal tokens before texts diverge, median",
    unit="tokens",
    better="higher",
    description="equal tokens before the first difference, median; new_tokens if fewer than half of the texts diverge",
    spread="none",
)
PREFIX = Metric(
    name="generation.common_prefix",
    units="prompts",
    title="share of text before texts diverge",
    unit="share",
    better="higher",
    neutral=1.0,
    description="share of the characters before the first difference, mean over prompts",
    spread="mean",
    spread_size=0.3,
)
SIMILARITY = Metric(
    name="generation.similarity",
    units="prompts",
    title="similarity of greedy texts",
    unit="share",
    better="higher",
    neutral=1.0,
    description="1 − edit distance / length of the longer text, mean over prompts",
    spread="mean",
    spread_size=0.3,
)
EMBEDDING = Metric(
    name="generation.embedding_similarity",
    units="prompts",
    title="embedding similarity of greedy texts",
    unit="cosine",
    better="higher",
    neutral=1.0,
    description="cosine between mean-pooled embeddings of both texts, mean over prompts",
    spread="mean",
    spread_size=0.3,
)
STOPPED = Metric(
    name="generation.stopped",
    units="prompts",
    title="texts that stop by themselves",
    unit="share",
    better="higher",
    description="share of texts that end with a stop token before new_tokens, variant − reference",
    sides=True,
    spread="paired",
    spread_size=0.02,
)
HIT_LIMIT = Metric(
    name="generation.hit_limit",
    units="prompts",
    title="texts cut at the limit",
    unit="share",
    better="lower",
    description="share of texts that are cut at new_tokens without a stop token, variant − reference",
    sides=True,
    spread="paired",
    spread_size=0.02,
)
LENGTH = Metric(
    name="generation.length_ratio",
    units="prompts",
    title="length of texts",
    unit="ratio",
    better="neither",
    neutral=1.0,
    description="generated tokens, variant / reference, texts cut at new_tokens included",
    sides=True,
    spread="log",
    spread_size=0.3,
)
SIDES: tuple[Side, Side] = ("reference", "variant")
OTHER_TOKENS = (
    "the sides have different token ids, so token positions cannot be compared; generation.common_prefix counts "
    "characters"
)
OTHER_LENGTHS = "the sides have different token ids, so numbers of tokens cannot be compared"


class Generation(Measure):
    """Greedy continuations of both sides: similarity, and whether they stop by themselves.

    Greedy texts diverge at the first different token and rarely meet again, so the position of the divergence says more
    than the fact that they diverge. A variant that lost its stop token can score well on every other metric.
    """

    table: ClassVar[str] = "generations"
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(EXACT, DIVERGED, STOPPED, HIT_LIMIT, LENGTH),
        *(FIRST, MEDIAN, PREFIX, SIMILARITY, EMBEDDING),
    )
    columns: ClassVar[tuple[str, ...] | None] = (
        "prompt",
        "reference_finite",
        "variant_finite",
        "reference_ended",
        "variant_ended",
        "reference_tokens",
        "variant_tokens",
        "same_tokens",
        "diverged",
        "first",
        "reach",
        "first_character",
        "characters",
        "similarity",
        "embedding_similarity",
    )
    paths: ClassVar[tuple[str, ...]] = ("prompts", "embedding")

    prompts: str | None = Field(
        default=None,
        description="path of a .jsonl file of prompts; default: the beginnings of the suite's documents",
        examples=["./prompts.jsonl"],
    )
    prompt_field: str = Field(default="prompt", description="field of that file that contains the prompt")
    prompt_tokens: Positive = Field(
        default=32, description="prompt length in reference tokens, taken from the beginning of a document"
    )
    new_tokens: Positive = Field(default=64, description="maximum number of generated tokens per prompt")
    max: Positive = Field(default=100, description="maximum number of prompts, the first ones")
    chat: bool = Field(default=False, description="wrap prompts in the tokenizer's chat template, as the user's turn")
    bos: Bos = Field(
        default=True, description="prompts begin with BOS if the tokenizer has one; auto: if the reference's puts it"
    )
    batch_size: Positive = Field(default=16, description="batch size: prompts per batch, on both sides")
    embedding: str | None = Field(
        default=None,
        description="folder of a sentence-embedding model for embedding_similarity; default: none",
        examples=["./embedding-model"],
    )

    def probe_settings(self) -> dict[str, Any]:
        """All settings: the probe generates the texts, the measure only compares them."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def sample_size(self, documents: int | None) -> int | None:
        """One observation per prompt, of the prompts file or the suite's documents."""
        there = documents if self.prompts is None else documents_in(Path(self.prompts), "\n\n")
        return None if there is None else min(there, self.max)

    def work(self, documents: int | None) -> ExtraWork:
        """Prompts and the tokens generated after them."""
        prompts = self.sample_size(documents)
        return ExtraWork(
            generated=(prompts or 0) * (self.prompt_tokens + self.new_tokens), complete=prompts is not None
        )

    def produces(self) -> tuple[Metric, ...]:
        """Shares, lengths, positions, similarity; embedding similarity only if an embedding model is named."""
        first, median = (metric.model_copy(update={"neutral": float(self.new_tokens)}) for metric in (FIRST, MEDIAN))
        found = (EXACT, DIVERGED, STOPPED, HIT_LIMIT, LENGTH, first, median, PREFIX, SIMILARITY)
        return (*found, EMBEDDING) if self.embedding else found

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; positions of tokens are Skipped if token ids differ.

        Raises MeasureError for positions beyond the generated text, and for impossible similarities.
        """
        require(table, self.columns or (), "generations")
        metrics = self.produces()
        if table.empty:
            return [Skipped(measure=metric.name, reason="no text was generated") for metric in metrics]
        count = Count(len(table), int(table["prompt"].nunique()))
        for side in SIDES:
            if broken := int((~table[f"{side}_finite"].to_numpy(dtype=bool)).sum()):
                what = f"logits were NaN or infinite after {broken} of {len(table)} prompts on the {side}'s side"
                return [not_finite(metric, side, what, count) for metric in metrics]
        return [
            *_shares(table, count),
            *_measure_stopping(table, count, self.new_tokens),
            _measure_length(table, count, self.new_tokens),
            *self._positions(table, count, metrics[5], metrics[6]),
            *(_measure_similarity(table, count, metric) for metric in metrics[7:]),
        ]

    def _positions(
        self, table: pd.DataFrame, count: Count, first: Metric, median: Metric
    ) -> list[Measurement | Skipped]:
        """Position of the first difference, in tokens. A text without one is censored at the end of the shorter
        side."""
        if not table["same_tokens"].to_numpy(dtype=bool).all():
            return [Skipped(measure=metric.name, reason=OTHER_TOKENS) for metric in (first, median)]
        times, events = table["first"].to_numpy(dtype=np.int64), table["diverged"].to_numpy(dtype=bool)
        if times.min() < 0 or times.max() > self.new_tokens or (times > table["reach"].to_numpy()).any():
            raise MeasureError(
                f"generations: texts diverge after {times.min()} to {times.max()} tokens, "
                f"expected 0 to the length of the text, {self.new_tokens} at most"
            )
        clusters = table["prompt"].to_numpy()
        what = f"{int(events.sum())} of {len(table)} texts diverge within {self.new_tokens} tokens"
        return [
            make_sampled(
                first,
                f"restricted mean, {what}",
                count,
                change=restricted_mean(times, events, self.new_tokens),
                interval=restricted_mean_interval(times, events, clusters, self.new_tokens),
            ),
            make_sampled(median, what, count, change=float(median_time(times, events, self.new_tokens))),
        ]


def _shares(table: pd.DataFrame, count: Count) -> list[Measurement]:
    parted, clusters = table["diverged"].to_numpy(dtype=bool), table["prompt"].to_numpy()
    found = []
    for metric, those in ((EXACT, ~parted), (DIVERGED, parted)):
        share = mean(those.astype(np.float64))
        what = f"{int(those.sum())} of {len(those)} prompts"
        found.append(make_sampled(metric, what, count, change=share, interval=proportion_interval(those, clusters)))
    return found


def _measure_stopping(table: pd.DataFrame, count: Count, limit: int) -> list[Measurement]:
    """Shares of texts that stop, and of those that are cut, on each side; paired by prompt (Tango's interval)."""
    clusters = table["prompt"].to_numpy()
    stopped = {side: table[f"{side}_ended"].to_numpy(dtype=bool) for side in SIDES}
    found = []
    for metric, those in ((STOPPED, stopped), (HIT_LIMIT, {side: ~ended for side, ended in stopped.items()})):
        counts = {side: int(values.sum()) for side, values in those.items()}
        what = f"{counts['variant']} of {len(table)} prompts, reference {counts['reference']}, at most {limit} tokens"
        if not stopped["reference"].any():
            what += "; no text of the reference stops, so a lost stop token would not show"
        found.append(
            make_sampled(
                metric,
                what,
                count,
                reference=counts["reference"] / len(table),
                variant=counts["variant"] / len(table),
                change=(counts["variant"] - counts["reference"]) / len(table),
                interval=paired_share_interval(those["reference"], those["variant"], clusters),
                variant_interval=proportion_interval(those["variant"], clusters),
            )
        )
    return found


def _measure_length(table: pd.DataFrame, count: Count, limit: int) -> Measurement | Skipped:
    """Generated tokens on both sides, and their ratio, paired by prompt."""
    if not table["same_tokens"].to_numpy(dtype=bool).all():
        return Skipped(measure=LENGTH.name, reason=OTHER_LENGTHS)
    lengths = {side: table[f"{side}_tokens"].to_numpy(dtype=np.float64) for side in SIDES}
    if not lengths["reference"].any():
        return Skipped(measure=LENGTH.name, reason="the reference writes nothing, so a ratio to it is undefined")
    clusters = table["prompt"].to_numpy()
    return make_sampled(
        LENGTH,
        "sum of generated tokens, variant / reference",
        count,
        reference=mean(lengths["reference"]),
        variant=mean(lengths["variant"]),
        change=ratio_of_sums(lengths["variant"], lengths["reference"]),
        interval=_length_interval(lengths["reference"], lengths["variant"], clusters, limit),
        variant_interval=mean_interval(lengths["variant"], clusters),
    )


def _length_interval(reference: Floats, variant: Floats, clusters: np.ndarray, limit: int) -> Interval | None:
    """Interval of the ratio of total lengths. If it has no width (every length is equal on both sides), then that of
    the mean difference, which lies between −limit and limit, over the reference's mean length."""
    interval = ratio_of_sums_interval(variant, reference, clusters)
    if interval is None or interval.low < interval.high:
        return interval
    change = bounded_mean_interval(variant - reference, clusters, -limit, limit)
    length = mean(reference)
    return change and Interval(1 + change.low / length, 1 + change.high / length, change.method)


def _measure_similarity(table: pd.DataFrame, count: Count, metric: Metric) -> Measurement:
    """Mean of a similarity that is 1 for equal texts."""
    least = -1.0 if metric is EMBEDDING else 0.0
    if metric is PREFIX:
        longest = table["characters"].to_numpy(dtype=np.float64)
        values = np.divide(table["first_character"], longest, out=np.ones(len(table)), where=longest > 0)
    else:
        values = table[metric.name.partition(".")[2]].to_numpy(dtype=np.float64)
    if not ((least - 1e-9 <= values) & (values <= 1 + 1e-9)).all():
        raise MeasureError(f"generations: {metric.name} is {values.min()} to {values.max()}, expected {least} to 1")
    values = np.clip(values, least, 1.0)
    interval = bounded_mean_interval(values, table["prompt"].to_numpy(), least, 1.0)
    return make_sampled(metric, "mean over prompts", count, change=mean(values), interval=interval)
