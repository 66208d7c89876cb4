"""Estimators of paired, clustered comparisons. Nothing here returns an interval that the data cannot carry.

Fewer than two clusters give None, never an interval of width zero; where every observation is exactly the
same, the method of the interval says so. No result depends on the order of observations or on the names of
clusters.
"""

from harness.statistics.betting import Betting
from harness.statistics.bounded import bounded_mean_interval, paired_share_interval, proportion_interval
from harness.statistics.calibration import brier_scores, calibration_error
from harness.statistics.calibration_shift import CalibrationShift, calibration_shift
from harness.statistics.group_sequential import GroupSequential, drop_repeated_looks, planned_looks
from harness.statistics.interval import Interval, mean, ratio_of_sums
from harness.statistics.intervals import Intervals
from harness.statistics.means import mean_interval, ratio_of_sums_interval
from harness.statistics.multiplicity import holm, p_value_of_interval
from harness.statistics.proportions import (
    binomial_confidence_sequence,
    clopper_pearson,
    mcnemar_p,
    tango_interval,
    tango_score,
    wilson_interval,
)
from harness.statistics.quantiles import quantile_intervals, quantiles
from harness.statistics.survival import median_time, restricted_mean, restricted_mean_interval, survival

__all__ = [
    "Betting",
    "CalibrationShift",
    "GroupSequential",
    "Interval",
    "Intervals",
    "binomial_confidence_sequence",
    "bounded_mean_interval",
    "brier_scores",
    "calibration_error",
    "calibration_shift",
    "clopper_pearson",
    "drop_repeated_looks",
    "holm",
    "mcnemar_p",
    "mean",
    "mean_interval",
    "median_time",
    "p_value_of_interval",
    "paired_share_interval",
    "planned_looks",
    "proportion_interval",
    "quantile_intervals",
    "quantiles",
    "ratio_of_sums",
    "ratio_of_sums_interval",
    "restricted_mean",
    "restricted_mean_interval",
    "survival",
    "tango_interval",
    "tango_score",
    "wilson_interval",
]
