"""Groups of prompts that begin alike."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from harness.scoring.beginnings import CALL_TOKENS, Group, group_prompts
from harness.scoring.packing import Tokens

prompts_drawn = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=6).map(lambda ids: tuple(n for n in ids for _ in range(40))),
    min_size=1,
    max_size=12,
)


def draw(count: int, seed: int) -> Tokens:
    rng = random.Random(seed)
    return tuple(rng.randrange(100) for _ in range(count))


def count_read(prompts: list[Tokens], groups: list[Group]) -> int:
    """Tokens that are read, a call for a beginning included."""
    rest = sum(len(prompts[number]) - group.shared for group in groups for number in group.numbers)
    return rest + sum(group.shared + CALL_TOKENS for group in groups if group.shared)


@given(prompts_drawn)
def test_every_prompt_is_in_one_group_and_begins_as_the_others_of_it(prompts: list[Tokens]) -> None:
    groups = group_prompts(prompts)
    assert sorted(number for group in groups for number in group.numbers) == list(range(len(prompts)))
    for group in groups:
        own = [prompts[number] for number in group.numbers]
        assert len({prompt[: group.shared] for prompt in own}) == 1
        assert all(len(prompt) > group.shared for prompt in own), "of each there is a token to read"
        assert own == sorted(own, key=lambda prompt: (-len(prompt), prompt))
    assert count_read(prompts, groups) <= sum(map(len, prompts))
    assert [sorted(map(prompts.__getitem__, group.numbers)) for group in groups] == [
        sorted(map(prompts[::-1].__getitem__, group.numbers)) for group in group_prompts(prompts[::-1])
    ], "whatever their order"


def test_one_prompt_that_begins_otherwise_costs_the_others_nothing() -> None:
    examples = draw(300, 0)
    prompts = [examples + draw(20, number) for number in range(1, 9)] + [draw(320, 99)]
    assert [(group.shared, set(group.numbers)) for group in group_prompts(prompts)] == [(300, set(range(8))), (0, {8})]


def test_a_longer_beginning_that_part_of_the_prompts_share_is_taken_where_it_saves_more() -> None:
    task = draw(50, 0)
    for examples, wanted in ((200, 2), (2, 1)):
        kinds = [task + draw(examples, kind) for kind in (1, 2)]
        prompts = [kinds[number % 2] + draw(10, 10 + number) for number in range(12)]
        groups = group_prompts(prompts)
        assert len(groups) == wanted
        assert {group.shared for group in groups} == {50 + examples if wanted == 2 else 50}


def test_beginnings_that_save_less_than_a_call_are_read_with_each_prompt() -> None:
    prompts = [draw(20, 0) + draw(10, number) for number in range(1, 4)]
    assert [group.shared for group in group_prompts(prompts)] == [0]
    assert [group.shared for group in group_prompts([draw(100, 0)] * 2)] == [99]
