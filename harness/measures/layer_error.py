"""The measure ``layer_error``: output error of every module of the variant, document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.measures import Sampled
from harness.measures._shared import Count, make_counted, make_sampled, not_finite, require
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Interval, Intervals, ratio_of_sums

if TYPE_CHECKING:
    import pandas as pd

    from harness.records.result import Side

Floats = NDArray[np.float64]

NO_ERROR_DB = 10 * 2098 * math.log10(2)
"""Stands for the infinite SQNR of zero error: the quotient of the largest and the smallest float64, in dB, which no
measured error reaches."""

RELATIVE = Metric(
    name="layers.relative_error",
    concern="numerics",
    title="relative error",
    unit="ratio",
    better="lower",
    description="‖y − ŷ‖ / ‖y‖ of a module's output",
    spread="none",
)
SQNR = Metric(
    name="layers.sqnr_db",
    concern="numerics",
    title="SQNR",
    unit="dB",
    better="higher",
    neutral=NO_ERROR_DB,
    infinite_neutral=True,
    description="signal to quantization noise, 10 log10(Σ y² / Σ (y − ŷ)²), of a module's output",
    spread="none",
)
COSINE = Metric(
    name="layers.cosine",
    concern="numerics",
    title="cosine",
    unit="cosine",
    better="higher",
    neutral=1.0,
    description="cosine between a module's outputs on both sides",
    spread="none",
)
WORST = Metric(
    name="layers.worst",
    concern="numerics",
    title="largest layer error",
    unit="ratio",
    better="lower",
    description="largest relative error of a decoder block or linear layer",
    spread="none",
)
COLUMNS = (
    "document",
    "module",
    "kind",
    "depth",
    "sum_squared_error",
    "sum_squared_reference",
    "sum_squared_variant",
    "dot",
    "n",
)


class LayerError(Sampled):
    """Output error of every module: relative error, SQNR, cosine, and the worst module.

    Each side computes with its own inputs, so errors of earlier modules are included in those of later ones.
    """

    table: ClassVar[str] = "layers"
    metrics: ClassVar[tuple[Metric, ...]] = (RELATIVE, SQNR, COSINE, WORST)
    by_document: ClassVar[bool] = True
    over_modules: ClassVar[tuple[str, ...]] = (WORST.name,)
    per_module: ClassVar[tuple[str, ...]] = (RELATIVE.name, SQNR.name, COSINE.name)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute all metrics, modules in order of execution. A module whose reference output is zero is Skipped by
        name."""
        require(table, COLUMNS, "layers")
        if table.empty:
            return [Skipped(measure=metric.name, reason="no module was observed") for metric in self.metrics]
        modules = [_module(part) for _, part in table.groupby(["depth", "module"], sort=True)]
        results = [entry for module in modules for entry in _measure_module(module, intervals)]
        return [
            *results,
            _worst([module for module in modules if module.labels["kind"] in ("block", "linear")], intervals),
        ]


@dataclass(frozen=True)
class _ModuleSums:
    """Sums over each document of one module: squared error, squared norms of both sides, dot product."""

    labels: dict[str, str]
    documents: NDArray[np.int64]
    error: Floats
    reference: Floats
    variant: Floats
    dot: Floats
    count: Count

    @property
    def broken_side(self) -> Side | None:
        """The side that produced NaN or infinity."""
        if not np.isfinite(self.reference).all():
            return "reference"
        finite = np.isfinite(self.variant) & np.isfinite(self.error) & np.isfinite(self.dot)
        return None if finite.all() else "variant"

    @property
    def same(self) -> bool:
        """Whether every output value is the same on both sides."""
        return not self.error.any()

    @property
    def name(self) -> str:
        """Path of the module."""
        return self.labels["module"]

    def relative_error(self, intervals: Intervals) -> tuple[float, Interval | None]:
        """‖y − ŷ‖ / ‖y‖ over all documents, with its interval. Raises ValueError when ‖y‖ is 0."""
        if self.same:
            return 0.0, self.exact_interval(0.0)
        value, around = self._root(intervals)
        return value, around and Interval(around.low, around.high, f"root of: {around.method}")

    def sqnr(self, intervals: Intervals) -> tuple[float, Interval | None]:
        """10 log10(Σ y² / Σ (y − ŷ)²) with its interval; NO_ERROR_DB stands for infinity."""
        if self.same:
            return NO_ERROR_DB, self.exact_interval(NO_ERROR_DB)
        value, around = self._root(intervals)
        return _decibel(value), around and Interval(_decibel(around.high), _decibel(around.low), around.method)

    def _root(self, intervals: Intervals) -> tuple[float, Interval | None]:
        """√(Σ (y − ŷ)² / Σ y²) with the roots of the ends of the ratio's interval, under the method of the ratio."""
        share = intervals.ratio_of_sums(self.error, self.reference, self.documents)
        value = math.sqrt(ratio_of_sums(self.error, self.reference))
        if share is None:
            return value, None
        low, high = math.sqrt(max(share.low, 0.0)), math.sqrt(share.high)
        return value, Interval(min(low, value), max(high, value), share.method)

    def cosine(self, intervals: Intervals) -> tuple[float, Interval | None]:
        """Cosine between both outputs over all documents, with the interval of its linearisation.

        Raises ValueError when either norm is 0.
        """
        if self.same:
            return 1.0, self.exact_interval(1.0)
        a, b = math.fsum(self.reference.tolist()), math.fsum(self.variant.tolist())
        value = min(math.fsum(self.dot.tolist()) / (math.sqrt(a) * math.sqrt(b)), 1.0)
        weight = self.reference / a
        influence = self.dot / (math.sqrt(a) * math.sqrt(b)) - value / 2 * (weight + self.variant / b)
        interval = intervals.ratio_of_sums(influence + value * weight, weight, self.documents)
        if interval is None or interval.low == interval.high:
            return value, interval and Interval(value, value, interval.method)
        low, high = max(min(interval.low, value), -1.0), min(max(interval.high, value), 1.0)
        return value, Interval(low, high, f"linearised; {interval.method}")

    def exact_interval(self, value: float) -> Interval | None:
        """A metric that is exact because outputs never differ; a single document is not enough to conclude that."""
        return Interval(value, value, "") if self.count.clusters > 1 else None


def _module(rows: pd.DataFrame) -> _ModuleSums:
    first = rows.iloc[0]

    def column(name: str) -> Floats:
        return rows[name].to_numpy(dtype=np.float64)

    return _ModuleSums(
        labels={"module": str(first["module"]), "kind": str(first["kind"]), "depth": str(first["depth"])},
        documents=rows["document"].to_numpy(dtype=np.int64),
        error=column("sum_squared_error"),
        reference=column("sum_squared_reference"),
        variant=column("sum_squared_variant"),
        dot=column("dot"),
        count=Count(int(rows["n"].sum()), int(rows["document"].nunique())),
    )


def _decibel(relative_error: float) -> float:
    return min(-20 * math.log10(relative_error), NO_ERROR_DB) if relative_error > 0 else NO_ERROR_DB


def _measure_module(module: _ModuleSums, intervals: Intervals) -> list[Measurement | Skipped]:
    """The three metrics of one module, or why they cannot be computed."""
    if module.broken_side:
        what = f"NaN or infinity in the output on the {module.broken_side}'s side"
        return [
            not_finite(metric, module.broken_side, what, module.count, module.labels)
            for metric in (RELATIVE, SQNR, COSINE)
        ]
    if not module.reference.any():
        reason = f"the reference output of {module.name} is zero everywhere, so no relative error is defined"
        return [_skip(metric, module, reason) for metric in (RELATIVE, SQNR, COSINE)]
    what = "ratio of sums over documents"
    if module.same:
        what = f"exact: all {module.count.observations} output values are the same on both sides"
    infinite = f"; {NO_ERROR_DB:.0f} dB stands for infinity" if module.same else ""
    results: list[Measurement | Skipped] = [
        _measurement(RELATIVE, what, module, *module.relative_error(intervals)),
        _measurement(SQNR, what + infinite, module, *module.sqnr(intervals)),
    ]
    if not module.variant.any():
        reason = f"the variant's output of {module.name} is zero everywhere, so the cosine is undefined"
        return [*results, _skip(COSINE, module, reason)]
    return [*results, _measurement(COSINE, what, module, *module.cosine(intervals))]


def _measurement(
    metric: Metric, what: str, module: _ModuleSums, value: float, interval: Interval | None
) -> Measurement:
    """Counted if outputs never differ; with a single document that is not certain, so it then has no interval."""
    if module.same and interval is not None:
        return make_counted(metric, what, module.count, change=value, labels=module.labels)
    return make_sampled(metric, what, module.count, change=value, interval=interval, labels=module.labels)


def _worst(modules: Sequence[_ModuleSums], intervals: Intervals) -> Measurement | Skipped:
    """The largest relative error. Both ends of its interval hold for the largest of all modules (Bonferroni)."""
    if not modules:
        return Skipped(measure=WORST.name, reason="no decoder block and no linear layer was observed")
    for side in ("reference", "variant"):
        for module in modules:
            if module.broken_side == side:
                what = f"NaN or infinity in the output of {module.name} on the {side}'s side"
                return not_finite(WORST, module.broken_side, what, module.count, module.labels)
    for module in modules:
        if not module.reference.any() and not module.same:
            return _skip(WORST, module, f"the reference output of {module.name} is zero everywhere, the variant's not")
    values = [(*module.relative_error(intervals), module) for module in modules]
    strict = [module.relative_error(intervals.among(len(modules)))[1] for module in modules]
    value, interval, worst = max(values, key=lambda entry: entry[0])
    if worst.same:
        exact = f"exact: no output value of {len(modules)} modules differs"
        return _measurement(WORST, exact, worst, value, interval)
    lows = [entry.low for entry in strict if entry]
    highs = [entry.high for _, entry, _ in values if entry]
    known = len(lows) == len(modules) == len(highs)
    around = Interval(max(lows), max(highs), f"largest of {len(modules)} modules, Bonferroni") if known else None
    return make_sampled(
        WORST, "largest relative error", worst.count, change=value, interval=around, labels=worst.labels
    )


def _skip(metric: Metric, module: _ModuleSums, reason: str) -> Skipped:
    return Skipped(measure=metric.name, reason=reason, labels=module.labels)
