"""How much a metric varies from document to document: from an earlier run, else from declared assumptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.records import Measurement
from harness.records.patterns import matches
from harness.statistics.interval import t_quantile, z_quantile

Family = Literal["mean", "log", "relative", "paired", "share", "exact", "none", "unknown"]


class Earlier(Protocol):
    """As much of an earlier run as is used here."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def measurements(self) -> Sequence[Measurement]:
        """What it found, with the intervals of a size that was fixed beforehand."""
        ...


@dataclass(frozen=True)
class Spread:
    """What the interval of a metric will rest on.

    family and size: ``mean`` a standard deviation between documents, ``log`` the same of the logarithm, ``relative``
    the same as a multiple of the damage itself, ``paired`` the share of items that only one side gets right,
    ``share`` nothing (a binomial share), ``exact`` counted, ``none`` has no interval, ``unknown`` nothing is assumed.
    own: standard deviation of the variant's own value, where known. reference: the reference's value, where known.
    """

    family: Family
    size: float = 0.0
    sides: bool = False
    reference: float | None = None
    own: float | None = None
    source: str = "assumed"

    def words(self) -> str:
        """The size with its meaning and its source."""
        said = {
            "mean": f"standard deviation between documents {self.size:.3g}",
            "log": f"standard deviation between documents {self.size:.3g} on the log",
            "relative": f"standard deviation between documents {self.size:.3g} times a damage of half the limit",
            "paired": f"{100 * self.size:.3g} % of items right on one side only",
            "share": "a binomial share of half the limit",
            "exact": "counted, not sampled",
            "none": "no interval",
            "unknown": "nothing known",
        }[self.family]
        return f"{said}, {self.source}"


ASSUMED: tuple[tuple[str, Spread], ...] = (
    ("perplexity.ratio", Spread("log", 0.02)),
    ("perplexity.nll_delta", Spread("mean", 0.02)),
    ("perplexity.bits_per_byte", Spread("mean", 0.02, sides=True)),
    ("perplexity.value", Spread("mean", 0.05, sides=True)),
    ("divergence.kl_p99", Spread("relative", 2.5)),
    ("divergence.kl_p999", Spread("relative", 5.0)),
    ("divergence.kl_max", Spread("none")),
    ("divergence.delta_p_mean", Spread("mean", 0.01)),
    ("divergence.*", Spread("relative", 1.5)),
    ("logits.mean_abs_diff", Spread("relative", 0.25)),
    ("logits.*", Spread("none")),
    ("calibration.brier", Spread("mean", 0.01, sides=True)),
    ("calibration.squared_error", Spread("mean", 0.03, sides=True)),
    ("calibration.gap", Spread("mean", 0.02)),
    ("calibration.ece*", Spread("none", sides=True)),
    ("generation.exact_match", Spread("share")),
    ("generation.diverged", Spread("share")),
    ("generation.first_divergence", Spread("mean", 20.0)),
    ("generation.first_divergence_median", Spread("none")),
    ("generation.*", Spread("mean", 0.3)),
    ("tasks.*.flips*", Spread("share")),
    ("tasks.*.ece", Spread("none", sides=True)),
    ("tasks.*.brier", Spread("mean", 0.1, sides=True)),
    ("tasks.*.recovery", Spread("log", 0.25)),
    ("tasks.*perplexity_ratio", Spread("log", 0.03)),
    ("tasks.*perplexity", Spread("none", sides=True)),
    ("tasks.*.bits_per_byte", Spread("mean", 0.02, sides=True)),
    ("tasks.*.*", Spread("paired", 0.05, sides=True)),
    ("memory.peak_bytes", Spread("none", sides=True)),
    ("memory.*", Spread("exact", sides=True)),
    ("hardware.*", Spread("exact", sides=True)),
    ("artifact.kl_mean", Spread("relative", 1.5)),
    ("artifact.*kl_max", Spread("none")),
    ("artifact.logits_max_abs_diff", Spread("none")),
    ("artifact.*", Spread("exact")),
    ("latency.ratio", Spread("log", 0.05)),
    ("layers.*", Spread("none")),
    ("outliers.*", Spread("none", sides=True)),
)
"""What is assumed of a metric without an earlier run, the first pattern that matches. Seen on 4-bit variants of small
and large models, and rounded up, so that the documents needed come out too many rather than too few."""


def assumed(name: str) -> Spread:
    """What is assumed about the metric ``name``."""
    return next((spread for pattern, spread in ASSUMED if matches(pattern, name)), Spread("unknown"))


def observed(run: Earlier, name: str) -> Spread | None:
    """What an earlier run says about the metric; None where it has no number. Of several labels the widest counts."""
    found = [_observed(run, m) for m in run.measurements if m.name == name and m.change is not None]
    return max(found, key=lambda spread: spread.size, default=None)


def _observed(run: Earlier, measurement: Measurement) -> Spread:
    sides = measurement.variant is not None and measurement.reference is not None
    source = f"as in the run {run.name}"
    family = assumed(measurement.name).family
    own = _deviation(measurement, measurement.variant_low, measurement.variant_high)

    def spread(family: Family, size: float = 0.0) -> Spread:
        return Spread(family, size, sides, measurement.reference, own, source)

    low, high, change = measurement.low, measurement.high, measurement.change
    if low is None or high is None or change is None:
        return spread("none")
    if low == high:
        guess = assumed(measurement.name)
        exact = measurement.method.startswith("exact")
        return spread("exact") if exact else Spread(guess.family, guess.size, sides, measurement.reference, own)
    if family == "share" and measurement.unit == "share":
        return spread("share")
    if family == "paired" and measurement.unit == "share":
        return spread("paired", _discordance(run.measurements, measurement))
    if (family == "log" or measurement.unit == "ratio") and low > 0:
        return spread("log", _deviation(measurement, math.log(low), math.log(high)) or 0.0)
    deviation = _deviation(measurement, low, high) or 0.0
    damage = abs(change - measurement.neutral)
    return spread("relative", deviation / damage) if family == "relative" and damage else spread("mean", deviation)


def _deviation(measurement: Measurement, low: float | None, high: float | None) -> float | None:
    """The standard deviation between documents that an interval of a mean came from."""
    if low is None or high is None or measurement.clusters < 2:
        return None
    tail = (1 + measurement.confidence) / 2
    return (high - low) / 2 / t_quantile(tail, measurement.clusters - 1) * math.sqrt(measurement.clusters)


def _discordance(measurements: Sequence[Measurement], accuracy: Measurement) -> float:
    """Share of items that only one side gets right, half an item added, so that none seen is not none at all."""
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
