"""What the limit of ``at_most`` and ``at_least`` is compared with."""

from __future__ import annotations

from typing import Literal

from harness.records import Measurement
from harness.rules._decision import Judged, of_change, of_variant
from harness.rules._shares import share_of_reference

Of = Literal["variant", "change", "reference"]
_WANTED: dict[Of, str] = {
    "variant": "{} is wanted",
    "change": "a change of {} is wanted",
    "reference": "{} of the reference is wanted",
}


def wanted_of(limit: str, of: Of) -> str:
    """The limit ("at most 0.3") in a sentence."""
    return _WANTED[of].format(limit)


def number_of(measurement: Measurement, of: Of, limit: float, identical: bool) -> Judged | str:
    """The variant's own value, its change, or its share of the reference; a text says why there is none."""
    if of == "reference":
        if limit <= 0:
            return f"the limit {limit:g} is no share of the reference; write a number above 0"
        return share_of_reference(measurement, limit, identical)
    judged = of_variant(measurement, identical) if of == "variant" else of_change(measurement, identical)
    return judged or f"{measurement.name} has no number to compare"
