"""GGUF files with llama.cpp's own kernels: what the file holds is what is multiplied.

The library is asked for the logits of given token ids, and for nothing else: it does not tokenize, sample or choose.
Around it stands a model of transformers without weights, so that the shared pass, the tasks and the clock can drive it
like any other. It has no modules that could be watched: what needs them is Skipped. Its kernels on a processor round
what goes into products of quantized weights to 8 bits in blocks of 32 (256 for the K formats), so a model with outlier
channels loses more in them than its dequantized weights tell.

llama.cpp is compiled when it is installed (``pip install "lm-shipcheck[llamacpp]"``, ten minutes on two cores), so it
is never installed unless it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from harness.errors import MissingDependencyError, ModelError
from harness.models.fingerprints import stamp_file
from harness.models.gguf import alone, tokenizer_of
from harness.models.gguf_file import GgufFile, module_formats_of, read_gguf
from harness.models.identity import config_sha256, tokenizer_sha256
from harness.models.opened import Opened
from harness.models.sources import Source
from harness.records import Identity, ModelSpec, Note

FIRST_ROOM = 512
"""Tokens that a context has room for at first; it grows with the texts, since its memory is taken at once."""


@dataclass(frozen=True)
class Held:
    """What stands for the key-value cache, which stays inside the library: the ids that it has read, one text."""

    ids: tuple[int, ...]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens have been read."""
        return len(self.ids)


class LlamaCppModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Logits of llama.cpp for token ids; float32, on the processor.

    Every text is read by itself from its beginning, so that numbers do not depend on what was read before; only
    within one text that is being written is the library's cache used.
    """

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, config: PreTrainedConfig, path: Path, vocabulary: int) -> None:
        super().__init__(config)
        # A table without columns: it says how many ids there are, and on which device, and holds nothing.
        self.table = nn.Embedding(vocabulary, 0)
        self._path, self._vocabulary = path, vocabulary
        self._library: Any = None
        self._room = 0
        self._read: tuple[int, ...] = ()
        self._writing = False

    def get_input_embeddings(self) -> nn.Module:
        """The table of token ids."""
        return self.table

    def get_output_embeddings(self) -> None:
        """None: logits come from the library."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of ids [B, T]; zeros where the mask is 0, which may be in front or behind.

        past_key_values: a ``Held`` that an earlier call gave, for one text that goes on.
        """
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        rows = []
        for ids_T, mask_T in zip(input_ids, mask_BT.bool(), strict=True):
            before = past_key_values.ids if isinstance(past_key_values, Held) else ()
            logits_TV = torch.zeros(len(ids_T), self._vocabulary)
            logits_TV[mask_T] = self._logits((*before, *ids_T[mask_T].tolist()), new=int(mask_T.sum()))
            rows.append(logits_TV[-logits_to_keep:] if logits_to_keep else logits_TV)
        held = Held(self._read) if use_cache and len(input_ids) == 1 else None
        return CausalLMOutputWithPast(logits=cast(Any, torch.stack(rows)), past_key_values=cast(Any, held))

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """As transformers does it, texts given whole at every step; one that goes on by a token is not read again."""
        self._writing = True
        try:
            return cast(Any, super()).generate(*arguments, **settings | {"use_cache": False})
        finally:
            self._writing = False

    def close(self) -> None:
        """Give the library's memory back."""
        if self._library is not None:
            self._library.close()
        self._library, self._room, self._read = None, 0, ()

    def _logits(self, ids: tuple[int, ...], new: int) -> Tensor:
        """Logits [new, V] behind the last ``new`` of the ids. Raises ModelError where the library cannot read them."""
        if not ids:
            return torch.zeros(0, self._vocabulary)
        continued = len(ids) - new if ids[:-new] else len(ids) - 1 if self._writing else 0
        self._make_room(len(ids))
        if not continued or self._read != ids[:continued]:
            self._library.reset()
            continued = 0
        try:
            self._library.eval(list(ids[continued:]))
        except (RuntimeError, ValueError) as error:
            self._read = ()
            raise ModelError(f"{self._path}: llama.cpp could not read {len(ids)} tokens: {error}") from error
        self._read = ids
        scores = torch.from_numpy(self._library.scores[len(ids) - new : len(ids)])
        return scores.clone().float()

    def _make_room(self, tokens: int) -> None:
        """A context of at least so many tokens; a new one forgets what was read."""
        if tokens <= self._room:
            return
        most = int(self.config.max_position_embeddings)
        room = min(most, max(FIRST_ROOM, 1 << (tokens - 1).bit_length()))
        if tokens > room:
            raise ModelError(f"{self._path}: a text of {tokens} tokens, and the model was made for {most}")
        self.close()
        try:
            self._library = _library().Llama(
                model_path=str(self._path),
                n_ctx=room,
                n_threads=torch.get_num_threads(),
                n_threads_batch=torch.get_num_threads(),
                n_gpu_layers=0,
                logits_all=True,
                verbose=False,
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ModelError(f"{self._path}: llama.cpp cannot open it: {error}") from error
        self._room = room


def open_llama_cpp(
    spec: ModelSpec, name: str, source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Opened, Identity]:
    """The model in a GGUF file as llama.cpp computes it. tokenizer: taken instead of the file's own.

    Raises ModelError for what is no GGUF file or cannot be opened, MissingDependencyError without the library.
    """
    _library()
    path = source.file
    if path is None:
        raise ModelError(f"{spec.model}: engine: llama_cpp reads GGUF files, and this is none; name one (or file:)")
    found, stamp = read_gguf(path), stamp_file(path)
    with alone(path) as folder:
        own, notes = tokenizer_of(found, name, tokenizer, folder)
    model = LlamaCppModel(_config(found, path), path, _vocabulary(found, path))
    model._make_room(1)  # Opened now, so that what cannot be read is refused before anything is measured.
    text = (
        f"{name}: {path.name} ({', '.join(found.types)}) is computed by llama.cpp {_version()} with its own kernels, "
        "which round what goes into products of quantized weights to 8 bits in blocks, and a KV cache of float16; its "
        "modules cannot be watched, so layer errors and outliers are not measured"
    )
    identity = Identity(
        name=name,
        source=spec.model,
        architecture=f"{found.architecture} (GGUF)",
        revision=source.revision,
        dtype="float32",
        device="cpu",
        attention=f"llama.cpp {_version()}",
        parameters=sum(tensor.values for tensor in found.tensors),
        weights_sha256=stamp.sha256,
        config_sha256=config_sha256(model.config),
        tokenizer_sha256=tokenizer_sha256(own),
        modules=module_formats_of(found),
    )
    return Opened(model, own, (stamp,), notes=(Note(topic="gguf", text=text), *notes)), identity


def _config(found: GgufFile, path: Path) -> PreTrainedConfig:
    """What whoever drives a model wants to know of it."""
    context = found.of_architecture("context_length")
    if not isinstance(context, int):
        raise ModelError(f"{path}: does not say how many positions it has ({found.architecture}.context_length)")
    make: Any = PreTrainedConfig
    config: PreTrainedConfig = make(
        vocab_size=_vocabulary(found, path),
        max_position_embeddings=context,
        bos_token_id=found.values.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=found.values.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=found.values.get("tokenizer.ggml.padding_token_id"),
    )
    return config


def _vocabulary(found: GgufFile, path: Path) -> int:
    """Rows of the table of embeddings: the logits for a token."""
    table = next((tensor for tensor in found.tensors if tensor.name == "token_embd.weight"), None)
    if table is None:
        raise ModelError(f"{path}: has no token_embd.weight, so it is no language model of llama.cpp")
    return table.shape[0]


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        install = 'pip install "lm-shipcheck[llamacpp]" (it is compiled, which takes ten minutes)'
        raise MissingDependencyError("llama-cpp-python", "engine: llama_cpp", install) from error
    return llama_cpp


def _version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return str(getattr(_library(), "__version__", "of unknown version"))
