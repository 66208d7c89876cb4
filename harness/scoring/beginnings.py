"""Divides prompts into groups that begin alike, so that a model reads each beginning once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.scoring.packing import Tokens, count_shared

CALL_TOKENS = 64
"""What a call of its own for a beginning, and copies of its cache, cost in tokens that are read."""


@dataclass(frozen=True)
class Group:
    """Prompts, by number, of which the first ``shared`` tokens are the same; 0: they are read whole."""

    shared: int
    numbers: tuple[int, ...]


def group_prompts(prompts: Sequence[Tokens]) -> list[Group]:
    """Groups for which few tokens are read, the longest prompts of each first; one holds all that share nothing."""
    order = sorted(range(len(prompts)), key=lambda number: (prompts[number], number))
    groups = _divide(order, prompts)[1]
    whole = tuple(number for group in groups if not group.shared for number in group.numbers)
    chosen = [group for group in groups if group.shared] + ([Group(0, whole)] if whole else [])
    return [Group(group.shared, _sort(group.numbers, prompts)) for group in chosen]


def _sort(numbers: Sequence[int], prompts: Sequence[Tokens]) -> tuple[int, ...]:
    return tuple(sorted(numbers, key=lambda number: (-len(prompts[number]), prompts[number], number)))


def _divide(order: Sequence[int], prompts: Sequence[Tokens]) -> tuple[int, list[Group]]:
    """Tokens that are read for prompts in lexicographic order, and their groups: together, or where they branch."""
    branch = count_shared(prompts[order[0]], prompts[order[-1]])
    shared = min(branch, min(len(prompts[number]) for number in order) - 1)
    saved = shared * (len(order) - 1) - CALL_TOKENS
    tokens = sum(len(prompts[number]) for number in order) - max(saved, 0)
    together = tokens, [Group(shared if saved > 0 else 0, tuple(order))]
    branches = [list(own) for _, own in groupby(order, lambda number: prompts[number][branch : branch + 1])]
    if len(branches) == 1:
        return together
    parts = [_divide(own, prompts) for own in branches]
    apart = sum(tokens for tokens, _ in parts), [group for _, groups in parts for group in groups]
    return min(together, apart, key=lambda found: found[0])
