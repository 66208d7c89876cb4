"""Where a text ends: never earlier than lm-eval cuts the text that goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from lm_eval.models.utils import postprocess_generated_text

from harness.scoring.stopping import StopText

LETTERS = "ab\n"


def decode(ids: Sequence[int]) -> str:
    return "".join(LETTERS[token] if token < len(LETTERS) else "" for token in ids)


@pytest.mark.parametrize("seed", range(50))
def test_a_text_that_ends_is_the_one_that_lm_eval_cuts_out_of_a_longer_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        ids = [rng.randrange(len(LETTERS)) for _ in range(20)]
        stops = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        ended = StopText(decode, stops, [])
        length = next((n for n in range(1, len(ids) + 1) if ended(ids[:n])), len(ids))
        short, whole = (postprocess_generated_text(decode(each), stops, None) for each in (ids[:length], ids))
        assert short == whole, (stops, decode(ids), length)


def test_it_ends_as_soon_as_the_stop_is_there() -> None:
    ended = StopText(decode, ["\n"], [])
    assert [ended(ids) for ids in ([0], [0, 1], [0, 1, 2])] == [False, False, True]


def test_end_tokens_end_a_text_and_an_empty_stop_does_not() -> None:
    ended = StopText(decode, [""], [7])
    assert not ended([0])
    assert ended([0, 7])


def test_a_longer_stop_that_may_begin_earlier_is_waited_for() -> None:
    ended = StopText(decode, ["a\nb", "\n"], [])
    assert not ended([1, 0, 2]), "with a b to come, the text ends before the a"
    assert ended([1, 0, 2, 1])
    assert ended([1, 0, 2, 0])
