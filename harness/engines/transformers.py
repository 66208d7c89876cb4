"""The engine ``transformers``: PyTorch modules, which can be observed, compressed and saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, get_args

from harness.engines import CheckpointKind, Engine
from harness.records import ModelSpec, Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel


class Transformers(Engine):
    """Runs PyTorch models of transformers in the declared dtype; GGUF files are dequantized."""

    reads: ClassVar[tuple[CheckpointKind, ...]] = get_args(CheckpointKind)
    serves: ClassVar[tuple[Served, ...]] = get_args(Served)

    def open(self, spec: ModelSpec, name: str, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
        """See ``harness.models.loading.load``."""
        from harness.models.loading import load

        return load(spec, name, tokenizer)
