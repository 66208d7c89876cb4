"""The measure ``training``: what a trained variant was trained on, how far it came, and what that took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.errors import MeasureError
from harness.measures import Sampled
from harness.measures._shared import Count, make_counted, make_sampled, require
from harness.records import Measurement, Metric, Skipped
from harness.records.training import HELD_OUT, HELD_OUT_KL

if TYPE_CHECKING:
    import pandas as pd

    from harness.statistics import Intervals

COLUMNS = ("part", "fit", "at", "name", "value", "other")
PARTS = {"none", "overlap", "curve", "memory", "fit"}
OVERLAP = Metric(
    name="training.overlap",
    concern="comparability",
    title="documents shared with training",
    unit="share",
    better="lower",
    description="documents that share 13 consecutive tokens, or their whole text, with the training texts",
)
LOSS = Metric(
    name="training.held_out_loss",
    title="held-out loss of the training",
    unit="nats/token",
    better="lower",
    description="loss of the last training on its held-out documents, less that before its first step",
    spread="counted",
)
KL = Metric(
    name="training.held_out_kl",
    title="held-out KL of the training",
    unit="nats/token",
    better="lower",
    description="KL(reference ‖ variant) on the held-out documents at the step that the last training kept",
    spread="counted",
)
MEMORY = Metric(
    name="training.memory",
    concern="resources",
    title="memory of the training",
    unit="bytes",
    better="lower",
    description="bytes of weights, gradients, optimizer states and activations in the first step of training",
    spread="counted",
)


class Training(Sampled):
    """What a variant was trained on, how far its training came, and what that took.

    Part of every suite of a variant that a step trains. Overlap counts documents that contain a run of 13 tokens of the
    training texts, held-out ones included (GPT-3, arXiv 2005.14165, appendix C). Losses are those of the held-out
    documents of the training itself, before the result is converted: the suite measures the finished variant.
    """

    table: ClassVar[str] = "training"
    metrics: ClassVar[tuple[Metric, ...]] = (OVERLAP, LOSS, KL, MEMORY)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute all metrics, or one Skipped for all if no step trained."""
        require(table, COLUMNS, "training")
        parts = set(table["part"].unique())
        if not parts <= PARTS or ("none" in parts and len(parts) > 1):
            raise MeasureError(f"the training table has the parts {sorted(parts)}, expected {sorted(PARTS)}")
        if parts <= {"none"}:
            return [Skipped(measure="training.*", reason="no step of the variant was trained")]
        return [
            _overlap(table[table["part"] == "overlap"], intervals),
            *_losses(table[table["part"] == "curve"], table[(table["part"] == "fit") & (table["name"] == "kept")]),
            _memory(table[table["part"] == "memory"]),
        ]


def _overlap(rows: pd.DataFrame, intervals: Intervals) -> Measurement | Skipped:
    if rows.empty:
        return Skipped(measure=OVERLAP.name, reason="no document was compared")
    seen = rows["value"].to_numpy() > 0
    documents = rows["at"].to_numpy()
    what = f"{seen.sum()} of {len(seen)} documents share 13 tokens in a row or are the same"
    count = Count(len(rows), len(set(documents.tolist())))
    return make_sampled(OVERLAP, what, count, change=float(seen.mean()), interval=intervals.proportion(seen, documents))


def _losses(curves: pd.DataFrame, kept: pd.DataFrame) -> list[Measurement | Skipped]:
    """Both losses at the step that the last training kept."""
    if curves.empty or kept.empty:
        return [Skipped(measure=metric.name, reason="no training has a curve") for metric in (LOSS, KL)]
    fit, step = str(kept["fit"].iloc[-1]), int(kept["value"].iloc[-1])
    rows = curves[(curves["fit"] == fit) & (curves["at"] <= step)]
    count = Count(len(rows), 0)
    loss, kl = (rows[rows["name"] == series]["value"].to_numpy() for series in (HELD_OUT, HELD_OUT_KL))
    what = f"{fit}: {loss[0]:.6g} before the first step, {loss[-1]:.6g} after step {step}"
    found: list[Measurement | Skipped] = [make_counted(LOSS, what, count, change=float(loss[-1] - loss[0]))]
    if len(kl):
        found.append(make_counted(KL, f"{fit}: after step {step}", count, change=float(kl[-1])))
    else:
        found.append(Skipped(measure=KL.name, reason=f"{fit}: student and reference have other tokens"))
    return found


def _memory(rows: pd.DataFrame) -> Measurement | Skipped:
    if rows.empty:
        return Skipped(measure=MEMORY.name, reason="no step was trained in this run")
    totals = rows.groupby("fit", sort=False)["value"].sum()
    what = f"{totals.idxmax()}: tensors of its first step"
    return make_counted(MEMORY, what, Count(len(rows), 0), change=float(totals.max()))
