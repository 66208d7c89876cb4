"""What a limit is compared with: the variant's own value, its change, or variant / reference."""

from __future__ import annotations

from typing import Literal

from harness.rules._bound import Facts, Number
from harness.rules._digits import show

Of = Literal["variant", "change", "reference"]
OF = "variant: the variant's own value; change: variant − reference; reference: variant / reference"
"""Description of the setting ``of``."""

_EXPECTED: dict[Of, str] = {"variant": "{}", "change": "a change of {}", "reference": "{} of the reference"}


def describe_expected(limit: str, of: Of) -> str:
    """The limit ("at most 0.3") with what it is a limit of."""
    return _EXPECTED[of].format(limit)


def number_for(metric: Facts, of: Of) -> Number:
    """The number that ``of`` means for a metric. One that is no value of each side is judged by its comparison.

    Values of the sides beside a ratio are those it is a ratio of, in another unit.
    """
    if of == "reference":
        return ratio_for(metric)
    if metric.unit == "ratio":
        return "change"
    return "variant" if of == "variant" and "variant" in metric.numbers else "change"


def ratio_for(metric: Facts) -> Number:
    """variant / reference; a metric that is such a ratio already (neutral 1) is taken as it is."""
    return "change" if metric.neutral == 1.0 and "change" in metric.numbers else "ratio"


def misfit_of(metric: Facts, number: Number) -> str:
    """Why the metric has no such number; empty if it has."""
    if number == "ratio" and number not in metric.numbers:
        return f"{metric.name} compares both sides and has no value on each; write not_worse or at_most"
    if number not in metric.numbers:
        return f"{metric.name} has no comparison with the reference"
    if number == "ratio" and metric.reference is not None and metric.reference <= 0:
        return f"{metric.name} of the reference is {show(metric.reference)[0]}, so variant / reference has no meaning"
    return ""
