"""Packs token sequences into rows in which every beginning that several share stands once.

    sequences   a b c 1 2     row        a  b  c  1  2  3  4  5
                a b c 3       position   0  1  2  3  4  3  3  4
                a b c 4 5     end        8  8  8  5  5  6  8  8

A row lists the nodes of a tree of tokens, each before those that follow it, so that all of them stand between a node
and its ``end``. Hence a token sees itself and its beginning, and nothing else, iff it sees the nodes whose end lies
behind it. No model is used here: both sides of a comparison with the same token ids get the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

Tokens = tuple[int, ...]

PADDING_SHARE = 0.05
"""Largest share of the positions of a batch that may be padding."""
CAPACITIES = (1, 256, 512, 1024, 2048)
"""Lengths up to which rows are filled, of which the cheapest is chosen; 1: each context has a row of its own."""
EVEN_LENGTH = 2048
"""Length of a row at which attention, whose cost per token grows with the row, costs as much as everything else.

Measured on a Llama of 43.7 million parameters on a CPU: 3800 in float32, 1400 in bfloat16; it grows with the width of
the model, for which long rows are then cheaper than assumed.
"""


@dataclass(frozen=True)
class Scored:
    """A token sequence of which the last tokens are scored.

    context: at least one token; continuation: the scored ones, at least one.
    """

    context: Tokens
    continuation: Tokens

    def inputs(self, limit: int) -> Tokens:
        """The tokens that the model reads: all but the last, of which the last ``limit`` (left truncation)."""
        return (*self.context, *self.continuation)[-(limit + 1) : -1]


@dataclass(frozen=True)
class Row:
    """One row: a tree of tokens in pre-order.

    nodes: by number of a sequence, the places in the row of the tokens whose successors are scored.
    """

    ids: Tokens
    positions: Tokens
    ends: Tokens
    nodes: Mapping[int, Tokens]

    @property
    def is_path(self) -> bool:
        """Whether it is one sequence, in which every token sees all before it."""
        return all(end == len(self.ids) for end in self.ends)


def pack(sequences: Sequence[Scored], limit: int) -> list[Row]:
    """Rows with every sequence, in an order that does not depend on that of the sequences.

    limit: the most tokens that a row may have, and to which longer sequences are cut on the left.
    """
    read = [sequence.inputs(limit) for sequence in sequences]
    order = sorted(range(len(read)), key=lambda number: (read[number], len(sequences[number].continuation), number))
    groups = _split(order, read, sequences, limit)
    sizes = [_measure(group, read) for group in groups]
    plans = [_divide(sizes, min(capacity, limit)) for capacity in CAPACITIES]
    cheapest = min(plans, key=lambda plan: sum(length * (1 + length / EVEN_LENGTH) for length, _ in plan))
    rows = []
    for _, members in cheapest:
        growing = _GrowingRow()
        for number in (number for group in members for number in groups[group]):
            growing.add(number, read[number], len(sequences[number].continuation))
        rows.append(growing.finish())
    return rows


def batch_rows(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows of one kind (paths, trees) and of similar length together: at most ``tokens`` positions unless it is one
    row, little of them padding."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.is_path, -len(row.ids))):
        positions = len(batch[0].ids) * (len(batch) + 1) if batch else 0
        used = sum(len(each.ids) for each in batch) + len(row.ids)
        padded = positions - used > PADDING_SHARE * positions
        if batch and (positions > tokens or padded or row.is_path != batch[0].is_path):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    same, beyond = 0, min(len(one), len(other)) + 1
    while beyond - same > 1:
        middle = (same + beyond) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            beyond = middle
    return same


def _split(order: Sequence[int], read: Sequence[Tokens], sequences: Sequence[Scored], limit: int) -> list[list[int]]:
    """Sequences that stay in one row: those of one context, unless they do not fit into a row."""
    groups = []
    # What was cut on the left no longer begins with its context.
    by_context = groupby(order, lambda number: read[number][: len(sequences[number].context)])
    for members in (list(group) for _, group in by_context):
        whole = _measure(members, read)[0] <= limit
        groups += [members] if whole else [[number] for number in members]
    return groups


def _measure(group: Sequence[int], read: Sequence[Tokens]) -> tuple[int, Tokens, Tokens]:
    """Number of nodes of a group's tree, and its first and last sequence."""
    first, last = read[group[0]], read[group[-1]]
    pairs = pairwise(group)
    added = sum(len(read[after]) - count_shared(read[before], read[after]) for before, after in pairs)
    return len(first) + added, first, last


def _divide(sizes: Sequence[tuple[int, Tokens, Tokens]], capacity: int) -> list[tuple[int, list[int]]]:
    """Length and groups of each row, filled in order up to ``capacity``; a longer group has a row of its own."""
    rows: list[tuple[int, list[int]]] = []
    before: Tokens = ()
    for number, (size, first, last) in enumerate(sizes):
        length, members = rows[-1] if rows else (capacity, [])
        grown = length + size - count_shared(before, first)
        if grown > capacity:
            rows.append((size, [number]))
        else:
            rows[-1] = (grown, [*members, number])
        before = last
    return rows


@dataclass
class _GrowingRow:
    """A row to which sequences are added in lexicographic order."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    nodes: dict[int, Tokens] = field(default_factory=dict)
    _path: list[int] = field(default_factory=list)
    _sequence: Tokens = ()

    def add(self, number: int, sequence: Tokens, scored: int) -> None:
        """Add the tokens in which a sequence goes on from the one before."""
        shared = count_shared(self._sequence, sequence)
        self._close(shared)
        added = range(len(self.ids), len(self.ids) + len(sequence) - shared)
        self.ids += sequence[shared:]
        self.positions += range(shared, len(sequence))
        self.ends += [0] * len(added)
        self._path += added
        self._sequence = sequence
        self.nodes[number] = tuple(self._path[-scored:])

    def finish(self) -> Row:
        """The row of everything added."""
        self._close(0)
        return Row(tuple(self.ids), tuple(self.positions), tuple(self.ends), self.nodes)

    def _close(self, shared: int) -> None:
        """End the subtrees of all nodes of the newest sequence but the first ``shared``."""
        for node in self._path[shared:]:
            self.ends[node] = len(self.ids)
        del self._path[shared:]
