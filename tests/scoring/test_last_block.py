"""Feed-forward and head of the last block at some tokens, against those of whole passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.scoring.last_block import LastFeedForward, restrict_head
from harness.testing.models import VOCABULARY, tiny_llama

USED = torch.tensor([2, 7, 13])
"""Places in two rows of eight tokens."""


def make_ids() -> Tensor:
    return torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))


def count_tokens(module: nn.Module, counts: list[int]) -> Any:
    """What the matrices of a module are given, in tokens."""
    return module.register_forward_pre_hook(lambda _m, values: counts.append(values[0].shape[:-1].numel()))


@torch.no_grad()
def test_used_tokens_have_the_states_of_a_whole_pass_and_others_cost_nothing() -> None:
    model, ids, counts = tiny_llama(), make_ids(), list[int]()
    whole = model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
    hooks = [count_tokens(model.model.layers[place].mlp.gate_proj, counts) for place in (0, -1)]
    with LastFeedForward(model).restrict(USED):
        some = model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
    assert counts == [16, 3], "tokens of the first and of the last block"
    torch.testing.assert_close(some[USED], whole[USED], rtol=1e-5, atol=1e-6)
    again = model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
    assert torch.equal(again, whole), "the model is as before"
    assert counts[2:] == [16, 16]
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_the_cache_of_a_restricted_pass_is_that_of_a_whole_one() -> None:
    model, ids = tiny_llama(), make_ids()
    whole = model(ids, use_cache=True).past_key_values
    with LastFeedForward(model).restrict(USED):
        some = model(ids, use_cache=True).past_key_values
    for one, other in zip(some.layers, whole.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@torch.no_grad()
def test_the_head_gives_logits_of_used_tokens_alone() -> None:
    model, ids = tiny_llama(), make_ids()
    whole = model(ids).logits.flatten(0, 1)
    with restrict_head(model, USED):
        some = model(ids).logits
    assert some.shape == (1, 3, VOCABULARY)
    torch.testing.assert_close(some[0], whole[USED], rtol=1e-5, atol=1e-6)
    assert torch.equal(model(ids).logits.flatten(0, 1), whole)


class Router(nn.Module):
    """A feed-forward that also tells how it routed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[int] = []

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(states.shape[:-1].numel())
        return self.inner(states), states


@torch.no_grad()
def test_a_feed_forward_that_gives_more_than_states_computes_every_token() -> None:
    model = tiny_llama()
    router = model.model.layers[-1].mlp = Router(model.model.layers[-1].mlp)
    feed_forward, states = LastFeedForward(model), torch.randn(2, 8, model.config.hidden_size)
    whole = router(states)
    for _ in range(2):
        with feed_forward.restrict(USED):
            some = router(states)
        assert torch.equal(some[0], whole[0])
    assert router.seen == [16, 3, 16, 16], "it is tried once"


@torch.no_grad()
@pytest.mark.parametrize("used", [range(16), range(9)])
def test_where_most_tokens_are_used_all_are_computed(used: range) -> None:
    model, counts = tiny_llama(), list[int]()
    count_tokens(model.model.layers[-1].mlp.gate_proj, counts)
    with LastFeedForward(model).restrict(torch.tensor(list(used))):
        model.model(make_ids(), use_cache=False)
    assert counts == [16]


def test_a_model_without_blocks_is_left_alone() -> None:
    with LastFeedForward(None).restrict(USED):
        pass
