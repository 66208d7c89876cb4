"""The measure ``calibration``: are the model's confidences still trustworthy (ECE, Brier score, over-confidence)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from harness.measures import Sampled
from harness.measures._shared import ECE_REASON, TOKEN_SIDES, UNSEEN_SHARE, count_tokens, make_sampled, unusable_tokens
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Intervals, brier_scores, calibration_error, mean

if TYPE_CHECKING:
    import pandas as pd

ECE = Metric(
    name="calibration.ece",
    title="ECE",
    unit="probability",
    better="lower",
    description="expected calibration error of the top token, bins of equal width",
    sides=True,
    spread="none",
)
ECE_EQUAL_MASS = Metric(
    name="calibration.ece_equal_mass",
    title="ECE, equal-mass bins",
    unit="probability",
    better="lower",
    description="expected calibration error of the top token, bins of equal mass",
    sides=True,
    spread="none",
)
SQUARED = Metric(
    name="calibration.squared_error",
    title="squared calibration error",
    unit="probability²",
    better="lower",
    description="squared gap between confidence and accuracy of the top token, bins of equal mass, debiased",
    sides=True,
    spread="mean",
    spread_size=0.03,
)
BRIER = Metric(
    name="calibration.brier",
    title="Brier score",
    unit="probability",
    better="lower",
    description="mean (confidence − correct)² of the top token",
    sides=True,
    spread="mean",
    spread_size=0.01,
)
GAP = Metric(
    name="calibration.gap",
    title="change of over-confidence",
    unit="probability",
    better="neither",
    description="change of mean (confidence − correct) of the top token; above 0: more over-confident",
    spread="mean",
    spread_size=0.02,
)


class Calibration(Sampled):
    """Calibration of the top token's confidence: ECE, Brier score, squared calibration error, over-confidence.

    The ECE is reported but not judged: that of a perfectly calibrated model is above 0, and intervals of its change
    miss the truth more often than not. Use rules on the debiased squared error, the Brier score or the gap.
    """

    table: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[Metric, ...]] = (ECE, ECE_EQUAL_MASS, SQUARED, BRIER, GAP)
    by_document: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...] | None] = (*TOKEN_SIDES, "target", "reference_top1", "variant_top1")

    bins: Annotated[int, Field(ge=1, le=1000, description="number of confidence bins of the ECE")] = 15

    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; correct means that the most likely token is the target."""
        if broken := unusable_tokens(table, self.columns or (), self.metrics):
            return broken
        sure, right = {}, {}
        for side in ("reference", "variant"):
            sure[side] = table[f"{side}_top1_p"].to_numpy(dtype=np.float64).clip(max=1.0)
            right[side] = (table[f"{side}_top1"] == table["target"]).to_numpy(dtype=np.float64)
        documents, count = table["document"].to_numpy(), count_tokens(table)
        results: list[Measurement | Skipped] = []
        for metric, kind in ((ECE, "width"), (ECE_EQUAL_MASS, "mass")):
            on = {side: calibration_error(sure[side], right[side], self.bins, kind == "mass") for side in sure}
            what = f"{self.bins} bins of equal {kind}; no interval, as ECE is biased"
            change = on["variant"] - on["reference"]
            ece = make_sampled(metric, what, count, reference=on["reference"], variant=on["variant"], change=change)
            results.append(ece.model_copy(update={"not_judged": ECE_REASON}))
        shift = intervals.calibration_shift(
            (sure["reference"], right["reference"]), (sure["variant"], right["variant"]), documents, self.bins
        )
        results.append(
            make_sampled(
                SQUARED,
                f"{self.bins} bins of equal mass, products of different documents only",
                count,
                reference=shift.reference,
                variant=shift.variant,
                change=shift.change,
                interval=shift.interval,
            )
        )
        brier = {side: brier_scores(sure[side], right[side]) for side in sure}
        worse = brier["variant"] - brier["reference"]
        results.append(
            make_sampled(
                BRIER,
                "mean over tokens of the paired difference",
                count,
                reference=mean(brier["reference"]),
                variant=mean(brier["variant"]),
                change=mean(worse),
                interval=intervals.bounded_mean(worse, documents, -1.0, 1.0, UNSEEN_SHARE),
                variant_interval=intervals.bounded_mean(brier["variant"], documents, 0.0, 1.0),
            )
        )
        gap = (sure["variant"] - right["variant"]) - (sure["reference"] - right["reference"])
        what, interval = (
            "mean over tokens of the paired difference",
            intervals.bounded_mean(gap, documents, -2.0, 2.0, UNSEEN_SHARE),
        )
        results.append(make_sampled(GAP, what, count, change=mean(gap), interval=interval))
        return results
