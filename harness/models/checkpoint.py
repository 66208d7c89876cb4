"""Folders of transformers: safetensors, configuration and tokenizer, checked before anything in them is interpreted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import ModelError
from harness.models.opened import Opened
from harness.models.prequantized import quantization_method
from harness.models.quiet import quiet
from harness.models.soundness import check_loading
from harness.models.sources import Source
from harness.models.stamps import stamp_folder
from harness.models.stored_formats import formats_in_files
from harness.models.trust import check_folder
from harness.models.weight_files import Weights, check_no_hidden_codes, read_json
from harness.records import ModelSpec, Note


def open_folder(
    spec: ModelSpec, name: str, source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> Opened:
    """The model of a folder, exactly as its files say. tokenizer: taken instead of the folder's own.

    Raises ModelError and MissingDependencyError as ``loading.load`` does.
    """
    stamps = stamp_folder(source.folder)
    weights = check_folder(source.folder, stamps, spec.trust_remote_code, manifest=source.is_pocket)
    quantization = quantization_method(source.folder, read_json(source.folder / "config.json"))
    if not quantization:
        check_no_hidden_codes(source.folder, weights)
    model = _load_model(source.folder, spec)
    return Opened(
        model,
        tokenizer or _load_tokenizer(source.folder, spec),
        stamps,
        formats=formats_in_files(model, source.folder, quantization),
        quantization=quantization,
        notes=_dtype_notes(spec, name, weights),
    )


def _load_model(folder: Path, spec: ModelSpec) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    try:
        with quiet():
            model, info = loader.from_pretrained(
                folder,
                dtype=getattr(torch, spec.dtype),
                device_map=None if spec.device == "cpu" else {"": spec.device},
                attn_implementation=spec.attention,
                trust_remote_code=spec.trust_remote_code,
                use_safetensors=True,
                # Not to be forgiven: check_loading then refuses them by name, which the loader's own error does not.
                ignore_mismatched_sizes=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # The loader raises nearly anything for a folder that does not fit.
        raise ModelError(
            f"{spec.model}: transformers cannot load it: {type(error).__name__}: {error}"
        ) from error
    check_loading(folder, info)
    return cast(PreTrainedModel, model)


def _load_tokenizer(folder: Path, spec: ModelSpec) -> PreTrainedTokenizerBase:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # As above.
        raise ModelError(
            f"{spec.model}: its tokenizer cannot be loaded: {type(error).__name__}: {error}; the folder "
            "needs the tokenizer files of the model (tokenizer.json and tokenizer_config.json)"
        ) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def _dtype_notes(spec: ModelSpec, name: str, weights: Weights) -> tuple[Note, ...]:
    stored = weights.floating()
    if not stored or stored == (spec.dtype,):
        return ()
    text = f"{name}: stored as {', '.join(stored)}, converted to {spec.dtype} as declared"
    return (Note(topic="dtype", text=text),)
