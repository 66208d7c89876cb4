"""The identity of a loaded model: hashes of its weights, configuration and tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.modules.inspection import named_tensors
from harness.progress import track
from harness.records import Identity, ModuleFormat

VOLATILE = frozenset({"_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype"})
"""Configuration fields about a model's origin or loading, which do not affect the computation."""


def weights_sha256(model: nn.Module) -> str:
    """sha256 over name, dtype, shape and bytes of every parameter and persistent buffer, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in track("hash weights", sorted(named_tensors(model), key=lambda pair: pair[0])):
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode() + b"\n")
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def config_sha256(config: PreTrainedConfig) -> str:
    """sha256 of the configuration as sorted JSON, without the fields in VOLATILE at any depth."""
    return _json_sha256(_stable(config.to_dict()))


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that turns text into ids: pipeline, special tokens, chat template, padding side."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        pipeline: Any = [
            type(tokenizer).__name__,
            sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
        ]
    else:
        pipeline = json.loads(backend.to_str())
        pipeline = {key: value for key, value in pipeline.items() if key not in ("padding", "truncation")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    adds_bos = getattr(tokenizer, "add_bos_token", None)
    return _json_sha256([pipeline, special, tokenizer.chat_template, tokenizer.padding_side, adds_bos])


def identify(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    revision: str | None,
    dtype: str,
    device: str,
    modules: tuple[ModuleFormat, ...],
) -> Identity:
    """The identity record of a loaded or compressed model; reads every weight once."""
    return Identity(
        name=name,
        source=source,
        architecture=type(model).__name__,
        revision=revision,
        dtype=dtype,
        device=device,
        attention=model.config._attn_implementation or "",
        parameters=sum(module.parameters for module in modules),
        weights_sha256=weights_sha256(model),
        config_sha256=config_sha256(model.config),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        modules=modules,
    )


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _stable(each) for key, each in value.items() if key not in VOLATILE}
    return [_stable(each) for each in value] if isinstance(value, list | tuple) else value


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
