"""Students made of their teacher: which blocks, under which numbers, and what their configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness.errors import BackendError
from harness.modules.layer_pairs import block_numbers
from harness.testing.models import VOCABULARY, random_documents, tiny_gpt2, tiny_llama
from harness.training.students import choose_half, cut_blocks


def make(model: Any, config: Any, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    return cast(PreTrainedModel, model(config(**(sizes | settings))).eval())


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny_llama(num_hidden_layers=4),
    "untied llama": lambda: tiny_llama(num_hidden_layers=4, tied=False),
    "gpt2": lambda: tiny_gpt2(n_layer=4),
    "qwen2 with windows": lambda: make(
        Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=8, max_window_layers=2
    ),
    "qwen3 experts": lambda: make(Qwen3MoeForCausalLM, Qwen3MoeConfig, mlp_only_layers=[2], head_dim=16, **EXPERTS),
    "gemma3": lambda: make(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
    "deepseek": lambda: make(
        DeepseekV3ForCausalLM,
        DeepseekV3Config,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
}
IDS = torch.stack(random_documents(2, 24, 3))


def blocks(model: PreTrainedModel) -> list[Any]:
    return [model.get_submodule(name) for name in block_numbers(model)]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, cast(Any, model)(IDS, use_cache=False).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_keep_their_weights_and_the_teacher_stays_as_it_is(kind: str) -> None:
    teacher = MODELS[kind]()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = teacher.config.to_dict()
    student = cut_blocks(teacher, (0, 2))
    for place, number in enumerate((0, 2)):
        own, source = blocks(student)[place], blocks(teacher)[number]
        assert type(own) is type(source)
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[name])
    outside = [
        name for name in student.state_dict() if not any(name.startswith(f"{b}.") for b in block_numbers(student))
    ]
    assert outside
    assert all(torch.equal(student.state_dict()[name], before[name]) for name in outside)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.config.to_dict() == config


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("kept", [(0, 2), (0, 1, 3)])
def test_what_is_saved_is_the_same_model(kind: str, kept: Sequence[int], tmp_path: Path) -> None:
    student = cut_blocks(MODELS[kind](), kept)
    student.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert len(blocks(read)) == len(kept)
    assert torch.equal(logits(read), logits(student))


@pytest.mark.parametrize("kind", MODELS)
def test_generation_with_a_cache_gives_what_whole_texts_give(kind: str) -> None:
    student: Any = cut_blocks(MODELS[kind](), (0, 2))
    with torch.no_grad():
        whole = student(IDS, use_cache=False).logits
        first = student(IDS[:, :10], use_cache=True)
        second = student(IDS[:, 10:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, second], 1), whole, rtol=1e-4, atol=1e-5)


def test_an_embedding_that_is_the_head_stays_one_tensor() -> None:
    for kind, tied in (("llama", True), ("gpt2", True), ("untied llama", False)):
        student: Any = cut_blocks(MODELS[kind](), (0, 3))
        assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) is tied


def test_lists_of_the_configuration_are_cut_in_the_same_way() -> None:
    windows = cut_blocks(MODELS["qwen2 with windows"](), (1, 2)).config
    assert windows.layer_types == ["full_attention", "sliding_attention"]
    experts = cut_blocks(MODELS["qwen3 experts"](), (0, 2, 3)).config
    assert experts.mlp_only_layers == [1]
    assert cut_blocks(MODELS["qwen3 experts"](), (0, 1)).config.mlp_only_layers == []
    assert cut_blocks(MODELS["deepseek"](), (1, 2)).config.first_k_dense_replace == 0
    gpt2 = cut_blocks(MODELS["gpt2"](), (1, 2, 3)).config
    assert gpt2.num_hidden_layers == gpt2.n_layer == 3


def test_a_list_that_is_as_long_by_chance_stays_whole() -> None:
    teacher = tiny_llama(num_hidden_layers=2, eos_token_id=[0, 5])
    assert cut_blocks(teacher, (0,)).config.eos_token_id == [0, 5]


def test_a_choice_that_no_configuration_describes_is_refused() -> None:
    alternating = make(
        Qwen2MoeForCausalLM, Qwen2MoeConfig, decoder_sparse_step=2, shared_expert_intermediate_size=32, **EXPERTS
    )
    with pytest.raises(BackendError, match=r"layer 2 would be layer 1.*mlp.*choose other layers"):
        cut_blocks(alternating, (0, 2))
    assert len(blocks(cut_blocks(alternating, (0, 1)))) == 2


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ((0, 4), "layer 4, expected 0 to 3"),
        ((2, 1), r"\[2, 1\], expected numbers that ascend"),
        ((1, 1), "ascend"),
        ((), "at least one"),
        ((0, 1, 2, 3), "all 4 layers"),
    ],
)
def test_impossible_choices_are_refused(kept: Sequence[int], words: str) -> None:
    with pytest.raises(BackendError, match=words):
        cut_blocks(MODELS["llama"](), kept)


def test_half_is_every_other_block_and_the_first() -> None:
    assert choose_half(4) == (0, 2)
    assert choose_half(5) == (0, 2, 4)


def test_random_numbers_of_the_process_are_untouched() -> None:
    teacher = MODELS["llama"]()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    cut_blocks(teacher, (0, 2))
    assert torch.equal(torch.rand(3), wanted)
