"""Patterns of metric names: against plain recursion, and the two questions against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records.patterns import could_match, matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("*", "a.b", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.d", False),
        ("tasks.*.accuracy", "tasks.x.*", True),
        ("tasks.x.accuracy", "tasks.*.*", True),
        ("tasks.y.accuracy", "tasks.x.*", False),
        ("tasks.*.exact_match*", "tasks.x.exact_match", True),
        ("tasks.*.exact_match*", "tasks.x.exact_match.strict-match", True),
        ("*.ratio", "tasks.*", True),
        ("a*b", "*c*", True),
        ("ab", "a*b*", True),
        ("ab", "b*", False),
        ("", "*", True),
        ("", "a", False),
    ],
)
def test_patterns_on_both_sides(pattern: str, name: str, expected: bool) -> None:
    assert could_match(pattern, name) is expected
    assert could_match(name, pattern) is expected


def reference_match(first: str, second: str) -> bool:
    """The same by plain recursion."""
    if not first or not second:
        return not (first + second).replace("*", "")
    if first[0] == "*":
        return reference_match(first[1:], second) or reference_match(first, second[1:])
    if second[0] == "*":
        return reference_match(first, second[1:]) or reference_match(first[1:], second)
    return first[0] == second[0] and reference_match(first[1:], second[1:])


@given(st.text("ab*.", max_size=7), st.text("ab*.", max_size=7))
def test_patterns_agree_with_plain_recursion(first: str, second: str) -> None:
    assert could_match(first, second) is reference_match(first, second)


names = st.text("ab[]?.", max_size=7)


@given(st.text("ab[]?*.", max_size=7), names)
def test_a_name_is_a_pattern_that_covers_itself_alone(pattern: str, name: str) -> None:
    assert matches(pattern, name) is could_match(pattern, name) is reference_match(pattern, name)


@given(st.text("ab*", max_size=5), st.text("ab*", max_size=5), st.lists(st.text("ab", max_size=2), max_size=5))
def test_whatever_a_declared_pattern_becomes_was_foreseen(pattern: str, declared: str, texts: list[str]) -> None:
    first, *rest = declared.split("*")
    name = first + "".join(text + piece for text, piece in zip([*texts, *[""] * len(rest)], rest, strict=False))
    if matches(pattern, name):
        assert could_match(pattern, declared)


def test_a_star_in_a_name_is_a_star() -> None:
    assert matches("a*", "a*")
    assert not matches("ab", "a*")
