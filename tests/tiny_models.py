"""Random models of a few thousand weights, saved as real folders, to test loader and backends with."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START, unk_token=START)


def tiny_llama(*, tied: bool = True, seed: int = 0, **config: object) -> LlamaForCausalLM:
    """Two decoder blocks, hidden size 64, four heads on two KV heads of 16."""
    torch.manual_seed(seed)
    settings: dict[str, object] = {
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
    return LlamaForCausalLM(LlamaConfig(**(settings | config))).eval()


def tiny_gpt2(*, seed: int = 0) -> GPT2LMHeadModel:
    """Two blocks of GPT-2, whose linear layers are Conv1D (weight [I, O]) and whose head is tied."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write model and tokenizer into ``folder`` and return it."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
