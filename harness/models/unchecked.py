"""A model as its files give it, before it is checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.models.fingerprints import FileFingerprint
from harness.records import ModuleFormat, Note


@dataclass(frozen=True)
class UncheckedModel:
    """A model of transformers with its tokenizer and the fingerprints of its files.

    formats: by module, how the files store it, where memory does not show that; they win over inspection.
    quantization: the ``quant_method`` of a checkpoint that came quantized, else empty.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: tuple[FileFingerprint, ...]
    formats: Mapping[str, ModuleFormat] = field(default_factory=dict)
    quantization: str = ""
    notes: tuple[Note, ...] = ()
