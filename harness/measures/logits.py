"""The measure ``logits``: absolute logit differences between reference and variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness.measures import Sampled
from harness.measures._shared import TOKEN_SIDES, check_range, count_tokens, make_sampled, unusable_tokens
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Intervals, mean

if TYPE_CHECKING:
    import pandas as pd

MAXIMUM = Metric(
    name="logits.max_abs_diff",
    title="largest logit difference",
    unit="logits",
    better="lower",
    description="largest |variant − reference| of all logits of all scored tokens",
    spread="none",
)
MEAN = Metric(
    name="logits.mean_abs_diff",
    title="mean logit difference",
    unit="logits",
    better="lower",
    description="mean |variant − reference| over the vocabulary, averaged over tokens",
    spread="relative",
    spread_size=0.25,
)


class Logits(Sampled):
    """Absolute differences between the logits of reference and variant on the same inputs."""

    table: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[Metric, ...]] = (MAXIMUM, MEAN)
    by_document: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...] | None] = (*TOKEN_SIDES, "max_abs_diff", "mean_abs_diff")

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute both metrics; a maximum has no interval. Raises MeasureError for a negative absolute difference."""
        if broken := unusable_tokens(table, self.columns or (), self.metrics):
            return broken
        check_range(table, "max_abs_diff", 0.0, np.inf)
        check_range(table, "mean_abs_diff", 0.0, np.inf)
        documents = table["document"].to_numpy()
        count = count_tokens(table)
        average = table["mean_abs_diff"].to_numpy(dtype=np.float64)
        largest = float(table["max_abs_diff"].max())
        return [
            make_sampled(MAXIMUM, "maximum over tokens; a maximum has no interval", count, change=largest),
            make_sampled(
                MEAN,
                "mean over tokens",
                count,
                change=mean(average),
                interval=intervals.mean(average, documents),
            ),
        ]
