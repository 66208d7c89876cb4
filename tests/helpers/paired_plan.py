"""Documents that a paired comparison of answers needs, beside the unpaired z-test that is in common use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from harness.statistics import tango_interval
from harness.statistics.power import TARGET, documents_needed, paired_power

TAIL = 0.975


@dataclass(frozen=True)
class Plan:
    """Two models of one accuracy, whose answers differ on a share ``discordance`` of the items.

    Items on which a drop of ``margin`` is excluded four times in five. paired: by the score interval of paired answers.
    planned: by the interval of two independent shares, as it is planned, for answers to other items on each side.
    unpaired: by the same interval, where both sides answered the same items after all and so differ less than it takes
    them to.
    """

    margin: float
    discordance: float
    accuracy: float
    paired: int
    planned: int
    unpaired: int


def plan(margin: float, discordance: float, accuracy: float) -> Plan:
    """All three for one case, with p the accuracy and d the discordance:

    planned n = 2 p (1 − p) (z₁ + z₂)² / margin², unpaired n = (z₁ √(2 p (1 − p)) + z₂ √d)² / margin².
    """
    paired = documents_needed(lambda n: paired_power(margin, discordance, n))
    assert paired is not None
    z, power = float(norm.ppf(TAIL)), float(norm.ppf(TARGET))
    spread = math.sqrt(2 * accuracy * (1 - accuracy))
    planned = ((z + power) * spread / margin) ** 2
    unpaired = ((z * spread + power * math.sqrt(discordance)) / margin) ** 2
    return Plan(margin, discordance, accuracy, paired, math.ceil(planned), math.ceil(unpaired))


@dataclass(frozen=True)
class Drawn:
    """How often each test passed, and what it does with the same items where the drop is exactly the margin."""

    paired: float
    unpaired: float
    paired_at_margin: float


def draw(found: Plan, items: int, runs: int, seed: int = 20_252) -> Drawn:
    """Answers drawn ``runs`` times for ``items`` items: without a drop, and with a drop of the margin.

    Pass: the upper end of the two-sided 95 % interval of the drop is below the margin.
    """
    generator = np.random.default_rng([seed, items, round(1e4 * found.accuracy)])
    half = found.discordance / 2
    even = generator.multinomial(items, _chances(half, half, found.accuracy), runs)
    lost = (found.discordance + found.margin) / 2
    dropped = generator.multinomial(items, _chances(lost, found.discordance - lost, found.accuracy), runs)
    return Drawn(
        float(np.mean([_paired(row, found.margin) for row in even])),
        float(np.mean([_unpaired(row, found.margin) for row in even])),
        float(np.mean([_paired(row, found.margin) for row in dropped])),
    )


def _chances(lost: float, gained: float, accuracy: float) -> list[float]:
    """Of an item: right before alone, right after alone, right on both sides, on neither."""
    both = accuracy - lost
    return [lost, gained, both, 1 - lost - gained - both]


def _paired(row: np.ndarray, margin: float) -> bool:
    interval = tango_interval(int(row[0]), int(row[1]), int(row.sum()))
    return interval is not None and interval.high < margin


def _unpaired(row: np.ndarray, margin: float) -> bool:
    items = row.sum()
    before, after = (row[0] + row[2]) / items, (row[1] + row[2]) / items
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / items)
    return bool(before - after + norm.ppf(TAIL) * error < margin)
