"""Patterns of metric names. ``*`` stands for any text, also for none; every other character stands for itself.

A gate names its metrics by a pattern; a measure whose metrics are known only later (the tasks of a group) declares
them by one. ``harness plan``, ``harness lint`` and the judge all ask here, so that they cannot disagree.
"""

from __future__ import annotations

from functools import lru_cache

LONGEST = 200
"""Characters that a pattern or a name may have; comparing two patterns takes their product."""


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` covers this very name; a ``*`` in the name is a star and nothing else."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    at, end = len(first), len(name) - len(last)
    for piece in middle:
        at = name.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def match_stars(pattern: str, name: str) -> list[str]:
    """What each ``*`` of ``pattern`` stands for in a name that it covers; as little as possible, from the left."""
    first, *rest = pattern.split("*")
    parts, at = [], len(first)
    for number, piece in enumerate(rest, 1):
        end = name.find(piece, at) if number < len(rest) else len(name) - len(piece)
        parts.append(name[at:end])
        at = end + len(piece)
    return parts


@lru_cache(maxsize=65536)
def could_match(pattern: str, declared: str) -> bool:
    """Whether some name is covered by both patterns."""
    reached = _skip_stars({0}, declared)
    for character in pattern:
        if character == "*":
            reached = set(range(min(reached, default=len(declared) + 1), len(declared) + 1))
        else:
            stay = {at for at in reached if declared[at : at + 1] == "*"}
            step = {at + 1 for at in reached if declared[at : at + 1] == character}
            reached = _skip_stars(stay | step, declared)
    return len(declared) in reached


def _skip_stars(positions: set[int], declared: str) -> set[int]:
    """Positions in ``declared`` that are reached when its stars may stand for nothing."""
    reached = set(positions)
    for at in sorted(positions):
        while declared[at : at + 1] == "*":
            at += 1
            reached.add(at)
    return reached
