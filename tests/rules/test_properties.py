"""What holds for all rules, whatever the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records import Measurement
from harness.rules import Rule
from harness.rules._compare import Basis
from harness.rules._digits import show
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.rules.retains import Retains
from tests.helpers.results import number

numbers = st.floats(-3, 3, allow_nan=False)
widths = st.one_of(st.just(0.0), st.floats(0, 2))


@st.composite
def measurements(draw: st.DrawFn, intervals: bool = True) -> Measurement:
    """Any finite measurement, with or without sides and intervals."""
    change, variant = draw(numbers), draw(st.one_of(st.none(), numbers))
    fields: dict[str, Any] = {"change": change, "variant": variant}
    if variant is not None:
        fields["reference"] = variant - change
    if intervals and draw(st.booleans()):
        fields |= {"low": change - draw(widths), "high": change + draw(widths)}
        if variant is not None:
            fields |= {"variant_low": variant - draw(widths), "variant_high": variant + draw(widths)}
    return Measurement(
        name="any.metric",
        unit=draw(st.sampled_from(["nats/token", "ratio", "share", "bytes"])),
        infinite_neutral=draw(st.booleans()),
        better=draw(st.sampled_from(["lower", "higher", "neither"])),
        neutral=draw(st.sampled_from([0.0, 1.0])),
        n=100,
        clusters=draw(st.integers(0, 50)),
        basis=draw(st.sampled_from(["sampled", "counted"])),
        method=draw(st.sampled_from(["mean over tokens", "exact match"])),
        **fields,
    )


GOODNESS = {"fail": 0, "inconclusive": 1, "pass": 2}
Make = Callable[[float, Basis], Rule]
RULES: dict[str, Make] = {
    "at_most": lambda x, decide: AtMost(metric="*", why="w", limit=x, decide=decide),
    "at_least": lambda x, decide: AtLeast(metric="*", why="w", limit=-x, decide=decide),
    "not_worse": lambda x, decide: NotWorse(metric="*", why="w", margin=x + 3.01, decide=decide),
    "retains": lambda x, decide: Retains(metric="*", why="w", share=1 - (x + 3) / 6.01, decide=decide),
}
"""Each takes a looseness between −3 and 3."""
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)
bases = st.sampled_from(["interval", "point"])


@every_rule
@given(entry=measurements(), looseness=st.tuples(numbers, numbers), basis=bases, identical=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_looser_limit_never_makes_a_verdict_worse(
    make: Make, entry: Measurement, looseness: tuple[float, float], basis: Basis, identical: bool
) -> None:
    strict, loose = (make(x, basis).judge(entry, identical) for x in sorted(looseness))
    if "error" not in (strict.status, loose.status):
        assert GOODNESS[loose.status] >= GOODNESS[strict.status], (strict, loose)


@every_rule
@given(entry=measurements(intervals=False), looseness=numbers)
@settings(max_examples=25, deadline=None)
def test_without_an_interval_nothing_sampled_passes_or_fails(make: Make, entry: Measurement, looseness: float) -> None:
    assert make(looseness, "interval").judge(entry, identical=False).status in ("inconclusive", "error")


@every_rule
@given(entry=measurements(), looseness=numbers, basis=bases)
@settings(max_examples=40, deadline=None)
def test_a_pass_is_on_the_safe_side_and_a_fail_is_not(
    make: Make, entry: Measurement, looseness: float, basis: Basis
) -> None:
    decision = make(looseness, basis).judge(entry, identical=False)
    if decision.status == "pass":
        assert number(decision.margin) >= 0
    if decision.status == "fail":
        assert number(decision.margin) < 0
    if decision.status == "error":
        assert decision.margin is None
    assert "\n" not in decision.because


@every_rule
@given(entry=measurements(), looseness=numbers, wider=st.tuples(st.floats(0, 2), st.floats(0, 2)))
@settings(max_examples=40, deadline=None)
def test_a_wider_interval_never_decides_more(
    make: Make, entry: Measurement, looseness: float, wider: tuple[float, float]
) -> None:
    if entry.low is None or entry.high is None or entry.low == entry.high:
        return
    if entry.variant_low is not None and entry.variant_low == entry.variant_high:
        return
    fields = {"low": entry.low - wider[0], "high": entry.high + wider[1]}
    if entry.variant_low is not None and entry.variant_high is not None:
        fields |= {"variant_low": entry.variant_low - wider[0], "variant_high": entry.variant_high + wider[1]}
    rule = make(looseness, "interval")
    narrow = rule.judge(entry, identical=False)
    wide = rule.judge(entry.model_copy(update=fields), identical=False)
    assert wide.status in (narrow.status, "inconclusive")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_numbers_that_differ_look_different(values: list[float]) -> None:
    texts = show(*values)
    assert len(set(texts)) == len(set(values))
    for first, text in zip(values, texts, strict=True):
        for second, other in zip(values, texts, strict=True):
            if first < second:
                assert float(text) < float(other), "and in the same order"


def test_numbers_look_plain() -> None:
    assert show(1.0131, 1.02, 1.0) == ["1.0131", "1.02", "1"]
    assert show(123456789.0, 1e-5, -0.0) == ["123456789", "1e-05", "0"]
    assert show(0.9451, 0.95) == ["0.9451", "0.95"]
