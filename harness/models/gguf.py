"""Loads GGUF files with transformers: weights are dequantized at loading and computed in floating point.

    file ─▶ types and sizes of its tensors ─▶ formats of modules
      └──▶ link in a separate folder ──▶ transformers ─▶ floats, configuration, tokenizer

Values are those of the stored formats; memory is counted as in the file; speed is that of floats, so the kernels count
as simulated. What transformers would silently ignore is an error here: tensors without a module (``rope_freqs``),
scaled positions, an end token that differs from the file's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import HarnessError, MissingDependencyError, ModelError
from harness.models.fingerprints import fingerprint_file
from harness.models.gguf_file import GgufFile, GgufTensor, module_format, read_gguf, vocabulary_difference
from harness.models.loaded import UncheckedModel
from harness.models.sanity import check_loading, check_shapes
from harness.models.transformers_output import silence_transformers
from harness.models.verification.architecture import check_installed, choose_attention, find_architecture
from harness.records import ModelSpec, ModuleFormat, Note
from harness.system.foreign import LONG, guard


def open_gguf(spec: ModelSpec, name: str, path: Path, tokenizer: PreTrainedTokenizerBase | None) -> UncheckedModel:
    """Load the model of a GGUF file, as floats of ``spec.dtype``. tokenizer: used instead of the file's own.

    Raises ModelError for a file that is damaged, of an architecture that transformers cannot read, or from which
    transformers would construct a different model, and MissingDependencyError without the library gguf.
    """
    content, fingerprint = read_gguf(path), fingerprint_file(path)
    with link_in_own_folder(path) as folder:
        model, chosen = _model(folder, spec, path, name)
        own, notes = load_gguf_tokenizer(content, name, tokenizer, folder)
    places = _places(model, content)
    _check_complete(model, content, places)
    text = (
        f"{name}: {path.name} ({', '.join(content.types)}) runs on dequantized weights: quality and bytes are "
        f"those of the file, speed is that of {spec.dtype}; the result does not clear the kernels of llama.cpp, which "
        "round inputs and may repack the weights (seen with Q4_0: KL 0.003 dequantized, 0.199 with repacking kernels): "
        "check with engine: llama_cpp on the kind of machine that will run it"
    )
    return UncheckedModel(
        model,
        own,
        (fingerprint,),
        model.config._attn_implementation or "",
        formats=_formats(model, content, places, spec.dtype),
        notes=(Note(topic="gguf", text=text, level="warn"), *chosen, *notes),
    )


def load_gguf_tokenizer(
    found: GgufFile, name: str, given: PreTrainedTokenizerBase | None, folder: Path
) -> tuple[PreTrainedTokenizerBase, tuple[Note, ...]]:
    """The tokenizer of a file in ``folder`` (see `link_in_own_folder`), or the ``given`` one, with notes.

    Raises ModelError if the given one has a different vocabulary.
    """
    if given is not None:
        tokens = given.convert_ids_to_tokens(list(range(len(given))))
        if difference := vocabulary_difference(found, tokens):
            raise ModelError(
                f"{found.path}: tokenizer: reference needs the same vocabulary, but {difference}; leave it out, and "
                "the file's own tokenizer is used"
            )
        text = f"{name}: texts are encoded with the reference's tokenizer, not with the one in {found.path.name}"
        return given, (Note(topic="tokenizer", text=text),)
    try:
        # The reader has a progress bar of its own.
        with silence_transformers(), redirect_stderr(StringIO()), guard(f"{found.path}: loading its tokenizer"):
            own = AutoTokenizer.from_pretrained(folder, gguf_file=found.path.name, local_files_only=True)
    except Exception as error:  # The loader raises nearly anything.
        raise ModelError(
            f"{found.path}: transformers cannot construct its tokenizer: {type(error).__name__}: {error}; "
            "write tokenizer: reference if it is the reference's"
        ) from error
    return own, tuple(_repair_tokenizer(own, found, name))


@contextmanager
def link_in_own_folder(path: Path) -> Iterator[Path]:
    """A temporary folder with only a link to the file, so that nothing else in its folder (a tokenizer, an adapter) is
    read."""
    with tempfile.TemporaryDirectory(prefix="harness-gguf-") as folder:
        link = Path(folder) / path.name
        link.symlink_to(path.resolve())
        yield Path(folder)


def _model(folder: Path, spec: ModelSpec, path: Path, name: str) -> tuple[PreTrainedModel, tuple[Note, ...]]:
    loader: Any = AutoModelForCausalLM
    # Older versions only dequantize; newer ones would look for a kernel on the hub.
    config = getattr(transformers, "GgufConfig", None)
    try:
        with silence_transformers(), redirect_stderr(StringIO()), guard(f"{path}: loading it", patience=LONG):
            attention, notes = choose_attention(find_architecture(folder, spec, gguf_file=path.name), name, spec)
            check_installed(attention, spec.model)
            model, info = loader.from_pretrained(
                folder,
                gguf_file=path.name,
                quantization_config=config and config(dequantize=True),
                dtype=getattr(torch, spec.dtype),
                device_map=None if spec.device == "cpu" else {"": spec.device},
                attn_implementation=attention,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except ImportError as error:
        raise MissingDependencyError("gguf", str(path), 'pip install "lm-shipcheck[gguf]"') from error
    except HarnessError:
        raise
    except Exception as error:  # As above.
        raise ModelError(
            f"{path}: transformers cannot load it: {type(error).__name__}: {error}; engine: llama_cpp may support more "
            "architectures"
        ) from error
    check_loading(path, info)
    check_shapes(model, str(path))
    vars(model.config).pop("quantization_config", None)
    return cast(PreTrainedModel, model), notes


def _places(model: PreTrainedModel, found: GgufFile) -> dict[str, str]:
    """The model parameter of each tensor of the file, by transformers' own mapping."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    make: Any = TENSOR_PROCESSORS.get(found.architecture, TensorProcessor)
    processor = make(config=model.config.to_dict())
    try:
        return cast("dict[str, str]", cast(Any, get_gguf_hf_weights_map)(model, processor))
    except NotImplementedError as error:
        raise ModelError(
            f"{found.path}: the mapping from tensors to modules of the architecture {found.architecture} is unknown "
            f"({error}), so its formats cannot be determined; use engine: llama_cpp"
        ) from error


def _check_complete(model: PreTrainedModel, found: GgufFile, places: Mapping[str, str]) -> None:
    """Raise ModelError for tensors and position settings that are in the file but not in the model."""
    if unread := [tensor.name for tensor in found.tensors if tensor.name not in places]:
        raise ModelError(
            f"{found.path}: transformers ignores {len(unread)} of its tensors ({', '.join(unread[:3])}), so "
            "the loaded model would be different; use engine: llama_cpp, or the original checkpoint"
        )
    scaling = found.of_architecture("rope.scaling.type")
    rope = getattr(model.config, "rope_parameters", None) or {}
    if scaling not in (None, "none") and rope.get("rope_type", "default") == "default":
        raise ModelError(
            f"{found.path}: its positions are scaled ({scaling}), which transformers ignores when it reads GGUF; "
            "use engine: llama_cpp, or the original checkpoint"
        )


def _formats(model: PreTrainedModel, found: GgufFile, places: Mapping[str, str], dtype: str) -> dict[str, ModuleFormat]:
    """Formats by module name. A head that is tied to the embedding has the embedding's format."""
    grouped: dict[str, list[GgufTensor]] = {}
    for tensor in found.tensors:
        grouped.setdefault(places[tensor.name].rpartition(".")[0], []).append(tensor)
    table, head = model.get_input_embeddings(), cast(Any, model).get_output_embeddings()
    if head is not None and head.weight is table.weight:
        called = {id(module): name for name, module in model.named_modules()}
        grouped.setdefault(called[id(head)], grouped[called[id(table)]])
    return {
        name: module_format(name, type(model.get_submodule(name)).__name__, tensors, held=dtype)
        for name, tensors in grouped.items()
    }


def _repair_tokenizer(tokenizer: PreTrainedTokenizerBase, found: GgufFile, name: str) -> Iterator[Note]:
    """Set the file's BOS and EOS in the tokenizer, and whether BOS is added; a note for each setting that transformers
    changes."""
    for what in ("bos", "eos"):
        stated = found.values.get(f"tokenizer.ggml.{what}_token_id")
        taken = getattr(tokenizer, f"{what}_token_id")
        if isinstance(stated, int) and stated < len(found.tokens) and taken != stated:
            other = "none" if taken is None else repr(tokenizer.convert_ids_to_tokens(taken))
            setattr(tokenizer, f"{what}_token", found.tokens[stated])
            text = f"{name}: the {what.upper()} token is {found.tokens[stated]!r}, as the file says, and not {other}"
            yield Note(topic="tokenizer", text=text)
    stated = found.values.get("tokenizer.ggml.add_bos_token")
    if isinstance(stated, bool) and tokenizer.bos_token_id is not None and _adds_bos(tokenizer) != stated:
        bos = str(tokenizer.bos_token)
        opening = [bos] if stated else []
        cast(Any, tokenizer).backend_tokenizer.post_processor = TemplateProcessing(
            single=[*opening, "$A"], pair=[*opening, "$A", "$B"], special_tokens=[(bos, tokenizer.bos_token_id)]
        )
        what = "put" if stated else "not put"
        text = f"{name}: BOS is {what} before prompts, as the file says; transformers would do the opposite"
        yield Note(topic="tokenizer", text=text)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
