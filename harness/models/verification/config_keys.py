"""Finds keys of config.json that the loaded class does not declare: what they ask for is not computed.

A key is known if the class of the configuration declares it (as a field, a parameter or another name of one), if the
library itself writes it, or if the code that computes the model names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from harness.models.trust import shorten
from harness.models.verification.sources import module_source
from harness.records import Note

OF_THE_LIBRARY = frozenset(
    {"_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_experts_implementation"}
    | {"_name_or_path", "add_cross_attention", "architectures", "attn_implementation", "auto_map", "bos_token_id"}
    | {"compression_config", "cross_attention_hidden_size", "decoder_start_token_id", "dtype", "eos_token_id"}
    | {"finetuning_task", "gradient_checkpointing", "is_decoder", "model_type", "name_or_path", "output_attentions"}
    | {"pad_token_id", "prefix", "pruned_heads", "quantization_config", "sep_token_id", "task_specific_params"}
    | {"tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript"}
    | {"transformers_version", "transformers_weights", "use_bfloat16", "use_cache"}
    | {"unsloth_fixed", "unsloth_version"}
)
"""Keys that versions of transformers and training libraries write into any config.json; none changes a logit, except
the tied head and the token ids, which every class knows."""


def note_undeclared_keys(
    name: str, content: Mapping[str, Any], config: PreTrainedConfig, made: type[PreTrainedModel]
) -> tuple[Note, ...]:
    """A warning that names the keys of config.json (parsed: ``content``) that nothing reads."""
    found = dict(_find_undeclared(content, config, made, ""))
    if not found:
        return ()
    keys = ", ".join(f"{key}: {shorten(value)}" for key, value in found.items())
    text = (
        f"{name}: config.json has {keys}, which {type(config).__name__} does not declare and {made.__name__} does not "
        "read: what this asks for is not computed"
    )
    return (Note(topic="configuration", text=text, level="warn"),)


def _find_undeclared(
    content: Mapping[str, Any], config: PreTrainedConfig, made: type[PreTrainedModel], trail: str
) -> Iterator[tuple[str, Any]]:
    known = (
        _list_declared(type(config))
        | _list_written(type(config))
        | OF_THE_LIBRARY
        | GenerationConfig().to_dict().keys()
    )
    parts = type(config).sub_configs
    for key, value in content.items():
        part = getattr(config, key, None) if key in parts else None
        if isinstance(value, Mapping) and isinstance(part, PreTrainedConfig):
            yield from _find_undeclared(value, part, made, f"{trail}{key}.")
        elif value is not None and key not in known and not _is_read(key, type(config), made):
            yield f"{trail}{key}", value


def _list_declared(cls: type[PreTrainedConfig]) -> set[str]:
    """Names of fields, parameters and attributes of a class of configurations, and other names for them."""
    annotated = {name for each in cls.__mro__ for name in getattr(each, "__annotations__", {})}
    parameters = set(inspect.signature(cls).parameters)
    return annotated | parameters | set(dir(cls)) | set(cls.attribute_map) | set(cls.sub_configs)


def _list_written(cls: type[PreTrainedConfig]) -> set[str]:
    """Keys that a configuration without settings writes: some classes derive further ones."""
    try:
        return set(cls().to_dict())
    except Exception:  # noqa: BLE001 - classes that cannot be made without settings refuse in any way; no key is derived
        return set()


def _is_read(key: str, cls: type[PreTrainedConfig], made: type[PreTrainedModel]) -> bool:
    """Whether the code of the configuration or of the model names a key."""
    texts = [module_source(each) for each in (*cls.__mro__, *made.__mro__) if each is not object]
    return any(form in text for text in texts for form in (f"config.{key}", f'"{key}"', f"'{key}'"))
