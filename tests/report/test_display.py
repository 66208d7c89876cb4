"""Numbers as they are shown: short, but never so short that two that differ read alike."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report import display

FINITE = st.floats(-1e307, 1e307)
THIN = "\u202f"


def value_of(text: str) -> float:
    """What a reader takes the text to mean."""
    plain = text.replace("−", "-").replace(THIN, "")
    mantissa, times, power = plain.partition("×10")
    if not times and (sign := re.fullmatch(r"(-?)10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", plain)):
        mantissa, power = f"{sign[1]}1", sign[2]
    exponent = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(f"{mantissa}e{exponent}") if exponent else float(mantissa)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (1.0, "1"), (-3.0, "−3"), (1826.772, "1827"), (123456.789, f"123{THIN}457"),
        (0.87782, "0.878"), (0.5, "0.5"), (0.50001, "0.500"), (0.1 + 0.2, "0.3"), (-0.0000213, "−2.13×10⁻⁵"),
        (1e-5, "10⁻⁵"), (1e300, "10³⁰⁰"),
        (math.nan, "not a number"), (math.inf, "∞"), (-math.inf, "−∞"), (None, "–"),
        (9.9999e-5, "0.000100"), (99999.96, f"100{THIN}000"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, shown: str) -> None:
    assert display.number(value) == shown


@given(FINITE, st.integers(3, 8))
def test_a_shown_number_is_right_to_its_digits(value: float, digits: int) -> None:
    assert value_of(display.number(value, digits)) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=0)


@given(st.lists(FINITE, min_size=1, max_size=5))
def test_numbers_beside_each_other_differ_where_they_differ(values: list[float]) -> None:
    shown = display.format_together(values)
    for one, text in zip(values, shown, strict=True):
        for other, beside in zip(values, shown, strict=True):
            assert (text == beside) == (one == other or text == beside == "0")


@given(FINITE, FINITE)
def test_order_survives_being_shown(one: float, other: float) -> None:
    left, right = (value_of(text) for text in display.format_together([one, other]))
    assert (left < right) == (one < other)


def test_a_value_never_reads_as_its_limit() -> None:
    assert display.format_together([0.9451, 0.95]) == ["0.945", "0.95"]
    assert display.format_together([0.94999999, 0.95]) == ["0.94999999", "0.95"]
    assert display.shorten_together(["found 0.9499999999 here", "at least 0.95"]) == [
        "found 0.9499999999 here",
        "at least 0.95",
    ]


def test_only_decimals_are_shortened_in_sentences() -> None:
    text = "32 of 1024 tokens, torch 2.13.0, model-1.5b, 0.123456789 and -2.50, id 123456789"
    assert display.shorten_together([text]) == [
        "32 of 1024 tokens, torch 2.13.0, model-1.5b, 0.123 and −2.5, id 123456789"
    ]


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (display.percent, 0.8778, f"87.8{THIN}%"), (display.percent, 0.29, f"29{THIN}%"),
        (display.percent, 1.0, f"100{THIN}%"),
        (display.points, -0.2, f"−20{THIN}pp"), (display.points, 0.012345, f"+1.23{THIN}pp"),
        (display.points, 0.0, f"0{THIN}pp"),
        (display.size, 7871232.0, f"7.87{THIN}MB"), (display.size, 999.0, f"999{THIN}B"),
        (display.size, 2.5e12, f"2.5{THIN}TB"),
    ],
)  # fmt: skip
def test_units(function: object, value: float, shown: str) -> None:
    assert callable(function)
    assert function(value) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.5, "share", f"50{THIN}%"), (1.02, "ratio", "×1.02"), (2048.0, "bytes", f"2.05{THIN}kB"),
        (3.0, "nats/token", f"3{THIN}nats/token"), (3.0, "", "3"), (None, "bytes", "–"),
    ],
)  # fmt: skip
def test_quantities(value: float | None, unit: str, shown: str) -> None:
    assert display.quantity(value, unit) == shown


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    cleaned = display.clean(text)
    assert cleaned.isprintable() or set(cleaned) <= {c for c in cleaned if c.isprintable() or c.isspace()}
    assert len(cleaned.splitlines()) <= 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", cleaned)


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S")), max_size=300))
def test_ordinary_text_is_left_alone(text: str) -> None:
    if "hf_" not in text and "/" not in text:
        assert display.clean(text) == text


@given(st.integers(0, 400))
def test_a_secret_does_not_survive_being_cut(offset: int) -> None:
    secret = "hf_" + "Secret0" * 5
    text = display.clean("a" * offset + " " + secret + " " + "b" * 200)
    assert "Secret0" not in text


def test_the_home_of_root_is_masked() -> None:
    assert display.clean("/root/models, /root: and /srv/root/x, /rooted") == "~/models, ~: and /srv/root/x, /rooted"


def test_home_folders_are_masked() -> None:
    assert (
        display.clean("/home/ann/models and /Users/bob/x, not /srv/home/carl") == "~/models and ~/x, not /srv/home/carl"
    )


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [display.count(n, "documents") for n in (0, 1, 2)] == ["0 documents", "1 document", "2 documents"]
    assert display.count(1, "more timing blocks") == "1 more timing block"


def test_hints_add_the_digits_that_reading_precision_leaves_out() -> None:
    assert display.in_full(0.12345678901234567).replace("\u202f", " ") == "12.3 % (0.123456789012)"
    assert display.add_exact("7.88 MB", 7875280) == "7.88 MB (7875280)"
    assert display.add_exact("3 of", 3.0) == "3 of"
    assert display.add_exact("both", 0.5, 2.0) == "both (0.5, 2)"
