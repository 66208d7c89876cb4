"""The measure ``weight_error``: relative error of the weight of every linear layer."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.measures import Measure
from harness.measures._shared import Count, make_counted, make_sampled, require
from harness.records import Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

RELATIVE = Metric(
    name="weights.relative_error",
    concern="numerics",
    title="relative error of a weight",
    unit="ratio",
    better="lower",
    description="‖Ŵ − W‖ / ‖W‖ of the weight that a linear layer computes with",
)
WORST = Metric(
    name="weights.worst",
    concern="numerics",
    title="largest weight error",
    unit="ratio",
    better="lower",
    description="largest relative error of the weight of a linear layer",
)
COLUMNS = ("side", "module", "role", "parameters", "relative_error", "compared", "error_note")


class WeightError(Measure):
    """Relative error of the weights that linear layers compute with, module by module.

    Weights are determined by applying a layer to inputs, not by reading its tensors. If scales were folded into other
    modules the weights cannot be compared, and the module is Skipped; so is the largest error then, because that module
    might have it.
    """

    table: ClassVar[str] = "weights"
    metrics: ClassVar[tuple[Metric, ...]] = (RELATIVE, WORST)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    def sample_size(self, documents: int | None) -> int | None:
        """0: weights are counted, not sampled."""
        return 0

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics, in the order of the modules."""
        require(table, COLUMNS, "weights")
        rows = table[(table["side"] == "variant") & table["role"].isin(["linear", "head"])]
        if rows.empty:
            return [Skipped(measure=metric.name, reason="no linear layer was listed") for metric in self.metrics]
        errors = [_module(row) for row in rows.to_dict("records")]
        known = [entry for entry in errors if isinstance(entry, Measurement)]
        if len(known) < len(errors):
            first = next(entry for entry in errors if isinstance(entry, Skipped))
            reason = f"{first.labels['module']}, and {len(errors) - len(known) - 1} more: {first.reason}"
            return [*errors, Skipped(measure=WORST.name, reason=reason)]
        worst = max(known, key=lambda entry: entry.change or 0.0)
        return [*errors, worst.model_copy(update={"name": WORST.name})]


def _module(row: dict[Hashable, Any]) -> Measurement | Skipped:
    labels = {"module": str(row["module"])}
    error, share = float(row["relative_error"]), float(row["compared"])
    if not math.isfinite(error):
        return Skipped(measure=RELATIVE.name, reason=str(row["error_note"]), labels=labels)
    whole = share >= 1
    what = "exact: all inputs were compared" if whole else f"{share:.1%} of the inputs were compared, no interval"
    if row["error_note"]:
        what = f"{what}; {row['error_note']}"
    made = make_counted if whole else make_sampled
    return made(RELATIVE, what, Count(int(row["parameters"]), 0), change=error, labels=labels)
