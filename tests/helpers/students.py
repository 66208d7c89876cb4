"""Small models with tokenizers of their own, and twins that are the same model under other token ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.models.language_model import TransformersModel
from harness.modules.inspection import module_formats

SENTENCES = [
    "The cat sat on the mat and the dog ran after it.",
    "A dog and a cat met near the river, and the river was cold.",
    "Naïve visitors of the café said déjà vu – twice!",
    "One, two, three: the mat is on the floor.\nThe floor is under the mat.",
    "Mira put the lamp under the old stair of the mill near the river.",
    "The red fox gave 14 lamps to Mira, who gave 3 of them to the dog.",
]


@dataclass(frozen=True)
class Loaded:
    """As much of harness.models.loading.LoadedModel as probes ask for."""

    name: str
    model: Any
    tokenizer: Any
    calibration: Any = None
    layers: tuple[int | None, ...] | None = None
    unread: tuple[Any, ...] = ()
    non_finite: tuple[Any, ...] = ()
    quantization: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> Any:
        """What its modules hold."""
        return SimpleNamespace(modules=module_formats(self.model, {}), cache=None)

    @property
    def language_model(self) -> TransformersModel:
        """The model as its engine gives it."""
        return TransformersModel(self.model)


@dataclass
class MemorySink:
    """Keeps committed frames by unit and table."""

    units: dict[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)

    def done(self, unit: str) -> bool:
        return unit in self.units

    def commit(self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: object = None) -> None:
        assert unit not in self.units
        self.units[unit] = frames

    def table(self, name: str) -> pd.DataFrame:
        parts = [frames[name] for frames in self.units.values() if name in frames]
        return pd.concat(parts, ignore_index=True)


class Silent:
    """Progress that nobody sees."""

    def step(self, what: str, done: int, of: int) -> None:
        """Nothing."""


def byte_tokenizer(size: int = 300, bos: bool = True, texts: Sequence[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """Byte-level BPE with <s> as id 0 and </s> as id 1."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(list(texts), trainer)
    special = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def make_model(vocabulary: int, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """Two blocks of random weights, large enough that predictions are far from uniform."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3, "tie_word_embeddings": False,
    }  # fmt: skip
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**(sizes | config))).eval()
    return model


class PaddedHead(torch.nn.Linear):
    """Multiplies its tokens' rows as a head without padding does: some kernels round a wider product otherwise."""

    tokens = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the tokens, then those of the padding."""
        parts = (self.weight[: self.tokens], self.weight[self.tokens :])
        return torch.cat([torch.nn.functional.linear(hidden, part) for part in parts], dim=-1)


def padded(model: Any, rows: int, fill: float = 0.0) -> Any:
    """A copy with so many more rows of embedding and head, all of them ``fill``."""
    wider = copy.deepcopy(model)
    old = model.get_input_embeddings().weight.shape[0]
    wider.resize_token_embeddings(old + rows, mean_resizing=False)
    head = wider.get_output_embeddings()
    head.__class__, head.tokens = PaddedHead, old
    with torch.no_grad():
        for module in (wider.get_input_embeddings(), wider.get_output_embeddings()):
            module.weight[old:] = fill
    return wider.eval()


def twin(model: Any, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> tuple[Any, PreTrainedTokenizerFast]:
    """The same model under other token ids: what either says about a text is the same. Special tokens keep theirs."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = content["model"]["vocab"]
    kept = set(tokenizer.all_special_ids)
    free = sorted(index for index in vocabulary.values() if index not in kept)
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    becomes = {old: free[new] for old, new in zip(free, order, strict=True)} | {index: index for index in kept}
    content["model"]["vocab"] = {token: becomes[index] for token, index in vocabulary.items()}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special)
    moved = copy.deepcopy(model)
    rows = torch.arange(model.get_input_embeddings().weight.shape[0])
    for old, new in becomes.items():
        rows[new] = old
    with torch.no_grad():
        for now, before in (
            (moved.get_input_embeddings(), model.get_input_embeddings()),
            (moved.get_output_embeddings(), model.get_output_embeddings()),
        ):
            now.weight.copy_(before.weight[rows].clone())
    return moved, other
