"""Opening a checkpoint with transformers and verifying it.

    spec ─▶ folder ─▶ checked files ─┐
            GGUF file ───────────────┴▶ UncheckedModel ─▶ checked model ─▶ LoadedModel

    sources        resolves the name to files on this machine  weight_files   all weights are present and complete
    trust          nothing runs code; the manifest matches     sanity         the model is complete and as declared
    fingerprints   the files do not change while they are used

Anything that could make the numbers belong to a different model than the declared one is a ModelError here, before
anything is measured. Global seeds and thread counts stay unchanged.
"""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedTokenizerBase

from harness.errors import ModelError
from harness.models.checkpoint import open_folder
from harness.models.gguf import open_gguf
from harness.models.headers import find_dtype
from harness.models.identity import identify
from harness.models.language_model import TransformersModel
from harness.models.loaded import LoadedModel, UncheckedModel, freeze
from harness.models.sanity import check_not_blank, check_ready
from harness.models.sources import Source, resolve
from harness.models.stored_formats import cache_format, formats_in_use
from harness.models.verification.causality import check_causal
from harness.models.vocabulary import check_rows
from harness.modules.file_dtypes import state_file_dtypes
from harness.modules.inspection import module_formats
from harness.modules.kernels import inspect_kernels, note_skipped_experts, note_unpacked
from harness.modules.non_finite import find_non_finite, note_non_finite
from harness.modules.sparsity import note_sparse
from harness.records import ModelSpec, Note


def load(spec: ModelSpec, name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> LoadedModel:
    """Load ``spec`` and verify everything from the files to the finished model. tokenizer: used instead of its own.

    Raises ModelError saying what was found and what to do, and MissingDependencyError for a quantized checkpoint whose
    library is not installed.
    """
    _check_device(spec)
    source = resolve(spec)
    spec = spec if spec.dtype != "auto" else spec.model_copy(update={"dtype": find_dtype(spec, source.folder)})
    if source.file is not None:
        opened = open_gguf(spec, name, source.file, tokenizer)
    else:
        opened = open_folder(spec, name, source, tokenizer)
    model = opened.model
    freeze(model)
    check_ready(model, spec.model_copy(update={"attention": opened.attention}), opened.quantization)
    check_rows(spec.model, opened.tokenizer, TransformersModel(model).token_ids)
    check_not_blank(model, spec.model)
    non_finite = find_non_finite(model)
    notes = (*opened.notes, *_notes(spec, name, source), *note_non_finite(name, non_finite))
    formats = formats_in_use(model, opened.formats, opened.quantization)
    stated = state_file_dtypes(module_formats(model, formats, opened.quantization), opened.tensors)
    modules = inspect_kernels(model, stated)
    notes = (*notes, *note_unpacked(stated, modules), *note_skipped_experts(name, modules, model))
    notes = (*notes, *note_sparse(name, model))
    identity = identify(name, model, opened.tokenizer, spec.model, source.revision, spec.dtype, spec.device, modules)
    cache = cache_format(model, opened.declared, opened.quantization)
    identity = identity.model_copy(update={"cache": cache, "beside_sha256": _hash_beside(opened)})
    # Last: some libraries rearrange their weights in the first call.
    check_causal(TransformersModel(model), spec.model, quantized=bool(opened.declared))
    return LoadedModel(
        name,
        TransformersModel(model),
        opened.tokenizer,
        identity,
        opened.files,
        notes,
        quantization=opened.declared,
        non_finite=non_finite,
        unread=opened.unread,
    )


def _hash_beside(opened: UncheckedModel) -> str:
    """Hash of the unread tensors and the quantization config; empty if the files hold neither."""
    if not opened.unread and not opened.declared:
        return ""
    content = [[[each.name, each.sha256] for each in opened.unread], opened.declared]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _check_device(spec: ModelSpec) -> None:
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise ModelError(f"{spec.model}: unknown torch device {spec.device!r}: {error}") from error
    if device.type == "meta":
        raise ModelError(f"{spec.model}: device is meta, on which tensors have no values")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"{spec.model}: device is {spec.device}, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; use device: cpu"
        )


def _notes(spec: ModelSpec, name: str, source: Source) -> tuple[Note, ...]:
    if source.pinned:
        return ()
    text = f"{name}: {spec.model} has no commit as revision; used: {source.revision or 'unknown'}"
    return (Note(topic="revision", text=text, level="warn"),)
