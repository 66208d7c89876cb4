"""Walking through a decoder: each block gets what the whole model would give it, and nothing older is kept."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from harness.backends import Backend
from harness.errors import BackendError
from harness.modules.decoder_layers import decoder_blocks, observe_inputs, walk_blocks
from harness.plugins import load
from harness.testing.trials import as_variant, calibration_for, logits
from tests.helpers.hybrids import hybrid
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

DOCUMENTS = [torch.arange(1, 30), torch.arange(40, 52), torch.arange(5, 45)]


def tiny_gemma2() -> PreTrainedModel:
    """Every other layer slides a window of 8 tokens, so blocks get different masks."""
    torch.manual_seed(0)
    make: Any = Gemma2ForCausalLM
    config = Gemma2Config(  # type: ignore[call-arg]
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        attn_implementation="eager",
    )
    model: PreTrainedModel = make(config).eval()
    return model


def inputs_of(model: PreTrainedModel, blocks: nn.ModuleList, ids: Tensor) -> list[Tensor]:
    """The hidden states [T, D] that go into every block in a plain forward pass."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(
            lambda _module, args, named: seen.append((args[0] if args else named["hidden_states"])[0]),
            with_kwargs=True,
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(ids[None])
    for handle in handles:
        handle.remove()
    return seen


def change(block: nn.Module) -> None:
    for parameter in block.parameters():
        parameter.data.mul_(0.9)


@pytest.mark.parametrize(
    "make", [tiny_llama, tiny_gpt2, tiny_gemma2, partial(hybrid, "jamba"), partial(hybrid, "bamba")]
)
@pytest.mark.parametrize("changing", [False, True])
def test_every_block_gets_what_the_model_gives_it_after_the_changes_before(make: Any, changing: bool) -> None:
    model = make()
    name, blocks = decoder_blocks(model)
    found = []
    for block in walk_blocks(model, DOCUMENTS):
        found.append([document.hidden[0] for document in block._documents])
        assert block.name == f"{name}.{len(found) - 1}"
        if changing:
            change(block.module)
    # Blocks that come later do not reach back, so the finished model gives each block the same inputs.
    for index, ids in enumerate(DOCUMENTS):
        for depth, expected in enumerate(inputs_of(model, blocks, ids)):
            torch.testing.assert_close(found[depth][index], expected, rtol=1e-5, atol=1e-5)


def test_the_output_is_computed_with_the_block_as_it_is_now() -> None:
    block = next(walk_blocks(tiny_llama(), DOCUMENTS))
    before = list(block.run())
    change(block.module)
    assert not any(torch.equal(old, new) for old, new in zip(before, block.run(), strict=True))


def test_taps_see_the_inputs_that_the_whole_model_gives() -> None:
    model = tiny_llama()
    seen: dict[str, list[Tensor]] = {"walk": [], "pass": []}
    name = "model.layers.1.mlp.down_proj"
    for block in walk_blocks(model, DOCUMENTS):
        if name in dict(block.linears()):
            block.observe({name: seen["walk"].append})
    observe_inputs(model, {name: seen["pass"].append}, DOCUMENTS)
    assert [len(x) for x in seen["walk"]] == [len(ids) for ids in DOCUMENTS]
    for one, other in zip(seen["walk"], seen["pass"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_only_the_inputs_of_one_block_are_held() -> None:
    older: list[weakref.ref[Tensor]] = []
    for block in walk_blocks(tiny_llama(num_hidden_layers=4), DOCUMENTS):
        gc.collect()
        assert not any(reference() is not None for reference in older)
        older = [weakref.ref(document.hidden) for document in block._documents]
        assert len(older) == len(DOCUMENTS)


def test_a_walk_leaves_no_hooks() -> None:
    model = tiny_llama()
    for block in walk_blocks(model, DOCUMENTS):
        block.observe({name: lambda _x: None for name, _ in block.linears()})
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_a_stack_of_blocks_is_refused() -> None:
    model = tiny_llama()
    model.model.layers = nn.ModuleList()
    with pytest.raises(BackendError, match="has no list of decoder blocks"):
        decoder_blocks(model)


def test_a_state_space_model_walks_too() -> None:
    make: Any = MambaForCausalLM
    torch.manual_seed(0)
    model = make(MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    assert [block.name for block in walk_blocks(model, DOCUMENTS)] == ["backbone.layers.0", "backbone.layers.1"]


@pytest.mark.parametrize("backend", ["gptq", "awq", "smoothquant"])
@pytest.mark.parametrize("kind", ["jamba", "bamba"])
def test_methods_that_go_by_block_take_blocks_of_several_kinds(kind: str, backend: str) -> None:
    model = hybrid(kind)
    settings: dict[str, Any] = {"bits": 8} | ({"scale_grid": 2, "clip_grid": 2} if backend == "awq" else {})
    chosen: Any = load(Backend, backend)
    step = chosen(**(settings if backend != "smoothquant" else {}))
    made = as_variant(step, model, calibration_for(step))
    changed = [name for name, own in model.named_parameters() if not torch.equal(own, made.model.get_parameter(name))]
    norms = backend == "smoothquant"  # It reaches every reader of a norm, and no other layer.
    for part in ("layers.0.mamba", "layers.1.self_attn", *(() if norms else ("layers.0.feed_forward",))):
        assert any(f"{part}." in name for name in changed), part
    before, after = logits(model), logits(made.model)
    apart = float((after - before).square().mean().sqrt() / before.std())
    assert apart < (1e-3 if norms else 0.3)
