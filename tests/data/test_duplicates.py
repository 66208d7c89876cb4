"""Copies of a text: which documents and windows hold one, and which only share long stretches."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.duplicates import find_copied_windows, find_first_copies, find_near_duplicates, normalize_space


def test_white_space_makes_no_other_text() -> None:
    assert normalize_space(" a\tcat \n\n sat ") == normalize_space("a cat sat")
    assert normalize_space("acat") != normalize_space("a cat")


def test_items_that_share_a_key_directly_or_through_others_are_one() -> None:
    assert find_first_copies([("a",), ("b",), ("a",), ("b",), ("c",)]) == [0, 1, 0, 1, 4]
    # The third has the text of the first and the ids of the second: all three are one.
    assert find_first_copies([("a", 1), ("b", 2), ("a", 2), ("c", 3)]) == [0, 0, 0, 3]
    assert find_first_copies([]) == []


def test_a_window_belongs_to_the_one_that_holds_most_of_its_text() -> None:
    new = np.arange(12)
    assert find_copied_windows(new, 4) == [0, 1, 2]
    again = np.concatenate((new, new[1:], [23]))
    assert find_copied_windows(again, 4) == [0, 1, 2, 0, 1, 2]
    half = np.concatenate((new[:4], [0, 1, 6, 7], [0, 1, 2, 11]))
    assert find_copied_windows(half, 4) == [0, 1, 0], "half of a window is not most of it"


@pytest.mark.parametrize(("shared", "near"), [(0, []), (40, []), (62, [(2, 1)]), (100, [(2, 1)])])
def test_near_duplicates_share_half_of_their_runs_of_tokens_with_earlier_ones(
    shared: int, near: list[tuple[int, int]]
) -> None:
    first = np.arange(100)
    second = np.concatenate((first[:shared], np.arange(500, 600 - shared)))
    assert find_near_duplicates([np.arange(1000, 1100), first, second]) == near


def test_short_documents_have_no_runs() -> None:
    assert find_near_duplicates([np.arange(5), np.arange(5)]) == []
    assert find_near_duplicates([]) == []


def test_a_near_duplicate_is_named_with_the_document_that_holds_most_of_it() -> None:
    first, second = np.arange(100), np.arange(200, 300)
    both = np.concatenate((first[:40], second[:60]))
    assert find_near_duplicates([first, second, both, second]) == [(2, 1), (3, 1)]
