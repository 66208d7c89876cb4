"""The class that transformers makes of a configuration, and an attention implementation that computes all it asks for.

An attention implementation gets the options of a configuration (soft-capping of attention logits, a sliding window,
attention sinks) as keyword arguments, and drops those that its signature does not name. The signatures and the flags of
the class say beforehand which ones work, so that no model is computed without an option that its configuration sets.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from harness.errors import ModelError
from harness.models.transformers_output import silence_transformers
from harness.models.trust import shorten
from harness.models.verification.sources import module_source
from harness.records import ModelSpec, Note
from harness.system.foreign import guard

OPTIONS = {"attn_logit_softcapping": "softcap", "sliding_window": "sliding_window"}
"""Fields of configurations that change attention, and the keyword by which an implementation is told of them."""
MASKS = ("create_sliding_window_causal_mask", "create_masks_for_generate", "sliding_window_overlay")
"""Functions of transformers that put a sliding window into the mask, which every implementation applies."""


LOADERS: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
"""Auto classes whose models predict the next token of a text; the second ones read texts without images, too."""


@dataclass(frozen=True)
class Architecture:
    """The configuration of a checkpoint, the class of its model, and the auto class that loads it."""

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    loader: Any = AutoModelForCausalLM


def find_architecture(folder: Path, spec: ModelSpec, **files: str) -> Architecture:
    """Read the configuration of a folder, or of its ``gguf_file``, and find the class.

    Raises ModelError if transformers has no causal language model for it (a vision-language model has one), and
    anything for files that do not fit.
    """
    code = {"trust_remote_code": spec.trust_remote_code}
    with silence_transformers(), guard(f"{spec.model}: reading its configuration"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **code, **files)
        remote = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
        if spec.trust_remote_code and remote is not None:
            return Architecture(config, get_class_from_dynamic_module(remote, str(folder), local_files_only=True))
    known = [Architecture(config, made, loader) for loader in LOADERS for made in _classes_of(config, loader)]
    if not known or config.is_encoder_decoder:
        raise ModelError(f"{spec.model}: {_explain_unknown(config)}")
    # Some types have a class without a vision tower, too, which would leave its tensors in the files.
    return next((each for each in known if each.model_class.__name__ in (config.architectures or ())), known[0])


def choose_attention(architecture: Architecture, name: str, spec: ModelSpec) -> tuple[str, tuple[Note, ...]]:
    """The attention implementation to compute with, and a note if it is not ``spec.attention``.

    Raises ModelError if no implementation honours the options of the configuration.
    """
    reasons: list[str] = []
    for candidate in dict.fromkeys((spec.attention, "sdpa", "eager")):
        found = list(find_objections(architecture, candidate))
        if not found:
            text = f"{name}: attention is {candidate}, because {'; '.join(reasons)}"
            return candidate, (Note(topic="attention", text=text),) if reasons else ()
        reasons += found
    raise ModelError(
        f"{spec.model}: no attention implementation computes what config.json asks for: {'; '.join(reasons)}; expected "
        "an option that its class implements: remove it from config.json if the model was trained without it"
    )


def check_installed(attention: str, source: str) -> None:
    """Raise ModelError for an attention implementation whose package is not on this machine."""
    packages = {
        "flash_attention_2": ("flash-attn", is_flash_attn_2_available),
        "flash_attention_3": ("flash-attn-3", is_flash_attn_3_available),
    }
    package, is_available = packages.get(attention, ("", None))
    if is_available is not None and not is_available(kernels_fallback_ok=True):
        raise ModelError(
            f"{source}: attention is {attention}, which needs the package {package} and a GPU for it, and they are "
            "not here; install it, or remove attention from reference: to compute with sdpa"
        )


def find_objections(architecture: Architecture, implementation: str) -> Iterator[str]:
    """Why an implementation does not compute the model as configured; nothing if it does."""
    made = architecture.model_class
    flags = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    flags["flash_attention_3"] = flags["flash_attention_2"]
    if implementation in flags and not getattr(made, flags[implementation], False):
        yield f"{made.__name__} does not implement {implementation}"
        return
    config = architecture.config.get_text_config()
    for field, keyword in OPTIONS.items():
        if _is_set(config, field) and not _honours(made, implementation, keyword):
            yield f"{implementation} ignores {field} {shorten(getattr(config, field))} of config.json"


def _is_set(config: PreTrainedConfig, field: str) -> bool:
    off = field == "sliding_window" and getattr(config, "use_sliding_window", True) is False
    return bool(getattr(config, field, None)) and not off


def _honours(made: type[PreTrainedModel], implementation: str, keyword: str) -> bool:
    """Whether an option that the class hands to its attention takes effect there, or in its masks."""
    source = module_source(made)
    if f"{keyword}=" not in source:
        return True  # It is not for the attention function: the class does it itself, or no configuration has it.
    if keyword == "sliding_window" and any(mask in source for mask in MASKS):
        return True
    own = getattr(sys.modules[made.__module__], "eager_attention_forward", None)
    function = own if implementation == "eager" else ALL_ATTENTION_FUNCTIONS.get(implementation, None)
    return function is None or keyword in inspect.signature(function).parameters


def _classes_of(config: PreTrainedConfig, loader: Any) -> tuple[type[PreTrainedModel], ...]:
    """The classes that an auto class has for a configuration, the one that it takes first."""
    found = loader._model_mapping.get(type(config), ())
    return found if isinstance(found, tuple) else (found,)


def _explain_unknown(config: PreTrainedConfig) -> str:
    declared = (config.architectures or ["no architecture"])[0]
    if config.is_encoder_decoder:
        why = "this one is an encoder-decoder, whose texts are answers to other texts"
    else:
        why = "transformers has none of that type"
    inner = config.get_text_config()
    hint = "give the folder of a causal language model"
    if inner is not config and not config.is_encoder_decoder and type(inner) in LOADERS[0]._model_mapping:
        hint = f"save its language model ({inner.model_type}, a {type(inner).__name__}) as a folder of its own"
    return (
        f"config.json has model_type {config.model_type!r} ({declared}), expected a causal language model, and {why}; "
        f"{hint}"
    )
