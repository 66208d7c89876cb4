"""Loads transformers folders: safetensors, configuration and tokenizer, verified before they are interpreted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.errors import HarnessError, ModelError
from harness.models.fingerprints import fingerprint_folder
from harness.models.loaded import UncheckedModel
from harness.models.packed_integers import Contents, unpack_folder
from harness.models.prequantized import is_unpacked_here, quantization_method
from harness.models.sanity import CACHE_SCALES, check_loading, check_shapes
from harness.models.sources import Source
from harness.models.stored_formats import formats_in_files
from harness.models.transformers_output import silence_transformers
from harness.models.trust import check_folder, check_token_ids
from harness.models.verification.architecture import Architecture, check_installed, choose_attention, find_architecture
from harness.models.verification.config_keys import note_undeclared_keys
from harness.models.verification.expert_files import convert_stacks
from harness.models.verification.tokenizer_file import describe_class, verify_tokenizer
from harness.models.weight_files import (
    UnreadTensor,
    WeightHeaders,
    check_no_hidden_codes,
    locate_config,
    read_json,
    read_unread,
    weight_files,
)
from harness.records import ModelSpec, Note
from harness.system.foreign import LONG, guard

_TOKENIZER_FILE = re.compile(r"token|tekken|vocab|merges|spm|\.model$|\.tiktoken$")


def open_folder(
    spec: ModelSpec, name: str, source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> UncheckedModel:
    """Load the model of a folder, exactly as its files specify. tokenizer: used instead of the folder's own.

    Raises ModelError and MissingDependencyError as ``loading.load`` does.
    """
    fingerprints = fingerprint_folder(source.folder)
    weights = check_folder(source.folder, fingerprints, spec.trust_remote_code, manifest=source.is_pocket)
    config = read_json(source.folder / "config.json")
    quantization = quantization_method(source.folder, config)
    if not quantization:
        check_no_hidden_codes(source.folder, weights)
    architecture = _find_architecture(source.folder, spec)
    attention, notes = choose_attention(architecture, name, spec)
    check_installed(attention, spec.model)
    spec = spec.model_copy(update={"attention": attention})
    notes += note_undeclared_keys(name, config, architecture.config, architecture.model_class)
    own = tokenizer or _load_tokenizer(source.folder, spec, weights)
    if tokenizer is None:
        notes += verify_tokenizer(name, own)
    notes = (*_dtype_notes(spec, name, weights), *notes)
    declared = locate_config(config)[0] or {}
    if is_unpacked_here(quantization):
        contents = _unpack(source.folder, spec, architecture.loader)
        notes = (*contents.notes(name), *notes)
        formats = {layer: unpacked.format for layer, unpacked in contents.layers.items()}
        quantization = ""
        model = _load_unpacked(source.folder, spec, contents)
    else:
        model = _load_model(source.folder, spec, architecture.loader)
        formats = formats_in_files(model, source.folder, quantization, declared)
        convert_stacks(model, formats, getattr(torch, spec.dtype))
    unread = read_unread(weight_files(source.folder, config), _left_in_files(model, weights))
    notes = (*notes, *_scale_notes(name, unread))
    return UncheckedModel(
        model, own, fingerprints, attention, formats, quantization, notes, declared, unread, weights.tensors
    )


def _find_architecture(folder: Path, spec: ModelSpec) -> Architecture:
    try:
        return find_architecture(folder, spec)
    except HarnessError:
        raise
    except Exception as error:  # As in _load_model.
        raise ModelError(f"{spec.model}: transformers cannot load it: {type(error).__name__}: {error}") from error


def _left_in_files(model: PreTrainedModel, weights: WeightHeaders) -> list[str]:
    """Names of tensors in the files that the class says it does not read, such as heads for further tokens.

    So are scales of a KV cache, if its attention has no place for them.
    """
    patterns: Any = (*(model._keys_to_ignore_on_load_unexpected or ()), CACHE_SCALES)
    known = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return [
        name for name in weights.dtypes if name not in known and any(re.search(pattern, name) for pattern in patterns)
    ]


def _scale_notes(name: str, unread: Sequence[UnreadTensor]) -> tuple[Note, ...]:
    scales = [each.name for each in unread if CACHE_SCALES.fullmatch(each.name)]
    if not scales:
        return ()
    text = (
        f"{name}: its files hold {len(scales)} scales of an 8-bit KV cache ({scales[0]} first), but config.json has no "
        "kv_cache_scheme, so transformers does not apply them and the cache was measured in full precision; a server "
        "that turns an 8-bit cache on applies them. To measure such a cache, declare kv_cache_scheme in config.json or "
        "add the step kv_cache; to ship without one, remove the scales from the files"
    )
    return (Note(topic="KV cache scales", text=text, level="warn"),)


def _unpack(folder: Path, spec: ModelSpec, loader: Any) -> Contents:
    """Dequantize the files of a packed folder, given the folder's model without weights."""
    code = {"trust_remote_code": spec.trust_remote_code}
    try:
        with silence_transformers(), torch.device("meta"), guard(f"{spec.model}: making its modules"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, **code)
            for part in (config, config.get_text_config(decoder=True)):
                vars(part).pop("quantization_config", None)
            model = loader.from_config(config, **code)
    except Exception as error:  # As in _load_model.
        raise ModelError(
            f"{spec.model}: transformers cannot construct the model: {type(error).__name__}: {error}"
        ) from error
    return unpack_folder(folder, model)


def _load_unpacked(folder: Path, spec: ModelSpec, contents: Contents) -> PreTrainedModel:
    config = cast(PreTrainedModel, contents.model).config
    state = contents.state(getattr(torch, spec.dtype))
    model = _load_model(folder, spec, type(contents.model), config=config, state_dict=state)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _load_model(folder: Path, spec: ModelSpec, loader: Any, **instead: Any) -> PreTrainedModel:
    """Call a transformers loader on a folder, or on what is given ``instead`` of its files."""
    try:
        with silence_transformers(), guard(f"{spec.model}: loading it", patience=LONG):
            model, info = loader.from_pretrained(
                None if instead else folder,
                dtype=getattr(torch, spec.dtype),
                device_map=None if spec.device == "cpu" else {"": spec.device},
                attn_implementation=spec.attention,
                trust_remote_code=spec.trust_remote_code,
                use_safetensors=True,
                # Not to be forgiven: check_loading then refuses them by name, which the loader's own error does not.
                ignore_mismatched_sizes=True,
                local_files_only=True,
                output_loading_info=True,
                **instead,
            )
    except Exception as error:  # The loader raises nearly anything for a folder that does not fit.
        raise ModelError(f"{spec.model}: transformers cannot load it: {type(error).__name__}: {error}") from error
    check_loading(folder, info)
    if getattr(model.config, "quantization_config", None) is not None:
        check_shapes(model, spec.model)
    return cast(PreTrainedModel, model)


def _load_tokenizer(folder: Path, spec: ModelSpec, weights: WeightHeaders) -> PreTrainedTokenizerBase:
    check_token_ids(folder, weights)
    if not any(_holds_tokenizer(path.name) for path in folder.iterdir()):
        raise ModelError(
            f"{spec.model}: its tokenizer cannot be loaded: the folder holds none; copy tokenizer.json and "
            "tokenizer_config.json from the model that it was made of, or, for a variant, write tokenizer: reference"
        )
    try:
        with silence_transformers(), guard(f"{spec.model}: loading its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # As above.
        raise ModelError(
            f"{spec.model}: its tokenizer cannot be loaded by the class {describe_class(folder)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; the folder needs the tokenizer files of the "
            "model (tokenizer.json and tokenizer_config.json)"
        ) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def _holds_tokenizer(name: str) -> bool:
    """Whether a file of this name is one of a tokenizer: its vocabulary, its settings, or its code."""
    return name != "special_tokens_map.json" and bool(_TOKENIZER_FILE.search(name))


def _dtype_notes(spec: ModelSpec, name: str, weights: WeightHeaders) -> tuple[Note, ...]:
    stored = weights.floating_dtypes()
    if not stored or stored == (spec.dtype,):
        return ()
    text = f"{name}: stored as {', '.join(stored)}, converted to {spec.dtype} as declared"
    return (Note(topic="dtype", text=text),)
