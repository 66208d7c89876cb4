"""States the change of a metric as a multiple of its noise floor."""

from __future__ import annotations

from harness.records import Measurement
from harness.report.display import number

CONDITIONS = {
    "batch_size": "another batch size",
    "padding_side": "left padding",
    "document_order": "documents reordered",
    "attention": "another attention kernel",
    "rounding": "weights moved by one unit in the last place",
}
"""The conditions of noise floors in words; other conditions are shown by name."""
MOST = 1000
"""Multiples from which on nobody asks how many."""


def multiple(measurement: Measurement) -> str:
    """The effect as a multiple of the noise floor; empty if the floor or the effect is unknown."""
    floor, effect = measurement.floor, measurement.effect
    if floor is None or effect is None:
        return ""
    if floor.value == 0:
        return "above a noise floor of exactly 0" if effect else "at a noise floor of exactly 0"
    times = effect / floor.value
    return f"{number(times, 3) if times < MOST else f'over {number(MOST)}'} × the noise floor"


def describe(measurement: Measurement) -> str:
    """The multiple, with the floor itself and the condition that gave it."""
    floor, said = measurement.floor, multiple(measurement)
    if floor is None or not said:
        return said
    if floor.value == 0:
        return said
    what = CONDITIONS.get(floor.condition)
    where = f"{what}, {floor.documents} documents" if what else floor.condition
    return f"{said} of {number(floor.value, 3)} ({where})"
