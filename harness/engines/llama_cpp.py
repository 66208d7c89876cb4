"""The engine ``llama_cpp``: GGUF files with llama.cpp's own kernels, so that what the file holds is what is multiplied.

It has no modules that could be watched: a measure that needs them is Skipped. Its kernels on a processor round what
goes into products of quantized weights to 8 bits in blocks of 32 (256 for the K formats), so a model with outlier
channels loses more in them than its dequantized weights tell.

llama.cpp is compiled when it is installed (``pip install "lm-shipcheck[llamacpp]"``, ten minutes on two cores), so it
is never installed unless it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.engines import CheckpointKind, Engine
from harness.records import ModelSpec, Served
from harness.records.plan import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel


class LlamaCpp(Engine):
    """GGUF files with llama.cpp's own kernels on the processor; logits only, no modules."""

    reads: ClassVar[tuple[CheckpointKind, ...]] = ("gguf",)
    serves: ClassVar[tuple[Served, ...]] = ("generation", "cache")
    logits_dtype: ClassVar[Dtype | None] = "float32"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    requires: ClassVar[tuple[str, ...]] = ("llama_cpp",)
    extra: ClassVar[str] = "llamacpp"
    install_note: ClassVar[str] = "which compiles for ten minutes"

    def open(self, spec: ModelSpec, name: str, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
        """The model in a GGUF file as llama.cpp computes it."""
        from harness.engines._llama_cpp_model import open_llama_cpp
        from harness.models.sources import resolve

        return open_llama_cpp(spec, name, resolve(spec), tokenizer)
