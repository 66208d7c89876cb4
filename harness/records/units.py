"""The units of metrics: which values a number in each of them can have, and how the unit is written.

A unit that is not listed here is one without bounds, written after the number ("nats/token").
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """What a unit says about its numbers.

    least, most: the smallest and the largest value. fraction: 1 stands for 100 %. written: whether the unit is written
    after the number.
    """

    least: float = -math.inf
    most: float = math.inf
    fraction: bool = False
    written: bool = True


UNITS: dict[str, Unit] = {
    "share": Unit(least=0.0, most=1.0, fraction=True, written=False),
    "probability": Unit(least=0.0, most=1.0, fraction=True, written=False),
    "cosine": Unit(least=-1.0, most=1.0, fraction=True, written=False),
    "ratio": Unit(least=sys.float_info.min, fraction=True, written=False),
    "perplexity": Unit(written=False),
    "kurtosis": Unit(written=False),
    "max/median": Unit(written=False),
}


def unit_of(name: str) -> Unit:
    """The unit called ``name`` in a Metric or a Measurement."""
    return UNITS.get(name, Unit())
