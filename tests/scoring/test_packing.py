"""Packed rows: every sequence reads exactly its own tokens, and what sequences share stands once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from harness.scoring.packing import PADDING_SHARE, Row, Scored, batch_rows, count_shared, pack


def read_back(row: Row, node: int) -> tuple[int, ...]:
    """The tokens that a node sees, checked to stand at the positions 0, 1, 2 …"""
    seen = [place for place in range(node + 1) if node < row.ends[place]]
    assert [row.positions[place] for place in seen] == list(range(len(seen)))
    return tuple(row.ids[place] for place in seen)


def check(rows: Sequence[Row], sequences: Sequence[Scored], limit: int) -> None:
    """Every sequence is in one row, and each of its scored nodes sees its own beginning and nothing else."""
    assert sorted(number for row in rows for number in row.nodes) == list(range(len(sequences)))
    for row in rows:
        assert len(row.ids) == len(row.positions) == len(row.ends) <= limit
        for number, nodes in row.nodes.items():
            read, scored = sequences[number].inputs(limit), len(sequences[number].continuation)
            assert len(nodes) == scored
            for back, node in enumerate(reversed(nodes)):
                assert read_back(row, node) == read[: len(read) - back]


def make_tokens(rng: random.Random, least: int, most: int, known: int = 3) -> tuple[int, ...]:
    return tuple(rng.randrange(known) for _ in range(rng.randint(least, most)))


@pytest.mark.parametrize("seed", range(20))
def test_each_scored_token_sees_its_own_beginning_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    shared = make_tokens(rng, 0, 40, 50)
    sequences = []
    for _ in range(rng.randint(1, 25)):
        context = shared + make_tokens(rng, 1, 12)
        sequences += [Scored(context, make_tokens(rng, 1, 6)) for _ in range(rng.randint(1, 4))]
    limit = rng.choice([12, 30, 300])
    check(pack(sequences, limit), sequences, limit)


def test_what_choices_share_stands_once() -> None:
    context = tuple(range(100, 250))
    choices = [(1, 2, 3, 4, 5), (1, 2, 3, 6, 7), (8, 9), (8,)]
    (row,) = pack([Scored(context, choice) for choice in choices], 512)
    # The last token of a choice is predicted and never read: 1 2 3 4, then 6 after 3, then 8.
    assert len(row.ids) == 150 + 4 + 1 + 1
    assert row.nodes[3] == (149,), "a choice of one token is read off the last token of the context"


def test_examples_that_many_items_share_stand_once_a_row() -> None:
    examples = tuple(range(1000, 1600))
    contexts = [(*examples, *range(20 * item, 20 * item + 20)) for item in range(40)]
    sequences = [Scored(context, (choice, 0)) for context in contexts for choice in (5000, 5001)]
    rows = pack(sequences, 4096)
    check(rows, sequences, 4096)
    assert sum(len(row.ids) for row in rows) == 600 * len(rows) + 40 * 22
    assert len(rows) < 10


def test_rows_do_not_depend_on_the_order_of_the_sequences() -> None:
    rng = random.Random(0)
    sequences = [Scored(make_tokens(rng, 5, 9), make_tokens(rng, 1, 4)) for _ in range(60)]
    order = list(range(60))
    rng.shuffle(order)
    one, other = pack(sequences, 64), pack([sequences[number] for number in order], 64)
    assert [(row.ids, row.ends) for row in one] == [(row.ids, row.ends) for row in other]


def test_an_item_longer_than_the_limit_is_divided_and_long_sequences_are_cut_on_the_left() -> None:
    context = tuple(range(20))
    sequences = [Scored(context, (100 + choice, *range(200, 210))) for choice in range(5)]
    rows = pack(sequences, 32)
    check(rows, sequences, 32)
    assert len(rows) == 5
    (cut,) = pack([Scored(context, (50, 51, 52))], 10)
    assert cut.ids == (*range(12, 20), 50, 51)


@pytest.mark.parametrize("tokens", [200, 1000])
def test_batches_stay_within_their_tokens_and_waste_little(tokens: int) -> None:
    rng = random.Random(1)
    rows = [Row(tuple(range(n)), (), (), {}) for n in (rng.randint(1, 300) for _ in range(200))]
    batches = list(batch_rows(rows, tokens))
    assert sorted(len(row.ids) for batch in batches for row in batch) == sorted(len(row.ids) for row in rows)
    for batch in batches:
        positions = len(batch) * max(len(row.ids) for row in batch)
        assert len(batch) == 1 or positions <= tokens
        assert positions - sum(len(row.ids) for row in batch) <= PADDING_SHARE * positions
    assert any(len(batch) > 1 for batch in batches)


@pytest.mark.parametrize(
    ("one", "other", "shared"), [("", "a", 0), ("ab", "ab", 2), ("abc", "abd", 2), ("a", "abc", 1), ("x", "y", 0)]
)
def test_shared_beginnings_are_counted(one: str, other: str, shared: int) -> None:
    assert count_shared(one, other) == count_shared(other, one) == shared  # type: ignore[arg-type]


def make_contexts(shared: int, count: int = 12) -> list[Scored]:
    """Contexts of 100 to 120 tokens, the first of them shared, each with two choices of one token."""
    rng = random.Random(shared)
    beginning = make_tokens(rng, shared, shared, 5000)
    contexts = [beginning + make_tokens(rng, 100 - shared, 120 - shared, 5000) for _ in range(count)]
    return [Scored(context, (choice,)) for context in contexts for choice in (1, 2)]


@pytest.mark.parametrize(("shared", "paths"), [(0, True), (3, True), (60, False)])
def test_contexts_stand_alone_unless_they_share_much(shared: int, paths: bool) -> None:
    """A sequence alone in its row needs no mask."""
    sequences = make_contexts(shared)
    rows = pack(sequences, 512)
    check(rows, sequences, 512)
    assert (len(rows) == 12) == paths
    assert {row.is_path for row in rows} == {paths}


def test_a_batch_holds_paths_or_trees() -> None:
    context = tuple(range(100, 210))
    sequences = [*make_contexts(0), *(Scored(context, (choice, choice)) for choice in (5, 6))]
    rows = pack(sequences, 512)
    batches = list(batch_rows(rows, 1024))
    assert sorted(len(row.ids) for batch in batches for row in batch) == sorted(len(row.ids) for row in rows)
    assert [{row.is_path for row in batch} for batch in batches].count({False}) == 1
    assert all(len({row.is_path for row in batch}) == 1 for batch in batches)
