"""The measure ``calibration_data``: do the calibration documents represent the evaluation documents?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import MeasureError
from harness.measures import Sampled
from harness.measures._shared import Count, count_tokens, make_sampled, require
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Interval, Intervals, ratio_of_sums

if TYPE_CHECKING:
    import pandas as pd

OVERLAP = Metric(
    name="calibration_data.overlap",
    concern="comparability",
    title="documents shared with calibration",
    unit="share",
    better="lower",
    description="documents that share 13 consecutive tokens, or their whole text, with the calibration documents",
)
DIVERGENCE = Metric(
    name="calibration_data.token_divergence",
    concern="comparability",
    title="divergence of tokens from calibration",
    unit="nats",
    better="lower",
    description="Jensen-Shannon divergence of token frequencies, calibration vs. evaluation documents, 0 to ln 2",
)
FLOOR = Metric(
    name="calibration_data.token_divergence_floor",
    concern="comparability",
    title="divergence of tokens between halves",
    unit="nats",
    better="neither",
    description="the same between random halves of the evaluation documents: the level expected by chance",
)
OUTSIDE = Metric(
    name="calibration_data.outside_range",
    concern="comparability",
    title="inputs outside the calibrated range",
    unit="share",
    better="lower",
    description="share of a module's inputs outside the range seen on the calibration documents",
)
WORST = Metric(
    name="calibration_data.outside_range_worst",
    concern="comparability",
    title="most inputs outside the calibrated range",
    unit="share",
    better="lower",
    description="the largest such share of any module",
)
COLUMNS = ("part", "document", "module", "token", "count", "total")
PARTS = {"none", "overlap", "evaluation", "calibration", "range"}
HALVINGS = 20


class CalibrationData(Sampled):
    """Whether the calibration documents of a variant represent the documents on which it is judged.

    Overlap counts documents that contain a run of 13 tokens of the calibration documents (GPT-3, arXiv 2005.14165,
    appendix C). The divergence of token frequencies is the Jensen-Shannon divergence (Lin 1991) in nats. Ranges are
    those of the finished variant, before activations are rounded. Skipped for variants without calibration.
    """

    table: ClassVar[str] = "calibration_data"
    metrics: ClassVar[tuple[Metric, ...]] = (OVERLAP, DIVERGENCE, FLOOR, OUTSIDE, WORST)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute all metrics, or one Skipped for all if no step used calibration documents."""
        require(table, COLUMNS, "calibration_data")
        parts = set(table["part"].unique())
        if not parts <= PARTS or ("none" in parts and len(parts) > 1):
            raise MeasureError(f"the calibration_data table has the parts {sorted(parts)}, expected {sorted(PARTS)}")
        if parts <= {"none"}:
            reason = "no step of the variant uses calibration documents"
            return [Skipped(measure="calibration_data.*", reason=reason)]
        # A batch whose halves were computed alone leaves the calibration documents twice.
        calibration = table[table["part"] == "calibration"].drop_duplicates(["document", "token"])
        evaluation = table[table["part"] == "evaluation"]
        return [
            _overlap(table[table["part"] == "overlap"], intervals),
            *_divergences(calibration, evaluation),
            *_ranges(table[table["part"] == "range"], intervals),
        ]


def jensen_shannon(p_counts: NDArray[np.float64], q_counts: NDArray[np.float64]) -> float:
    """½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2, in nats, of two vectors of counts; 0 to ln 2 (Lin 1991)."""
    p, q = p_counts / p_counts.sum(), q_counts / q_counts.sum()
    m = (p + q) / 2
    terms = [x[x > 0] * np.log(x[x > 0] / m[x > 0]) for x in (p, q)]
    return float(np.clip(sum(term.sum() for term in terms) / 2, 0.0, np.log(2)))


def _overlap(rows: pd.DataFrame, intervals: Intervals) -> Measurement | Skipped:
    if rows.empty:
        return Skipped(measure=OVERLAP.name, reason="no document was compared")
    seen = rows["count"].to_numpy() > 0
    what = f"{seen.sum()} of {len(seen)} documents share 13 tokens in a row or are the same"
    interval = intervals.proportion(seen, rows["document"].to_numpy())
    return make_sampled(OVERLAP, what, count_tokens(rows), change=float(seen.mean()), interval=interval)


def _divergences(calibration: pd.DataFrame, evaluation: pd.DataFrame) -> list[Measurement | Skipped]:
    if calibration.empty or evaluation.empty:
        side = "calibration" if calibration.empty else "evaluation"
        reason = f"the {side} documents hold special tokens only"
        return [Skipped(measure=metric.name, reason=reason) for metric in (DIVERGENCE, FLOOR)]
    size = 1 + int(max(calibration["token"].max(), evaluation["token"].max()))
    documents = np.unique(evaluation["document"].to_numpy())
    count = Count(int(evaluation["count"].sum()), len(documents))
    distance = jensen_shannon(_totals(calibration, size), _totals(evaluation, size))
    what = f"{int(calibration['count'].sum())} calibration tokens and {count.observations} of these; no interval"
    between = make_sampled(DIVERGENCE, what, count, change=distance)
    if len(documents) < 2:
        return [between, Skipped(measure=FLOOR.name, reason="one document has no halves")]
    floor = float(np.mean([_distance_between_halves(evaluation, documents, size, seed) for seed in range(HALVINGS)]))
    halves = make_sampled(
        FLOOR, f"mean of {HALVINGS} random halvings of the documents; no interval", count, change=floor
    )
    return [between, halves]


def _distance_between_halves(evaluation: pd.DataFrame, documents: NDArray[np.int32], size: int, seed: int) -> float:
    shuffled = np.random.default_rng(seed).permutation(documents)
    first = evaluation["document"].isin(shuffled[: len(shuffled) // 2])
    return jensen_shannon(_totals(evaluation[first], size), _totals(evaluation[~first], size))


def _totals(rows: pd.DataFrame, size: int) -> NDArray[np.float64]:
    """How often each token occurs in all documents together."""
    counts = np.zeros(size)
    np.add.at(counts, rows["token"].to_numpy(), rows["count"].to_numpy())
    return counts


def _ranges(rows: pd.DataFrame, intervals: Intervals) -> list[Measurement | Skipped]:
    if rows.empty:
        reason = "no linear layer was observed on both sets of documents"
        return [Skipped(measure=metric.name, reason=reason) for metric in (OUTSIDE, WORST)]
    modules = [_module(str(name), part, intervals) for name, part in rows.groupby("module", sort=False)]
    worst = max(modules, key=lambda each: each.change or 0.0)
    what = f"largest of {len(modules)} modules; no interval"
    return [*modules, worst.model_copy(update={"name": WORST.name, "low": None, "high": None, "method": what})]


def _module(name: str, rows: pd.DataFrame, intervals: Intervals) -> Measurement:
    outside, total = rows["count"].to_numpy(np.float64), rows["total"].to_numpy(np.float64)
    share = ratio_of_sums(outside, total)
    found = intervals.ratio_of_sums(outside, total, rows["document"].to_numpy())
    interval = None
    if found is not None and found.low < found.high:
        interval = Interval(max(0.0, found.low), min(1.0, found.high), found.method)
    what = "share of inputs" if interval else "share of inputs; no interval"
    count = Count(int(total.sum()), count_tokens(rows).clusters)
    return make_sampled(OUTSIDE, what, count, change=share, interval=interval, labels={"module": name})
