"""Comparison of two generated texts: comparable length, first difference, similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PARTIAL = "\ufffd"
"""What a tokenizer decodes for a character whose bytes are not complete yet."""


@dataclass(frozen=True)
class Written:
    """The output of one side: ids (end-of-text included), the text, and whether it ended by itself."""

    ids: tuple[int, ...]
    text: str
    ended: bool
    finite: bool


def common_reach(reference: Written, variant: Written) -> tuple[str, str]:
    """Both texts, cut to the length over which they can be compared.

    If both were stopped by the token limit, the longer text is cut to the length of the shorter one: the same number of
    tokens of two tokenizers is more text on one side, which is no difference in content.
    """
    one, two = (side.text if side.ended else side.text.rstrip(PARTIAL) for side in (reference, variant))
    if not reference.ended and not variant.ended:
        reach = min(len(one), len(two))
        return one[:reach], two[:reach]
    # A text that stopped too early is compared with as much of the one that ended.
    if not reference.ended and two.startswith(one):
        return one, one
    if not variant.ended and one.startswith(two):
        return two, two
    return one, two


def first_difference(one: Sequence[object], two: Sequence[object]) -> int:
    """Index of the first difference between two sequences; the length of the shorter one if there is none."""
    pairs = zip(one, two, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))


def similarity(one: str, two: str) -> float:
    """1 − edit distance / length of the longer text: 1 for equal texts, 0 if nothing is shared."""
    longest = max(len(one), len(two))
    return 1.0 - edit_distance(one, two) / longest if longest else 1.0


def edit_distance(one: str, two: str) -> int:
    """Fewest characters to insert, delete or replace (Wagner & Fischer 1974), row by row."""
    across = np.frombuffer(two.encode("utf-32-le"), dtype="<u4")
    steps = np.arange(len(across) + 1)
    row = steps
    for number, character in enumerate(np.frombuffer(one.encode("utf-32-le"), dtype="<u4"), 1):
        below = np.concatenate(([number], np.minimum(row[1:] + 1, row[:-1] + (across != character))))
        # An insertion adds one for each step to the right, so the best is a running minimum beside the diagonal.
        row = np.minimum.accumulate(below - steps) + steps
    return int(row[-1])
