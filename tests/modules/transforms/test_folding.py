"""Foldings of scales into norms and linear layers, on small models of many architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness.modules.linears import linears, weight_of
from harness.modules.transforms.folding import Folding, find_foldings, fold
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
IDS = torch.arange(40) * 7 % 96


def tiny_opt(**config: Any) -> OPTForCausalLM:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return OPTForCausalLM(OPTConfig(ffn_dim=112, word_embed_proj_dim=64, **sizes, **config))


def small(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model whose gains and biases are neither 1 nor 0, so that forgetting one shows."""
    torch.manual_seed(1)
    model: PreTrainedModel = make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
        else:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=16)),
    "gpt2": tiny_gpt2,
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, use_parallel_residual=True)),
    "opt": tiny_opt,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, num_key_value_heads=2)),
}
LLAMA = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "self_attn.v_proj": ("self_attn.o_proj",),
    "mlp.up_proj": ("mlp.down_proj",),
}
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma2": {
        ("pre_feedforward_layernorm" if source == "post_attention_layernorm" else source): readers
        for source, readers in LLAMA.items()
    },
    "gpt2": {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",), "attn.c_attn": ("attn.c_proj",)},
    "gpt_neox": {
        "input_layernorm": ("attention.query_key_value",),
        "post_attention_layernorm": ("mlp.dense_h_to_4h",),
        "attention.query_key_value": ("attention.dense",),
    },
    "opt": {
        "self_attn_layer_norm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "final_layer_norm": ("fc1",),
        "self_attn.v_proj": ("self_attn.out_proj",),
        "fc1": ("fc2",),
    },
    "phi3": {
        "input_layernorm": ("self_attn.qkv_proj",),
        "post_attention_layernorm": ("mlp.gate_up_proj",),
        "self_attn.qkv_proj": ("self_attn.o_proj",),
        "mlp.gate_up_proj": ("mlp.down_proj",),
    },
}


def inputs_of(model: PreTrainedModel, folding: Folding) -> int:
    return weight_of(dict(linears(model))[folding.readers[0]]).shape[1]


def scales(model: PreTrainedModel, folding: Folding, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return folding.pool_shared(torch.exp(4 * torch.rand(inputs_of(model, folding), generator=generator) - 2), "amax")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS[None]).logits
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_found_is_what_the_architecture_is_known_to_have(name: str) -> None:
    model = small(MAKERS[name])
    blocks, foldings = 2, find_foldings(model, [IDS])
    stack = foldings.accepted[0].source.partition(".0.")[0]
    expected = {
        f"{stack}.{index}.{source}": tuple(f"{stack}.{index}.{reader}" for reader in readers)
        for index in range(blocks)
        for source, readers in EXPECTED[name].items()
    }
    assert {each.source: each.readers for each in foldings.accepted} == expected
    assert foldings.rejected == ()
    assert {each.offset for each in foldings.accepted if each.into_norm} == {1.0 if name == "gemma2" else 0.0}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 3e-15)])
def test_folding_everything_leaves_the_logits(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = small(MAKERS[name]).to(dtype)  # type: ignore[arg-type]
    before = logits(model)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for seed, folding in enumerate(find_foldings(model, [IDS]).accepted):
        fold(model, folding, scales(model, folding, seed))
    # The norms of Gemma compute in float32 whatever the model's dtype.
    tolerance = max(tolerance, 3e-6) if name == "gemma2" else tolerance
    assert (logits(model) - before).abs().max() <= tolerance * before.abs().max()
    changed = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, weights[key])]
    assert len(changed) >= 2 * len(EXPECTED[name])


def test_searching_leaves_the_model_as_it_is() -> None:
    model = small(tiny_llama)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    find_foldings(model, [IDS])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_half_precision_models_have_the_same_foldings() -> None:
    model = small(tiny_llama)
    wanted = find_foldings(model, [IDS]).accepted
    assert find_foldings(model.to(torch.bfloat16), [IDS]).accepted == wanted  # type: ignore[arg-type]


def test_heads_that_share_their_values_share_their_scale() -> None:
    model = small(tiny_llama)  # Four heads of 16 on two of keys and values.
    folding = next(each for each in find_foldings(model, [IDS]).accepted if each.source.endswith("v_proj"))
    heads = torch.arange(64).reshape(4, 16)
    assert folding.rows is not None
    assert folding.rows.tolist() == torch.cat([heads[0], heads[0], heads[1], heads[1]]).tolist()
    values = torch.rand(64, generator=torch.Generator().manual_seed(0))
    shared = folding.pool_shared(values, "mean").reshape(4, 16)
    assert torch.allclose(shared[1], values[:32].reshape(2, 16).mean(dim=0))
    assert torch.equal(folding.pool_shared(values, "amax").reshape(4, 16)[2], values[32:].reshape(2, 16).amax(dim=0))
    with pytest.raises(ValueError, match="come from one row"):
        fold(model, folding, values + 0.5)


def test_fused_projections_are_scaled_in_the_rows_that_count() -> None:
    model = small(MAKERS["phi3"])
    found = {each.source.rpartition(".")[2]: each for each in find_foldings(model, [IDS]).accepted}
    rows = found["qkv_proj"].rows, found["gate_up_proj"].rows
    assert rows[0] is not None
    assert rows[1] is not None
    assert (int(rows[0].min()), int(rows[0].max())) == (96, 127)  # After 64 of queries and 32 of keys.
    assert rows[1].tolist() == list(range(112, 224))  # The half that no activation function bends.


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_scales_are_refused(scale: float) -> None:
    model = small(tiny_llama)
    folding = find_foldings(model, [IDS]).accepted[0]
    with pytest.raises(ValueError, match="not positive and finite"):
        fold(model, folding, torch.full((64,), 1.0).index_fill(0, torch.tensor([5]), scale))
    with pytest.raises(ValueError, match="64 input channels"):
        fold(model, folding, torch.ones(63))


def test_a_norm_that_a_residual_reads_too_is_left_out() -> None:
    model = small(lambda: tiny_opt(do_layer_norm_before=False))
    foldings = find_foldings(model, [IDS])
    assert not any(each.into_norm for each in foldings.accepted)
    # The norm after attention feeds the MLP and the residual; that after the MLP feeds the next block.
    assert foldings.rejected == tuple(f"model.decoder.layers.{index}.self_attn_layer_norm" for index in (0, 1))


def test_a_norm_that_experts_outside_linear_layers_read_is_never_scaled() -> None:
    model = small(lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)))
    foldings = find_foldings(model, [IDS])
    sources = {each.source.rpartition(".")[2] for each in foldings.accepted}
    assert "post_attention_layernorm" not in sources
    assert "input_layernorm" in sources


class Routed(nn.Module):
    """An MLP behind a gate that reads the same norm."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.router = inner, nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x) * torch.sigmoid(self.router(x))
        return found


def test_every_linear_reader_of_a_norm_is_scaled_a_router_among_them() -> None:
    model = small(tiny_llama)
    model.model.layers[0].mlp = Routed(model.model.layers[0].mlp)
    found = {each.source: each.readers for each in find_foldings(model, [IDS]).accepted}
    readers = found["model.layers.0.post_attention_layernorm"]
    assert set(readers) == {f"model.layers.0.mlp.{name}" for name in ("inner.gate_proj", "inner.up_proj", "router")}


def test_shared_parameters_take_part_in_no_folding() -> None:
    model = small(tiny_llama)
    first, second = model.model.layers
    second.mlp.gate_proj.weight = first.mlp.gate_proj.weight
    second.self_attn.v_proj.weight = first.self_attn.v_proj.weight
    foldings = find_foldings(model, [IDS])
    assert {each.source.rpartition(".")[2] for each in foldings.accepted} == {"up_proj"}
    assert len(foldings.rejected) == 4


def test_the_same_norm_called_twice_is_left_out() -> None:
    model = small(tiny_llama)
    for layer in model.model.layers:
        layer.post_attention_layernorm = layer.input_layernorm
    assert {each.source.rpartition(".")[2] for each in find_foldings(model, [IDS]).accepted} == {"v_proj", "up_proj"}
