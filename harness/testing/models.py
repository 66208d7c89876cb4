"""Random models of a few thousand weights, made from configurations, and documents for them."""

from __future__ import annotations

from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 96
START = "<s>"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One id for each printable character."""
    vocabulary = {START: 0} | {chr(32 + index): index + 1 for index in range(VOCABULARY - 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=START))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    make: Any = PreTrainedTokenizerFast
    made = make(tokenizer_object=tokenizer, bos_token=START, eos_token=START, unk_token=START)
    return cast(PreTrainedTokenizerFast, made)


def tiny_llama(*, tied: bool = True, seed: int = 0, **config: object) -> LlamaForCausalLM:
    """Two decoder blocks, hidden size 64, four heads on two KV heads of 16."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    make: Any = LlamaForCausalLM
    return cast(LlamaForCausalLM, make(LlamaConfig(**(settings | config))).eval())


def tiny_gpt2(*, seed: int = 0, **config: object) -> GPT2LMHeadModel:
    """Two blocks of GPT-2, whose linear layers are Conv1D (weight [I, O]) and whose head is tied."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    make: Any = GPT2LMHeadModel
    return cast(GPT2LMHeadModel, make(GPT2Config(**(settings | config))).eval())


def randomize_gains(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Give the model gains and biases like those of trained ones: none is 1 or 0, and one channel is an outlier.

    In a fresh model some defects (a dropped bias, a gain divided twice) would not be visible.
    """
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=chance)
                parameter.add_(0.2 * noise)
                if name.endswith("weight"):
                    parameter[3] *= 6
    return model


def random_documents(count: int, tokens: int, seed: int) -> list[Tensor]:
    """Token ids, each document with the start token first."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (count, tokens), generator=chance)
    ids[:, 0] = 0
    return list(ids)
