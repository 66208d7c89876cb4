"""How long until something happens, where for some it has not happened when looking ends (censored times).

Times count units that passed unharmed: an event at t harmed unit t (from 0), a censored time t says that units 0 to
t − 1 were seen and none was harmed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.bounded import bounded_mean_interval
from harness.statistics.interval import Floats, Interval
from harness.statistics.means import mean_interval

Booleans = NDArray[np.bool_]


def survival(times: ArrayLike, events: ArrayLike, horizon: int) -> Floats:
    """P(T ≥ t) for t = 0 … horizon, by the product-limit estimator (Kaplan & Meier 1958).

    Beyond the last time at which anything was watched the curve stays where it is. Raises ValueError for lengths that
    differ, and for times outside 0 … horizon.
    """
    times, events = _check_times(times, events, horizon)
    harmed, watched = _counts(times, events, horizon)
    return _curve(harmed, watched)


def restricted_mean(times: ArrayLike, events: ArrayLike, horizon: int) -> float:
    """E[min(T, horizon)], the sum of P(T ≥ t) over t = 1 … horizon. Without censoring, the mean of the times."""
    return math.fsum(survival(times, events, horizon)[1:].tolist())


def restricted_mean_interval(
    times: ArrayLike, events: ArrayLike, clusters: ArrayLike, horizon: int, confidence: float = 0.95
) -> Interval | None:
    """Interval of ``restricted_mean``: the cluster t interval of its jackknife pseudo-values (Andersen, Hansen & Klein
    2004), which are the times themselves where nothing is censored; ends kept in 0 … horizon.

    Where nothing happened to anybody, the Clopper-Pearson bound on the share of those to whom it may happen, at once.
    None for fewer than two clusters.
    """
    times, events = _check_times(times, events, horizon)
    if not events.any():
        return bounded_mean_interval(np.full(len(times), float(horizon)), clusters, 0.0, float(horizon), confidence)
    value = restricted_mean(times, events, horizon)
    interval = mean_interval(_pseudo_values(times, events, horizon, value), clusters, confidence)
    if interval is None:
        return None
    low, high = max(min(interval.low, value), 0.0), min(max(interval.high, value), float(horizon))
    return Interval(low, high, f"pseudo-values of the restricted mean; {interval.method}")


def median_time(times: ArrayLike, events: ArrayLike, horizon: int) -> int:
    """The first t with P(T ≤ t) ≥ ½; the horizon where it happens to fewer than half within it."""
    curve = survival(times, events, horizon)
    below = np.flatnonzero(curve[1:] <= 0.5)
    return int(below[0]) if len(below) else horizon


def _pseudo_values(times: NDArray[np.int64], events: Booleans, horizon: int, value: float) -> Floats:
    """n θ − (n − 1) θ without the one, for each."""
    count = len(times)
    harmed, watched = _counts(times, events, horizon)
    values = np.empty(count)
    for index, (time, event) in enumerate(zip(times.tolist(), events.tolist(), strict=True)):
        less_harmed, less_watched = harmed.copy(), watched.copy()
        less_watched[: time + event] -= 1
        if event and time < horizon:
            less_harmed[time] -= 1
        without = math.fsum(_curve(less_harmed, less_watched)[1:].tolist())
        values[index] = count * value - (count - 1) * without
    return values


def _counts(times: NDArray[np.int64], events: Booleans, horizon: int) -> tuple[Floats, Floats]:
    """Of every unit 0 … horizon − 1: how many were harmed there, and how many were watched there."""
    at = np.bincount(times[events], minlength=horizon + 1)[:horizon].astype(np.float64)
    seen = times + events
    watched = np.array([(seen > unit).sum() for unit in range(horizon)], dtype=np.float64)
    return at, watched


def _curve(harmed: Floats, watched: Floats) -> Floats:
    kept = 1.0 - np.divide(harmed, watched, out=np.zeros_like(harmed), where=watched > 0)
    return np.concatenate(([1.0], np.cumprod(kept)))


def _check_times(times: ArrayLike, events: ArrayLike, horizon: int) -> tuple[NDArray[np.int64], Booleans]:
    found, happened = np.asarray(times, dtype=np.int64), np.asarray(events, dtype=np.bool_)
    if found.shape != happened.shape or found.ndim != 1 or not len(found):
        raise ValueError(f"survival: found {found.shape} times and {happened.shape} events, expected one of each")
    if found.min() < 0 or found.max() > horizon:
        raise ValueError(f"survival: found times from {found.min()} to {found.max()}, expected 0 to {horizon}")
    return found, happened
