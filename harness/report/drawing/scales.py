"""Scales: from numbers to places along an axis, and the round numbers to mark on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps ``low`` … ``high`` to 0 … 1, straight or by logarithm. A range of no width maps to the middle."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where ``value`` lies, kept within 0 … 1."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        if high <= low:
            return 0.5
        # Divided before subtracting, so that ends near the largest float do not overflow.
        span = high / 2 - low / 2
        return min(1.0, max(0.0, (at / 2 - low / 2) / span))

    @property
    def name(self) -> str:
        """How the axis counts: ``linear`` or ``log``."""
        return "log" if self.log else "linear"

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers within the range, about that many: steps of 1, 2 or 5, or powers of ten."""
        if self.log:
            return _powers_of_ten(self.low, self.high, about)
        return _round_steps(self.low, self.high, about)


def fit_scale(values: Iterable[float], *, zero: bool = False, pad: float = 0.06) -> Scale:
    """A straight scale over all finite ``values`` with some room at both ends; with ``zero`` from 0 on."""
    finite = [value for value in values if math.isfinite(value)]
    if zero:
        finite.append(0.0)
    if not finite:
        return Scale(0.0, 1.0)
    low, high = min(finite), max(finite)
    room = (high - low) * pad or abs(high) * pad or 1.0
    starts_at_zero = zero and low >= 0
    return Scale(0.0 if starts_at_zero else low - room, high + room)


SPAN = 20
"""From this ratio of the largest to the smallest value on, an axis by logarithms is offered."""


def fit_log_scale(values: Iterable[float]) -> Scale | None:
    """A scale by logarithms over the positive ``values``; None where they are so near each other that it shows nothing.

    Zeros stand at its lower end.
    """
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if not positive or max(positive) / min(positive) <= SPAN:
        return None
    return Scale(min(positive) / 1.6, max(positive) * 1.6, log=True)


def _round_steps(low: float, high: float, about: int) -> list[float]:
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def _powers_of_ten(low: float, high: float, about: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        within = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
        return [tick for tick in within if low * 0.999 <= tick <= high * 1.001]
    every = max(1, math.ceil((last - first + 1) / max(1, about)))
    return [10.0**power for power in range(first, last + 1, every)]
