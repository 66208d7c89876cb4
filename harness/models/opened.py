"""What a source of models gives, before it is checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.models.fingerprints import FileStamp
from harness.records import ModuleFormat, Note


@dataclass(frozen=True)
class Opened:
    """A model with its tokenizer and files. formats: what is known of how modules are stored and cannot be seen in
    memory, by module; they win over inspection. quantization: the ``quant_method`` of a checkpoint that came quantized.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: tuple[FileStamp, ...]
    formats: Mapping[str, ModuleFormat] = field(default_factory=dict)
    quantization: str = ""
    notes: tuple[Note, ...] = ()
