"""How an effect compares with the noise floor of its metric, in words."""

from __future__ import annotations

from harness.records import Measurement
from harness.report.display import number

CONDITIONS = {
    "batch_size": "another batch size",
    "padding_side": "padding on the left",
    "document_order": "another order of documents",
    "attention": "another attention",
    "rounding": "weights rounded otherwise",
}
"""What is compared with the reference, in words; other conditions describe themselves."""


def multiple(measurement: Measurement) -> str:
    """The effect as a multiple of its floor; empty where no floor, or no effect, is known."""
    floor, effect = measurement.floor, measurement.effect
    if floor is None or effect is None:
        return ""
    if floor.value == 0:
        return "above an exact zero floor" if effect else "at an exact zero floor"
    return f"{number(effect / floor.value, 3)} × the noise floor"


def described(measurement: Measurement) -> str:
    """The same with the floor and where it comes from."""
    floor, said = measurement.floor, multiple(measurement)
    if floor is None or not said:
        return said
    if floor.value == 0:
        return said
    what = CONDITIONS.get(floor.condition)
    where = f"{what}, {floor.documents} documents" if what else floor.condition
    return f"{said} of {number(floor.value, 3)} ({where})"
