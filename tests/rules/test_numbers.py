"""The numbers that rules compare: each with its own interval, and the ratio with ends that are sure."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records import Measurement
from harness.rules._digits import show
from harness.rules._numbers import ComparedNumber, is_exact, number_of


def both(**fields: Any) -> Measurement:
    """A reference of 4, a variant of 5 in [4.5, 6], a change of 1 in [0.5, 2]."""
    given: dict[str, Any] = {
        "unit": "nats", "better": "lower", "reference": 4.0, "variant": 5.0, "variant_low": 4.5, "variant_high": 6.0,
        "change": 1.0, "low": 0.5, "high": 2.0, "n": 90, "clusters": 9, "basis": "sampled", "method": "mean",
    }  # fmt: skip
    return Measurement(name="m", **(given | fields))


def number(found: ComparedNumber | str) -> ComparedNumber:
    assert isinstance(found, ComparedNumber), found
    return found


def ratio(limit: float, **fields: Any) -> tuple[float | None, float | None]:
    found = number(number_of(both(**fields), "ratio", limit))
    return found.low, found.high


def test_the_change_and_the_variants_own_value_have_their_own_ends() -> None:
    assert number_of(both(), "change", 1.0) == ComparedNumber("m", "nats", 1.0, 0.5, 2.0, False, 0.95, 9, "mean")
    assert number_of(both(), "variant", 1.0) == ComparedNumber(
        "m of the variant", "nats", 5.0, 4.5, 6.0, False, 0.95, 9, "mean"
    )


def test_the_ends_of_the_ratio_lie_on_the_side_of_the_limit_of_which_the_intervals_are_sure() -> None:
    """limit + (limit · change + (1 − limit) · variant) / reference, with the ends that make it least and most."""
    assert ratio(0.5) == pytest.approx((max(1.0, 0.5 + (0.25 + 2.25) / 4), 0.5 + (1 + 3) / 4))
    assert ratio(1.0) == pytest.approx((1 + 0.5 / 4, 1 + 2 / 4))
    assert ratio(1.5) == pytest.approx((1.0, 1.5 + (3 - 2.25) / 4))
    assert ratio(1.5, low=-0.5, high=2.0) == pytest.approx((1.5 + (-0.75 - 3) / 4, 1.5 + (3 - 2.25) / 4))
    assert ratio(0.5, low=-0.5, high=2.0) == pytest.approx((0.5 + (-0.25 + 2.25) / 4, 0.5 + (1 + 3) / 4))


def test_a_change_of_sure_sign_puts_the_ratio_on_that_side_of_one() -> None:
    worse = {"low": 0.5, "high": 2.0}
    assert ratio(3.0, **worse)[0] == 1.0
    better = {"change": -1.0, "low": -2.0, "high": -0.5, "variant": 3.0, "variant_low": 2.0, "variant_high": 3.5}
    assert ratio(0.1, **better)[1] == pytest.approx(min(1.0, 0.1 + (-0.05 + 0.9 * 3.5) / 4))
    assert ratio(3.0, **better)[1] == 1.0
    unsure = {"low": 0.0, "high": 2.0}
    assert ratio(3.0, **unsure)[0] == pytest.approx(3 + (0 - 2 * 6) / 4)
    level = {"change": -1.0, "low": -2.0, "high": 0.0, "variant": 3.0, "variant_low": 2.0, "variant_high": 3.5}
    assert ratio(3.0, **level)[1] == pytest.approx(3 + (0 - 2 * 2) / 4)


def test_the_estimate_is_never_outside_its_ends() -> None:
    tight = {"variant_low": 5.0, "variant_high": 5.0, "low": 0.9, "high": 1.1}
    for limit in (0.25, 1.0, 2.0):
        low, high = ratio(limit, **tight)
        assert low is not None
        assert high is not None
        assert low <= 1.25 <= high
    inconsistent = {"change": 1.2, "low": 1.1, "high": 1.4}
    assert ratio(1.0, **inconsistent)[0] == 1.25
    inconsistent = {"change": 0.8, "low": 0.6, "high": 0.9}
    assert ratio(1.0, **inconsistent)[1] == 1.25


def test_the_limit_one_needs_no_interval_of_the_variant() -> None:
    for fields in ({"variant_low": None}, {"variant_high": None}, {"variant_low": None, "variant_high": None}):
        missing = both().model_copy(update=fields)
        assert number(number_of(missing, "ratio", 1.0)).low == pytest.approx(1.125)
        assert number(number_of(missing, "ratio", 1.0)).high == pytest.approx(1.5)
        found = number(number_of(missing, "ratio", 1.5))
        assert (found.low, found.high) == (None, None)


def test_a_change_without_ends_or_without_width() -> None:
    for fields in ({"low": None}, {"high": None}, {"low": None, "high": None}):
        found = number(number_of(both().model_copy(update=fields), "ratio", 1.5))
        assert (found.low, found.high) == (None, None)
    assert ratio(1.5, low=1.0, high=1.0) == (1.25, 1.25)


def test_the_ratio_says_what_it_is() -> None:
    assert number(number_of(both(), "ratio", 1.0)) == ComparedNumber(
        "m, variant / reference (5 / 4),", "ratio", 1.25, 1.125, 1.5, False, 0.95, 9, "mean"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reference": 0.0}, "m of the reference is 0, so variant / reference has no meaning"),
        ({"reference": -1.0}, "m of the reference is -1, so variant / reference has no meaning"),
        ({"variant": -1.0, "variant_low": -2.0}, "m of the variant is -1, so variant / reference has no meaning"),
        ({"reference": 0.0, "variant": -1.0, "variant_low": -2.0}, "m of the reference is 0, so"),
    ],
)
def test_a_side_without_meaning_has_no_ratio(fields: dict[str, float], words: str) -> None:
    found = number_of(both(**fields), "ratio", 1.0)
    assert isinstance(found, str)
    assert found.startswith(words)


@pytest.mark.parametrize(
    "fields",
    [
        {"reference": 1e-10, "variant": 1e300, "variant_high": 1e300},
        {"reference": 1e-10, "high": 1e300},
        {"reference": 1e-10, "low": -1e300},
    ],
)
def test_a_ratio_too_large_to_be_a_number_is_none(fields: dict[str, float]) -> None:
    found = number_of(both().model_copy(update=fields), "ratio", 1.0)
    assert found == "m of the reference is 1e-10, so variant / reference is too large to be compared"


def test_a_small_reference_and_a_variant_of_zero_have_a_ratio() -> None:
    small = both(reference=0.5, variant=1.5, variant_low=1.0, variant_high=2.5)
    assert number(number_of(small, "ratio", 1.0)).value == 3.0
    gone = both(variant=0.0, variant_low=0.0, variant_high=0.5, change=-4.0, low=-4.5, high=-3.5)
    assert number(number_of(gone, "ratio", 1.0)).value == 0.0


@pytest.mark.parametrize("missing", ["change", "variant", "reference"])
def test_what_is_missing_is_said(missing: str) -> None:
    found = both().model_copy(update={missing: None})
    words = {
        "change": {
            "change": "m has no comparison with the reference",
            "ratio": "m has no comparison with the reference",
        },
        "variant": {"variant": "m has no value of the variant", "ratio": "m has no value on each side"},
        "reference": {"ratio": "m has no value on each side"},
    }
    for kind in ("change", "variant", "ratio"):
        answer = number_of(found, kind, 1.0)
        assert (answer if isinstance(answer, str) else None) == words[missing].get(kind)


def test_what_was_counted_is_exact_and_an_exact_tie_of_the_same_bytes_too() -> None:
    counted = both(basis="counted", low=1.0, high=1.0)
    assert is_exact(counted)
    assert not is_exact(both(low=1.0, high=1.0)), "sampled"
    assert not is_exact(both(basis="counted", low=1.0)), "an interval with a width"
    assert not is_exact(both(basis="counted", high=1.0)), "an interval with a width"
    assert not is_exact(counted.model_copy(update={"low": 0.5, "high": 0.5})), "beside its estimate"
    assert number(number_of(counted, "variant", 1.0)).exact
    assert number(number_of(counted, "change", 1.0)).exact
    tie = both(change=0.0, low=-0.1, high=0.1)
    for identical, exact in ((True, True), (False, False)):
        assert number(number_of(tie, "change", 1.0, identical)).exact is exact
    assert not number(number_of(both(), "change", 1.0, True)).exact, "a change that is not neutral"


def test_numbers_are_shown_in_as_few_digits_as_tell_them_apart() -> None:
    assert show(1.0, 1.00001) == ["1", "1.00001"]
    assert show(0.123456789) == ["0.12346"]
    assert show(0.1234561, 0.1234562) == ["0.1234561", "0.1234562"]
    assert show(0.5, 0.5) == ["0.5", "0.5"]
    assert show(-0.0) == ["0"]
    assert show(123456789.0) == ["123456789"]
    assert show(1e15) == ["1e+15"]
    assert show(999999999999999.0) == ["999999999999999"]
    assert show(1.0, 1.0 + 2**-52) == ["1", "1.0000000000000002"]
