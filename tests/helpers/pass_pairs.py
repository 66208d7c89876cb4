"""Tiny pairs of models and documents to run the shared pass on, and the pass itself into a folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from harness.data.encoding import EncodedDocument
from harness.lockstep.driver import shared_pass
from harness.lockstep.pass_report import PassReport
from harness.models.language_model import TransformersModel
from harness.modules.inspection import module_formats
from harness.probes.channels import Channels
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.tables.store import Store

VOCABULARY = 61
LENGTHS = (9, 23, 2, 23, 14, 5, 31, 12)


@dataclass
class Loaded:
    """As much of harness.models.loading.LoadedModel as the pass asks for."""

    name: str
    model: Any
    calibration: Any = None
    tokenizer: Any = None
    unread: tuple[Any, ...] = ()
    non_finite: tuple[Any, ...] = ()
    quantization: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> Any:
        """What its modules hold."""
        return SimpleNamespace(modules=module_formats(self.model, {}), cache=None)

    layers: tuple[int | None, ...] | None = None

    @property
    def language_model(self) -> TransformersModel:
        """The model as its engine gives it."""
        return TransformersModel(self.model)

    def with_modules(self, name: str, model: Any) -> Loaded:
        """The same with other modules."""
        return replace(self, name=name, model=model)


class Ids:
    """As much of a tokenizer as tells which ids there are."""

    all_special_ids = (0,)

    def __init__(self, count: int) -> None:
        self.count = count

    def get_vocab(self) -> dict[str, int]:
        """One token for each id."""
        return {f"token {index}": index for index in range(self.count)}


class Silent:
    """Progress that nobody sees."""

    def step(self, what: str, done: int, of: int) -> None:
        """Nothing."""


def llama(seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | config))).eval()


def gemma2() -> Any:
    """Soft-caps its logits at a value that random weights reach."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    settings: dict[str, Any] = {"final_logit_softcapping": 0.5, "attn_implementation": "eager"}
    config = Gemma2Config(**(sizes | heads | settings))
    return louder(Gemma2ForCausalLM(config).eval(), 4.0)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return GPT2LMHeadModel(config).eval()


def louder(model: Any, factor: float) -> Any:
    """The model with a larger output matrix, so that distributions are far from uniform."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)
    return model


def damaged(model: Any, size: float = 0.02, seed: int = 1) -> Any:
    """A copy with noise on every matrix."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.dim() == 2:
                weight.add_((torch.randn(weight.shape, generator=generator) * size).to(weight.dtype))
    return other


def loaded(name: str, model: Any) -> Any:
    """A stand-in for a loaded model, whose tokenizer knows the ids."""
    return Loaded(name, model, tokenizer=Ids(VOCABULARY))


def make_documents(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[EncodedDocument]:
    """Documents of random ids; their bytes are numbers one can recognize."""
    rng = np.random.default_rng(seed)
    made = []
    for index, length in enumerate(lengths):
        ids, sizes = rng.integers(0, VOCABULARY, length), np.arange(length, dtype=np.float32)
        made.append(EncodedDocument(index, f"d{index}", "test", ids, sizes, length, False, ""))
    return made


def observe(
    folder: Path,
    reference: Any,
    variants: Sequence[Any],
    documents: Sequence[EncodedDocument] | None = None,
    probes: Sequence[Any] = (Tokens(), Layers(), Channels(threshold=1.5)),
    progress: Any = None,
    layers: Sequence[tuple[int | None, ...]] = (),
    **settings: Any,
) -> tuple[PassReport, list[dict[str, pd.DataFrame]]]:
    """Run the pass, one store a variant (``folder``/0, /1, …); its report, and the tables of each.

    layers: the declared map of every variant.
    """
    stores = [Store(folder / str(number), "key") for number in range(len(variants))]
    try:
        report = shared_pass(
            loaded("reference", reference),
            [
                replace(loaded(f"variant {number}", model), layers=layers[number] if layers else None)
                for number, model in enumerate(variants)
            ],
            make_documents() if documents is None else documents,
            probes,
            [store.sink("s") for store in stores],
            progress or Silent(),
            **({"batch_tokens": 48} | settings),
        )
        return report, [tables_of(store) for store in stores]
    finally:
        for store in stores:
            store.close()


def tables_of(store: Any) -> dict[str, pd.DataFrame]:
    return {name: store.read("s", name) for name in store.tables("s")}


def as_bytes(tables: dict[str, pd.DataFrame]) -> dict[str, bytes]:
    """Exactly what the tables hold, for comparison bit by bit."""
    found = {}
    for name, frame in tables.items():
        columns = [column.to_numpy() for _, column in frame.items()]
        raw = [c.tobytes() if c.dtype != object else repr(c.tolist()).encode() for c in columns]
        found[name] = b"|".join([repr(frame.dtypes.to_dict()).encode(), *raw])
    return found
