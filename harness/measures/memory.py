"""The measure ``memory``: stored bytes of weights and KV cache, bits per weight, peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness.measures import Measure
from harness.measures._shared import Count, make_counted, make_sampled, require
from harness.records import Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = Metric(
    name="memory.weight_bytes",
    concern="resources",
    title="stored weights",
    unit="bytes",
    better="lower",
    description="stored bytes of all weights: codes, scales, zero points, and plain floats in the dtype of the files",
    sides=True,
    spread="counted",
)
BITS = Metric(
    name="memory.bits_per_weight",
    concern="resources",
    title="bits per weight",
    unit="bits/weight",
    better="lower",
    description="stored bits per parameter",
    sides=True,
    spread="counted",
)
CACHE = Metric(
    name="memory.kv_bytes_per_token",
    concern="resources",
    title="KV cache per token",
    unit="bytes/token",
    better="lower",
    description="bytes of keys and values that each token adds to the cache",
    sides=True,
    spread="counted",
)
PEAK = Metric(
    name="memory.peak_bytes",
    concern="resources",
    title="peak memory",
    unit="bytes",
    better="lower",
    description="peak memory of a forward pass, measured",
    sides=True,
    spread="none",
)


class Memory(Measure):
    """Memory of weights and key-value cache, counted from the stored tensors."""

    table: ClassVar[str] = "weights"
    metrics: ClassVar[tuple[Metric, ...]] = (WEIGHTS, BITS, CACHE, PEAK)
    columns: ClassVar[tuple[str, ...] | None] = ("side", "module", "type", "parameters", "stored_bytes")

    def sample_size(self, documents: int | None) -> int | None:
        """0: weights are counted, not sampled."""
        return 0

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; what the table does not contain on both sides is Skipped."""
        require(table, self.columns or (), "weights")
        weights = table[~table["type"].isin(["kv_cache", "peak"])]
        cache, peak = table[table["type"] == "kv_cache"], table[table["type"] == "peak"]
        stored = _totals(weights, "stored_bytes")
        parameters = _totals(weights, "parameters")
        bits = {side: 8 * stored[side] / parameters[side] for side in stored if parameters[side] > 0}
        return [
            _compare(WEIGHTS, stored, "no weights were listed", exact=True),
            _compare(BITS, bits, "no parameters were listed", exact=True),
            _compare(
                CACHE,
                _totals(cache, "stored_bytes"),
                "the size of the key-value cache is not known",
                exact=True,
            ),
            _compare(
                PEAK,
                _totals(peak, "stored_bytes"),
                "peak memory was not measured on this device",
                exact=False,
            ),
        ]


def _totals(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """Sum of a column on each side that has rows."""
    return {str(side): float(part[column].astype(np.float64).sum()) for side, part in rows.groupby("side")}


def _compare(metric: Metric, on: dict[str, float], missing: str, exact: bool) -> Measurement | Skipped:
    absent = [side for side in ("reference", "variant") if side not in on]
    if absent:
        return Skipped(measure=metric.name, reason=f"{missing} ({' and '.join(absent)})")
    reference, variant = on["reference"], on["variant"]
    change = variant - reference
    if not exact:
        return make_sampled(
            metric,
            "one measured peak; no interval",
            Count(1, 0),
            reference=reference,
            variant=variant,
            change=change,
        )
    what = "exact count" if metric is CACHE else "exact count; plain floats in the dtype of the files"
    return make_counted(metric, what, Count(1, 0), reference=reference, variant=variant, change=change)
