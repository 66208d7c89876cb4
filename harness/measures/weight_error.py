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
OUTLYING = Metric(
    name="weights.outlying",
    concern="numerics",
    title="outlying weight error",
    unit="ratio",
    better="lower",
    neutral=1.0,
    description="largest ratio of a weight's error to what its number format explains, relative to other modules",
    spread="counted",
)
COLUMNS = (
    "module",
    "paired",
    "compressed",
    "retrained",
    "parameters",
    "relative_error",
    "compared",
    "error_note",
    "rounding_error",
    "explained_error",
)


class WeightError(Measure):
    """Relative error of the weights that linear layers compute with, module by module.

    Weights are determined by applying a layer to inputs, not by reading its tensors. If scales were folded into other
    modules the weights cannot be compared, and the module is Skipped; so is the largest error then, because that module
    might have it.
    """

    table: ClassVar[str] = "weights"
    metrics: ClassVar[tuple[Metric, ...]] = (RELATIVE, WORST, OUTLYING)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS
    of_weights: ClassVar[tuple[str, ...]] = (RELATIVE.name, WORST.name, OUTLYING.name)

    def probe_settings(self) -> dict[str, Any]:
        """The probe compares weights for this measure alone."""
        return {"errors": True}

    def sample_size(self, documents: int | None) -> int | None:
        """0: weights are counted, not sampled."""
        return 0

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics, in the order of the modules."""
        require(table, COLUMNS, "weights")
        rows = table[table["paired"]]
        if rows.empty:
            return [Skipped(measure=metric.name, reason="no linear layer was listed") for metric in self.metrics]
        found = [_module(row) for row in rows.to_dict("records")]
        known = [entry for entry in found if isinstance(entry, Measurement)]
        if len(known) < len(found):
            first = next(entry for entry in found if isinstance(entry, Skipped))
            reason = f"{first.labels['module']}, and {len(found) - len(known) - 1} more: {first.reason}"
            return [*found, Skipped(measure=WORST.name, reason=reason), _outlying(rows)]
        worst = max(known, key=lambda entry: entry.change or 0.0)
        return [*found, worst.model_copy(update={"name": WORST.name}), _outlying(rows)]


def _outlying(rows: pd.DataFrame) -> Measurement | Skipped:
    """The largest ratio e / q among compressed modules, relative to the median ratio of the others, if that is above 1.

    e: weight error after undoing factors that other modules undo. q: the error of rounding to the nearest value of the
    declared format. Methods that look at documents, and training, raise all ratios alike; modules that an adapter
    changed before are compared among themselves.
    """
    compressed = rows[rows["compressed"]]
    if compressed.empty:
        return make_counted(OUTLYING, "no linear layer is compressed", Count(len(rows), 0), change=1.0)
    unknown = compressed[~((compressed["rounding_error"] >= 0) & (compressed["explained_error"] > 0))]
    if len(unknown):
        first = unknown.iloc[0]
        why = first["error_note"] or "no rounding to its format is known to compare with"
        reason = f"{first['module']}, and {len(unknown) - 1} more: {why}"
        return Skipped(measure=OUTLYING.name, reason=reason)
    ratios = compressed.assign(ratio=compressed["rounding_error"] / compressed["explained_error"])
    found = [_relative(part) for _, part in ratios.groupby("retrained")]
    value, module, own, usual = max(found)
    what = f"{own:.3g} times what its format explains, where {usual:.3g} is the median of the other modules"
    return make_counted(OUTLYING, what, Count(len(compressed), 0), change=value, labels={"module": module})


def _relative(rows: pd.DataFrame) -> tuple[float, str, float, float]:
    """The most outlying of some modules: its ratio relative to the others, name, ratio, and the others' median."""
    found = []
    for index, row in rows.iterrows():
        others = rows["ratio"].drop(index)
        own = float(row["ratio"])
        usual = float(others.median()) if len(others) else 1.0
        found.append((own / max(1.0, usual), str(row["module"]), own, usual))
    return max(found)


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
