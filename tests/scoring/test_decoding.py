"""Continuations of many prompts against those of one prompt at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from harness.models.language_model import TransformersModel
from harness.scoring.caches import UnusableCacheError
from harness.scoring.decoding import GreedyDecoder
from harness.testing.models import VOCABULARY, tiny_llama
from tests.helpers.zoo import ZOO, make_model

KEEPS_MORE = {"minimax", "lfm2", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba"}
"""Architectures that keep something else between tokens than all keys and values."""
WINDOWED = {"mistral", "gemma2", "gemma3_text", "gpt_oss", "exaone4", "llama4_text"}
"""Architectures whose layers see eight tokens, so that these prompts are refused (``find_window``)."""
LONGEST = 12


def make_prompts(shared: int, count: int = 11, shortest: int = 1) -> list[tuple[int, ...]]:
    rng = random.Random(shared)
    first = tuple(rng.randrange(1, VOCABULARY) for _ in range(shared))
    return [first + tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(shortest, 14))) for _ in range(count)]


def ended(ids: Sequence[int]) -> bool:
    """Ends after a length of its own: uneven continuations."""
    return ids[-1] % 9 == 0 or len(ids) > ids[0] % LONGEST


@torch.no_grad()
def write_alone(model: Any, prompt: Sequence[int], count: int = LONGEST) -> list[int]:
    """One token after the other, without a cache."""
    written: list[int] = []
    while len(written) < count and not (written and ended(written)):
        logits = model(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
    return written


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("kind", sorted(ZOO.keys() - WINDOWED))
def test_every_prompt_is_continued_as_if_it_were_alone(kind: str, shared: int) -> None:
    model = make_model(kind)
    decoder = GreedyDecoder("tiny", TransformersModel(model), 4)
    prompts = make_prompts(shared)
    if kind in KEEPS_MORE:
        with pytest.raises((UnusableCacheError, TypeError, IndexError, AttributeError, ValueError)):
            decoder.write(prompts, LONGEST, ended)
        return
    written = decoder.write(prompts, LONGEST, ended)
    assert all(each.finite for each in written)
    assert [each.ids for each in written] == [write_alone(model, prompt) for prompt in prompts]


def test_uneven_lengths_cost_what_they_are_long() -> None:
    """Rows that ended are not computed again, and rows that wait take their place."""
    model = tiny_llama(max_position_embeddings=128)
    prompts = make_prompts(30, 40, shortest=2)
    computed = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda _m, values: computed.append(values[0].shape[:2]))
    written = GreedyDecoder("tiny", TransformersModel(model), 8).write(prompts, LONGEST, ended)
    hook.remove()
    tokens = sum(len(each.ids) - 1 for each in written)
    assert sum(rows for rows, length in computed if length == 1) == tokens, "steps compute one row for each token"
    assert computed[0] == (1, 30), "what prompts share is read once"
    longest = max(len(each.ids) for each in written) - 1
    assert sum(length == 1 for _, length in computed) < 5 * longest, "lm-eval: five batches of as many steps"


def test_prompts_are_read_without_a_mask_and_the_last_feed_forward_reads_their_last_tokens() -> None:
    model = tiny_llama(max_position_embeddings=128)
    prompts = make_prompts(0, 8, shortest=3)
    assert len(set(map(len, prompts))) > 2
    reads: list[bool] = []
    last: list[torch.Size] = []
    hook = model.register_forward_pre_hook(
        lambda _m, _v, named: (
            reads.append(named["attention_mask"] is None) if named["input_ids"].shape[1] > 1 else None
        ),
        with_kwargs=True,
    )
    for part in model.model.layers[-1].mlp.gate_proj, model.lm_head:
        part.register_forward_pre_hook(lambda _m, values: last.append(values[0].shape[:2]))
    written = GreedyDecoder("tiny", TransformersModel(model), 8).write(prompts, LONGEST, ended)
    hook.remove()
    assert reads == [True]
    assert last[0] == (1, 8)
    assert [each.ids for each in written] == [write_alone(model, prompt) for prompt in prompts]


def test_every_beginning_that_some_prompts_share_is_read_once() -> None:
    """Few-shot examples of two kinds, and a prompt with none; rows of all stand in one batch."""
    model = tiny_llama(max_position_embeddings=128)
    rng = random.Random(0)
    examples = [tuple(rng.randrange(1, VOCABULARY) for _ in range(40)) for _ in range(2)]
    prompts = [examples[number % 2] + end for number, end in enumerate(make_prompts(0, 12))] + [(5, 6, 7)]
    computed = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda _m, values: computed.append(values[0].shape[:2]))
    written = GreedyDecoder("tiny", TransformersModel(model), 8).write(prompts, LONGEST, ended)
    hook.remove()
    assert computed.count((1, 40)) == 2
    assert all(length < 16 for _, length in computed if length != 40)
    assert max(rows for rows, _ in computed) == 8
    assert [each.ids for each in written] == [write_alone(model, prompt) for prompt in prompts]


def test_a_row_that_is_not_finite_is_told_and_the_others_go_on() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.nan_to_num())
    prompts = [(1, 2, 3), (1, 7, 3), (4, 5)]
    written = GreedyDecoder("tiny", TransformersModel(model), 4).write(prompts, 5, lambda ids: False)
    assert [each.finite for each in written] == [True, False, True]
    assert [len(each.ids) for each in written] == [5, 1, 5]


def test_one_prompt_alone() -> None:
    model = tiny_llama()
    (written,) = GreedyDecoder("tiny", TransformersModel(model), 4).write([(5, 6, 7)], LONGEST, ended)
    assert written.ids == write_alone(model, (5, 6, 7))
