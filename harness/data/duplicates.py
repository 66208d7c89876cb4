"""Duplicate documents: copies add no evidence, so all copies of a text count as one cluster.

Near duplicates (most of their runs of tokens stand in earlier documents) are reported by name, not merged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.contamination import WINDOW

NEAR_SHARE = 0.5
"""A document is a near duplicate from this share of token windows on that stand in earlier documents."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def normalize_space(text: str) -> str:
    """``text`` with every run of white space as one blank, and none at its ends."""
    return " ".join(text.split())


def find_first_copies(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each item, the index of the first item that shares a key with it, directly or through other items."""
    first: list[int] = []
    owner: dict[Hashable, int] = {}

    def root(item: int) -> int:
        while first[item] != item:
            item = first[item]
        return item

    for index, own in enumerate(keys):
        first.append(index)
        for key in own:
            known, here = root(owner.setdefault(key, index)), root(index)
            first[max(known, here)] = min(known, here)
    return [root(index) for index in range(len(first))]


def find_copied_windows(sources: NDArray[np.int64], context: int) -> list[int]:
    """For each window of ``context`` tokens of a stream, the first window that holds the same text for the most part.

    sources: for each token, the position of its first copy in the stream; its own position where it is no copy. A
    window of which more than half is copied belongs to the earlier window that holds most of that; another is a cluster
    of its own.
    """
    first: list[int] = []
    for at in range(0, len(sources) - 1, context):
        number = len(first)
        holders = sources[at : at + context] // context
        copied = holders[holders < number]
        most = int(np.bincount(copied).argmax()) if 2 * len(copied) > len(holders) else number
        first.append(first[most] if most < number else number)
    return first


def find_near_duplicates(documents: Sequence[NDArray[np.int64]]) -> list[tuple[int, int]]:
    """The documents of which at least ``NEAR_SHARE`` of all runs of ``WINDOW`` tokens stand in earlier ones, each with
    the earlier one that holds most of them (the first of several).

    documents: token ids without BOS, one entry for each distinct text. Runs are compared by a 64-bit hash.
    """
    hashes = [_window_hashes(ids) for ids in documents]
    sizes = np.array([len(each) for each in hashes], dtype=np.int64)
    if not sizes.sum():
        return []
    owner = np.repeat(np.arange(len(hashes)), sizes)
    _, first, member = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    holders = owner[first][member]
    shared = np.bincount(owner, weights=holders < owner, minlength=len(hashes))
    near = np.flatnonzero((sizes > 0) & (shared >= NEAR_SHARE * sizes)).tolist()
    starts = np.concatenate(([0], sizes.cumsum()))
    return [(at, int(np.bincount(holders[starts[at] : starts[at + 1]], minlength=at)[:at].argmax())) for at in near]


def _window_hashes(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    if len(ids) < WINDOW:
        return np.zeros(0, dtype=np.uint64)
    rows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), WINDOW)
    digest = np.zeros(len(rows), dtype=np.uint64)
    for column in range(WINDOW):
        digest = (digest ^ (rows[:, column] + np.uint64(1))) * _FACTOR
        digest ^= digest >> np.uint64(29)
    return digest
