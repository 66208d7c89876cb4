"""The between-document spread of a metric: from an earlier run, else from declared assumptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from harness.records import Measurement, Metric
from harness.records.metric import SpreadFamily
from harness.statistics.interval import t_quantile, z_quantile


class Earlier(Protocol):
    """The part of an earlier run that is used here."""

    @property
    def name(self) -> str:
        """Name of the run."""
        ...

    @property
    def measurements(self) -> Sequence[Measurement]:
        """Its measurements, with the intervals of a fixed sample size."""
        ...


@dataclass(frozen=True)
class Spread:
    """The spread on which the interval of a metric will be based.

    family and size: as in ``Metric``. sides: whether the metric has a value on each side. own: standard deviation of
    the variant's own value, if known. reference: the reference's value, if known.
    """

    family: SpreadFamily
    size: float = 0.0
    sides: bool = False
    reference: float | None = None
    own: float | None = None
    source: str = "assumed"

    def words(self) -> str:
        """The size with its meaning and its source."""
        said = {
            "mean": f"between-document SD {self.size:.3g}",
            "log": f"between-document SD {self.size:.3g} (log scale)",
            "relative": f"between-document SD {self.size:.3g} × a degradation of half the limit",
            "paired": f"{100 * self.size:.3g} % discordant items",
            "share": f"binomial, at a true share of {f'{100 * self.size:.3g} %' if self.size else 'half the limit'}",
            "counted": "counted, not sampled",
            "none": "no interval",
            "unknown": "variance unknown",
        }[self.family]
        return f"{said}, {self.source}"


def assume_spread(metric: Metric) -> Spread:
    """The spread that the metric declares."""
    return Spread(metric.spread, metric.spread_size, metric.sides)


def read_spread(run: Earlier, metric: Metric) -> Spread | None:
    """The spread from an earlier run; None if it has no number. Of several labels the widest counts."""
    spreads = [
        _derive_spread(run, m, metric) for m in run.measurements if m.name == metric.name and m.change is not None
    ]
    return max(spreads, key=lambda spread: spread.size, default=None)


def _derive_spread(run: Earlier, measurement: Measurement, metric: Metric) -> Spread:
    sides = measurement.variant is not None and measurement.reference is not None
    source = f"as in the run {run.name}"
    family = metric.spread
    own = _deviation(measurement, measurement.variant_low, measurement.variant_high)

    def spread(family: SpreadFamily, size: float = 0.0) -> Spread:
        return Spread(family, size, sides, measurement.reference, own, source)

    low, high, change = measurement.low, measurement.high, measurement.change
    if low is None or high is None or change is None:
        return spread("none")
    if low == high:
        if measurement.basis == "counted":
            return spread("counted")
        return replace(assume_spread(metric), sides=sides, reference=measurement.reference, own=own)
    if family == "share" and measurement.unit == "share":
        return spread("share", max(metric.spread_size, change) if metric.spread_size else 0.0)
    if family == "paired" and measurement.unit == "share":
        return spread("paired", _discordance(run.measurements, measurement))
    if (family == "log" or measurement.unit == "ratio") and low > 0:
        return spread("log", _deviation(measurement, math.log(low), math.log(high)) or 0.0)
    deviation = _deviation(measurement, low, high) or 0.0
    damage = measurement.effect
    return spread("relative", deviation / damage) if family == "relative" and damage else spread("mean", deviation)


def _deviation(measurement: Measurement, low: float | None, high: float | None) -> float | None:
    """The standard deviation between documents that an interval of a mean came from."""
    if low is None or high is None or measurement.clusters < 2:
        return None
    tail = (1 + measurement.confidence) / 2
    return (high - low) / 2 / t_quantile(tail, measurement.clusters - 1) * math.sqrt(measurement.clusters)


def _discordance(measurements: Sequence[Measurement], accuracy: Measurement) -> float:
    """Share of discordant items (only one side right), with half an item added, so that none observed does not mean
    none."""
    stem, _, metric = accuracy.name.rpartition(".")
    each_way = [
        found.change
        for found in measurements
        for way in ("flips_to_wrong", "flips_to_right")
        if found.name == f"{stem}.{way}" and found.labels.get("metric") == metric and found.change is not None
    ]
    items = max(accuracy.clusters, 1)
    if len(each_way) == 2:
        return min((sum(each_way) * items + 0.5) / (items + 1), 1.0)
    half = ((accuracy.high or 0.0) - (accuracy.low or 0.0)) / 2
    return min(items * (half / z_quantile((1 + accuracy.confidence) / 2)) ** 2, 1.0)
