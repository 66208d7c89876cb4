"""The measure ``outliers``: input channels with outlier activations, on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from harness.measures import Measure
from harness.measures._shared import Count, make_sampled, not_finite, require
from harness.records import Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

    from harness.records.result import Side

CHANNELS = Metric(
    name="outliers.channels",
    concern="numerics",
    title="outlier channels",
    unit="channels",
    better="lower",
    description="input channels with outliers in many layers and at many positions (LLM.int8)",
    sides=True,
    spread="none",
)
MAX_TO_MEDIAN = Metric(
    name="outliers.max_to_median",
    concern="numerics",
    title="channel maximum over median",
    unit="max/median",
    better="lower",
    description="largest max |x| of a module's input channels / their median max |x|",
    sides=True,
    spread="none",
)
KURTOSIS = Metric(
    name="outliers.kurtosis",
    concern="numerics",
    title="kurtosis",
    unit="kurtosis",
    better="lower",
    description="N Σ x⁴ / (Σ x²)² of a module's input: 3 for a normal distribution, more with outliers",
    sides=True,
    spread="none",
)
COLUMNS = (
    "side",
    "module",
    "layer",
    "channel",
    "max_abs",
    "sum_squares",
    "sum_fourth",
    "over_threshold",
    "tokens",
)
SIDES: tuple[Side, ...] = ("reference", "variant")


class Outliers(Measure):
    """Input channels with outliers so large that they spoil a shared scale, on either side.

    A channel is an outlier if |x| reaches the threshold in it, in at least ``layer_share`` of the decoder layers, and
    at no less than ``position_share`` of all their positions (Dettmers et al. 2022). Modules with equally many input
    channels are assumed to read the same channels.
    """

    table: ClassVar[str] = "channels"
    metrics: ClassVar[tuple[Metric, ...]] = (CHANNELS, MAX_TO_MEDIAN, KURTOSIS)
    over_modules: ClassVar[tuple[str, ...]] = (CHANNELS.name,)
    per_module: ClassVar[tuple[str, ...]] = (MAX_TO_MEDIAN.name, KURTOSIS.name)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    threshold: Annotated[
        float, Field(gt=0, description="magnitude |x| from which a value counts as an outlier", examples=[6.0])
    ] = 6.0
    layer_share: Annotated[
        float,
        Field(gt=0, le=1, description="minimum share of decoder layers (0 to 1) in which the channel has outliers"),
    ] = 0.25
    position_share: Annotated[
        float, Field(gt=0, le=1, description="minimum share of token positions (0 to 1) with outliers")
    ] = 0.06

    def probe_settings(self) -> dict[str, Any]:
        """The probe counts values above this threshold."""
        return {"threshold": self.threshold}

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; counts over one pass have no interval. A module that one side lacks is Skipped by
        name."""
        require(table, COLUMNS, "channels")
        if table.empty:
            return [Skipped(measure=metric.name, reason="no channel was observed") for metric in self.metrics]
        results = [self._channels(table)]
        for module, rows in table.groupby("module", sort=False):
            results += _module(str(module), rows)
        return results

    def _channels(self, table: pd.DataFrame) -> Measurement | Skipped:
        inside = table[table["layer"] >= 0]
        count = Count(int(inside["channel"].nunique()), 0)
        on = {}
        for side in SIDES:
            rows = inside[inside["side"] == side]
            if rows.empty:
                return Skipped(measure=CHANNELS.name, reason=f"no decoder layer of the {side} was observed")
            if not _is_finite(rows):
                return not_finite(CHANNELS, side, f"NaN or infinity in inputs of the {side}", count)
            on[side] = float(self._outliers(rows))
        shares = f"{self.layer_share:.0%} of layers and {self.position_share:.0%} of positions"
        what = f"|x| >= {self.threshold:g} in {shares}"
        change = on["variant"] - on["reference"]
        return make_sampled(
            CHANNELS,
            f"{what}; no interval",
            count,
            reference=on["reference"],
            variant=on["variant"],
            change=change,
        )

    def _outliers(self, rows: pd.DataFrame) -> int:
        """Number of outlier channels of one side, summed over channel spaces (widths of inputs)."""
        rows = rows.assign(width=rows.groupby("module")["channel"].transform("nunique"))
        channels = rows.groupby(["width", "channel"])
        affected = rows[rows["over_threshold"] > 0].groupby(["width", "channel"])["layer"].nunique()
        layers = channels["width"].first().map(rows.groupby("width")["layer"].nunique())
        often = channels["over_threshold"].sum() >= self.position_share * channels["tokens"].sum()
        wide = affected.reindex(layers.index, fill_value=0) >= self.layer_share * layers
        return int((often & wide).sum())


def _module(module: str, rows: pd.DataFrame) -> list[Measurement | Skipped]:
    labels, count = {"module": module}, Count(int(rows["channel"].nunique()), 0)
    ratio: dict[str, float] = {}
    kurtosis: dict[str, float] = {}
    for side in SIDES:
        part = rows[rows["side"] == side]
        if part.empty:
            return [
                _skip(metric, labels, f"{module} was not observed on the {side}")
                for metric in (MAX_TO_MEDIAN, KURTOSIS)
            ]
        if not _is_finite(part):
            what = f"NaN or infinity in the input of {module} on the {side}'s side"
            return [not_finite(metric, side, what, count, labels) for metric in (MAX_TO_MEDIAN, KURTOSIS)]
        largest = part["max_abs"].to_numpy(dtype=np.float64)
        if (median := float(np.median(largest))) > 0:
            ratio[side] = float(largest.max()) / median
        squares = part["sum_squares"].astype(np.float64).sum()
        if squares > 0:
            kurtosis[side] = float(part["tokens"].sum() * (part["sum_fourth"].sum() / squares) / squares)
    return [
        _compare(MAX_TO_MEDIAN, ratio, labels, count, "half of the input channels are zero everywhere"),
        _compare(KURTOSIS, kurtosis, labels, count, "the input is zero everywhere"),
    ]


def _compare(
    metric: Metric, on: dict[str, float], labels: dict[str, str], count: Count, otherwise: str
) -> Measurement | Skipped:
    for side in SIDES:
        if side not in on:
            return _skip(metric, labels, f"{labels['module']} on the {side}: {otherwise}")
    change = on["variant"] - on["reference"]
    what = "over all positions; no interval"
    return make_sampled(
        metric, what, count, reference=on["reference"], variant=on["variant"], change=change, labels=labels
    )


def _is_finite(rows: pd.DataFrame) -> bool:
    return bool(np.isfinite(rows[["max_abs", "sum_squares", "sum_fourth"]].to_numpy(dtype=np.float64)).all())


def _skip(metric: Metric, labels: dict[str, str], reason: str) -> Skipped:
    return Skipped(measure=metric.name, reason=reason, labels=labels)
